"""A rogue client for each key of the bus that can be stolen. docs/THREATS.md has the table that comes of it
(REKINDLE_UPDATE_GOLDEN=1 writes it anew)."""

from __future__ import annotations

import os
from pathlib import Path

from libs.access.rights import BY_NAME
from libs.access.subjects import AGENT_API, API
from libs.jetstream import subscribers
from libs.jetstream.connection import connect
from tests.integration import rogues
from tests.integration.keyed import POOL, Keyed, keyed
from tests.integration.rogues import Thief, Truth

DOCS = Path(__file__).parents[2] / "docs" / "THREATS.md"
BEGIN, END = "<!-- rogues: tests/integration/test_rogues.py -->\n", "<!-- /rogues -->"


async def thief_of(ground: Keyed, truth: Truth, user: str, api: str = API) -> Thief:
    bus = await ground.bus(user)
    return Thief(bus.client, ground.refusals[user], truth, api)


async def subscriber_of(ground: Keyed, truth: Truth) -> Thief:
    """With the file that `rekindle credentials subscriber` hands out."""
    made = subscribers.add(ground.server.directory, "erp")
    await subscribers.keep_place(truth.owner.client.jetstream(timeout=5), POOL, "erp")
    ground.server.configure()
    await ground.server.reload()

    async def closed() -> None:
        return None

    address = f"nats://{made.user}:{made.password}@{ground.server.listen}:{ground.server.port}"
    client = await connect([address], made.user, closed=closed, jetstream=False)
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error).lower())

    client._error_cb = note
    return Thief(client, refused, truth)


async def system_of(ground: Keyed, truth: Truth) -> Thief:
    async def closed() -> None:
        return None

    login = ground.login("system")
    client = await connect([ground.address], "system", closed=closed, jetstream=False, login=login)
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error).lower())

    client._error_cb = note
    return Thief(client, refused, truth)


async def test_a_thief_of_each_key_gets_no_further_than_the_docs_say(tmp_path: Path) -> None:
    tables: dict[str, list[tuple[str, str]]] = {}
    async with keyed(tmp_path) as ground:
        truth = Truth(await ground.owner())
        await truth.begin(ground)
        agent = await thief_of(ground, truth, "agent-h1", AGENT_API)
        await rogues.agent(agent)
        tables["the agent of h1"] = agent.rows
        erp = await subscriber_of(ground, truth)
        await rogues.subscriber(erp, subscribers.durable("erp"))
        await erp.client.close()
        tables["a subscriber"] = erp.rows
        for name in BY_NAME:
            one = await thief_of(ground, truth, name)
            await rogues.service(one, name)
            tables[f"`{name}`"] = one.rows
        system = await system_of(ground, truth)
        await rogues.notices(system)
        await system.client.close()
        tables["`system`"] = system.rows
    assert_in_docs(tables)


def assert_in_docs(tables: dict[str, list[tuple[str, str]]]) -> None:
    lines = ["| whose key | what it tried | what came of it |", "|---|---|---|"]
    for key, rows in tables.items():
        for outcome in dict.fromkeys(outcome for _, outcome in rows):
            tried = "; ".join(one for one, came in rows if came == outcome)
            lines.append(f"| {key} | {tried} | {outcome} |")
    fresh = "\n".join(lines) + "\n"
    page = DOCS.read_text()
    before, rest = page.split(BEGIN)
    found, after = rest.split(END)
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        DOCS.write_text(before + BEGIN + fresh + END + after)
        return
    assert found == fresh
