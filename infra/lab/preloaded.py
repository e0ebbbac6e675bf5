"""What an agent's process imports, at once: `rekindle service heartbeat`."""

import importlib

from libs.lean import keep_out

keep_out()
for _module in ("services.cli.app", "services.heartbeat.__main__"):
    importlib.import_module(_module)
