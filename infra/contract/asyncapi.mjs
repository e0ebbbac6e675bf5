// Reads the AsyncAPI document with the parser of the AsyncAPI project itself. Exit 1 where that finds an error or a warning.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [tools, file] = process.argv.slice(2);
const { Parser } = createRequire(`${tools}/`)("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));
const found = diagnostics.filter((one) => one.severity < 2); // 0 error, 1 warning; the rest are hints
for (const one of found) console.error(`${one.code}: ${one.message} (${one.path.join(".")})`);
if (document === undefined || found.length > 0) process.exit(1);
console.log(`${file}: valid; ${document.channels().length} channels, ${document.operations().length} operations`);
