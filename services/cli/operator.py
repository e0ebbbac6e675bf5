"""Commands by which an operator tells the pool something. What may be said when is decided in libs/operator.py."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from libs import readmodel, signs
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.operator import Operator, RefusedError, Verdict
from libs.poolview import fence_missing
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

T = TypeVar("T")
HostArgument = Annotated[str, typer.Argument(help="name of the host in the pool file")]
CheckedOption = Annotated[
    str | None,
    typer.Option("--yes-i-checked", metavar="HOST", help="the host's name again, instead of asking"),
]
OverrideOption = Annotated[
    str,
    typer.Option(
        "--override",
        metavar="REASON",
        help="say it though the pool tolerates too little from then on; the reason is recorded",
    ),
]
RISK = """\
{host} (boot {boot}) is held failed, and no fence device has proven that it is down. Your word will be the proof.
Last heard: {heard}
{missing}{alive}
If it is still running, these VMs will run TWICE and write the same disks, which destroys them:
  {vms}
Go and look: its power must be off, or its mains unplugged. "Not reachable" is not enough.
"""


def confirm_failed(
    host: HostArgument,
    checked: CheckedOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vouch that a failed host is down, where no fence device can tell. Its VMs start elsewhere at once."""
    if checked is not None and checked != host:
        raise BadInputError(f"--yes-i-checked: it names {checked}, the command {host}")
    pool = settings_of(config)
    verdict, seen = said(pool, as_json, lambda operator: _looked(operator, host))
    if checked is None:
        _ask(verdict, seen)
    elif seen.alive:
        sys.stderr.write(seen.warning)
    said(pool, as_json, lambda operator: operator.confirm_failed(verdict))
    done = {
        "host": host,
        "boot": verdict.at.boot,
        "incident": verdict.incident,
        "vms": verdict.vms,
        "last_heard": seen.heard,
        "alive_by": seen.alive,
        "missing": seen.missing,
    }
    _done(
        as_json,
        "confirmed_failed",
        done,
        f"{host} counts as fenced; to be started elsewhere: {_names(verdict)}",
    )


STORM = """\
These hosts are silent at once, more than believable, and nobody is held failed without a proof:
  {suspects}
Most often it is the network or this machine. If you release them, those that nobody can reach are fenced and their
VMs are started elsewhere. Whoever falls silent after this is held again.
"""


def storm(
    what: Annotated[str, typer.Argument(metavar="release")],
    checked: Annotated[
        int | None,
        typer.Option("--yes-i-checked", metavar="N", help="the number of silent hosts, instead of asking"),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the suspects of a storm be held failed, after you have looked. Of these hosts, in this storm only."""
    if what != "release":
        raise BadInputError(f"storm: release, not {what}")
    pool = settings_of(config)
    seen = said(pool, as_json, lambda operator: operator.storm())
    count, names = len(seen.suspects), ", ".join(seen.suspects)
    if checked is None:
        sys.stderr.write(STORM.format(suspects=names))
        typed(
            str(count), f"Type how many hosts these are ({count}) to release them: ", "that is not how many"
        )
    elif checked != count:
        _refused(as_json, f"{count} hosts are silent, not {checked}: {names}")
    said(pool, as_json, lambda operator: operator.release_storm(seen))
    done = {"number": seen.number, "suspects": seen.suspects}
    _done(as_json, "storm_released", done, f"may be held failed now: {names}")


def maintenance(
    what: Annotated[str, typer.Argument(metavar="enter|exit")],
    host: HostArgument,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    override: OverrideOption = "",
    drain: Annotated[
        bool, typer.Option("--drain", help="enter: and what runs there moves to other hosts while it runs")
    ] = False,
) -> None:
    """A host in maintenance takes no new VMs. It stays watched: if it fails, its VMs are restarted elsewhere. Refused where the pool could then not take the failures that it is to tolerate."""
    if what not in ("enter", "exit"):
        raise BadInputError(f"maintenance: enter or exit, not {what}")
    entering = what == "enter"
    if drain and not entering:
        raise BadInputError(
            "--drain: a host is drained as it enters maintenance, and no more once it leaves it"
        )

    async def say(operator: Operator) -> None:
        if entering:
            await operator.enter_maintenance(host, override, drain=drain)
        else:
            await operator.exit_maintenance(host)

    said(settings_of(config), as_json, say)
    text = f"{host} takes no new VMs" if entering else f"{host} takes VMs again"
    if drain:
        text += ", and its VMs move away: `rekindle hosts` says which stay and why"
    done = {"host": host, "maintenance": entering, **({"drain": True} if drain else {})}
    _done(as_json, "maintenance", done, text)


ABSENT = """\
The stored state is an old copy of itself, and {host} has not told what it runs. If you say that it is not to be waited
for, the pool goes on without it: VMs that no other host runs stay down until a person starts them. If some of them run
on {host} all the same, and a person starts them elsewhere before it is heard again, they run TWICE.
"""


def confirm_absent(
    host: HostArgument,
    checked: CheckedOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """After old data were put back: do not wait for a host that is off. See `rekindle status`."""
    if checked is not None and checked != host:
        raise BadInputError(f"--yes-i-checked: it names {checked}, the command {host}")
    pool = settings_of(config)
    said(pool, as_json, lambda operator: operator.awaited(host))
    if checked is None:
        sys.stderr.write(ABSENT.format(host=host))
        typed(host, f"Type {host} to say that you looked and it is off: ", "that is not its name")
    said(pool, as_json, lambda operator: operator.confirm_absent(host))
    _done(as_json, "confirmed_absent", {"host": host}, f"{host} is not waited for any more")


def readmit(host: HostArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a host out of quarantine: it failed too often and gets new VMs again. Its failures are forgotten."""
    said(settings_of(config), as_json, lambda operator: operator.readmit(host))
    _done(as_json, "readmitted", {"host": host}, f"{host} takes VMs again")


def remove_host(
    host: HostArgument,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    override: OverrideOption = "",
) -> None:
    """Take a host out of the pool for good: nobody minds its silence. Refused while protected VMs run there, and where the pool could then not take the failures that it is to tolerate."""
    said(settings_of(config), as_json, lambda operator: operator.remove(host, override))
    text = f"{host} is out of the pool; take it out of the pool file, too: its next boot would join anew"
    _done(as_json, "removed", {"host": host}, text)


@contextlib.asynccontextmanager
async def _operator(settings: Settings) -> AsyncIterator[Operator]:
    async with readmodel.reader(settings) as reader:
        yield Operator(reader, reader.bus, SystemClock(), f"{getpass.getuser()}@{socket.gethostname()}")


def said(settings: Settings, as_json: bool, work: Callable[[Operator], Coroutine[Any, Any, T]]) -> T:
    """What came of it; exit 1 where it is refused. Each word over a connection of its own: a person may take long to answer a question in between."""

    async def run() -> T:
        async with _operator(settings) as operator:
            return await work(operator)

    try:
        return asyncio.run(run())
    except RefusedError as error:
        _refused(as_json, str(error))


def _refused(as_json: bool, reason: str) -> NoReturn:
    """The answer is no."""
    if as_json:
        print_json({"schema": "rekindle.word.v1", "said": False, "reason": reason})
    sys.stderr.write(f"rekindle: {reason}\n")
    raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a failed host, for the person who is to vouch for it."""

    heard: str
    missing: list[str]
    alive: list[str]
    peers: int
    """How many other hosts were asked just now and answered."""

    @property
    def warning(self) -> str:
        """By which channels it lives."""
        if self.alive:
            by = "".join(f"  {one}\n" for one in self.alive)
            return f"IT STILL SEEMS ALIVE, asked just now:\n{by}"
        if not self.peers:
            return "No other host could be asked just now whether it sees it.\n"
        return f"{self.peers} other hosts, asked just now, see nothing of it; that is no proof.\n"


async def _looked(operator: Operator, host: str) -> tuple[Verdict, Seen]:
    """The open verdict, and all that speaks for and against it."""
    reader = operator.view
    assert isinstance(reader, readmodel.Reader)
    verdict = await operator.verdict(host)
    told, (alive, peers), fencer = await asyncio.gather(
        signs.verdict(reader.events(), verdict.incident),
        signs.alive(operator.bus, reader.settings, verdict.at),
        reader.records("fencer"),
    )
    heard = "not known; the verdict is older than the stream keeps"
    if told is not None:
        before = "" if told.silent_s is None else f"{told.silent_s:.1f} s before "
        heard = f"{before}the verdict ({told.rule}) at {told.at}"
    return verdict, Seen(heard, fence_missing(fencer.get(host, {})), alive, peers)


def _ask(verdict: Verdict, seen: Seen) -> None:
    """The host's name, typed by a person who was told what is at risk."""
    host = verdict.at.host
    missing = "".join(f"  {one}\n" for one in seen.missing)
    text = RISK.format(
        host=host,
        boot=verdict.at.boot[:8],
        vms=_names(verdict),
        heard=seen.heard,
        missing=f"What its fence devices said:\n{missing}" if missing else "",
        alive=seen.warning.rstrip("\n"),
    )
    sys.stderr.write(text)
    typed(host, f"Type {host} to say that you looked and it is down: ", "that is not its name")


def typed(expected: str, prompt: str, wrong: str) -> None:
    """What a person must type, having read what was written before it."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    if sys.stdin.readline().strip() != expected:
        sys.stderr.write(f"rekindle: {wrong}: nothing was said\n")
        raise typer.Exit(1)


def _names(verdict: Verdict) -> str:
    return ", ".join(verdict.vms) or "no VM that is known"


def _done(as_json: bool, word: str, fields: dict[str, Any], text: str) -> None:
    if as_json:
        print_json({"schema": "rekindle.word.v1", "said": True, "word": word, **fields})
    else:
        sys.stdout.write(text + "\n")
