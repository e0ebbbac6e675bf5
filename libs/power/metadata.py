"""What a fence agent says of its own parameters (`-o metadata`), and what of a device does not fit that.

Agents only warn about a parameter that they do not know, into a log that nobody reads, and go on without it: a mistyped
`systems_uri` is a host that is not the one meant.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from libs.config.entries import FenceDevice
from libs.config.fencing import ACTIONS
from libs.power.agents import as_text
from libs.power.calls import run

YES_OR_NO = frozenset({"1", "yes", "on", "true", "0", "no", "off", "false"})
LONGEST = 1_000_000


class UnreadableMetadataError(Exception):
    """The agent told nothing of its parameters that could be read. The message says why."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an agent."""

    name: str
    required: bool = False
    kind: str = "string"
    """As the agent calls it: string, boolean, integer, second, select."""
    choices: tuple[str, ...] = ()
    deprecated: bool = False
    obsoletes: str | None = None
    """The older name for the same."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """All parameters of an agent by name, exactly as it writes them."""

    parameters: Mapping[str, Parameter]

    def same(self, name: str) -> set[str]:
        """All names of what has this name: the older ones and the newer."""
        names = {name}
        while True:
            more = {
                other
                for key, one in self.parameters.items()
                if one.obsoletes is not None
                for other in (key, one.obsoletes)
                if {key, one.obsoletes} & names
            }
            if more <= names:
                return names
            names |= more


def parse(text: str) -> Metadata:
    """Raises UnreadableMetadataError."""
    if len(text) > LONGEST:
        raise UnreadableMetadataError(f"it is longer than {LONGEST} characters")
    try:
        root = ElementTree.fromstring(text.strip())
    except ElementTree.ParseError as error:
        raise UnreadableMetadataError(f"it is no XML: {error}") from error
    found = {one.name: one for one in map(_parameter, root.iter("parameter")) if one.name}
    if root.tag != "resource-agent" or not found:
        raise UnreadableMetadataError("it names no parameters")
    return Metadata(found)


def _parameter(element: ElementTree.Element) -> Parameter:
    content = element.find("content")
    kind = "string" if content is None else content.get("type", "string")
    choices = () if content is None else tuple(one.get("value", "") for one in content.iter("option"))
    return Parameter(
        name=element.get("name", ""),
        required=element.get("required") == "1",
        kind=kind,
        choices=choices,
        deprecated=element.get("deprecated") == "1",
        obsoletes=element.get("obsoletes"),
    )


async def ask(path: str, timeout_s: float) -> Metadata:
    """The metadata of the agent at `path`. Raises UnreadableMetadataError, also where none came in `timeout_s`."""
    # on both ways: one that reads only its input would take a missing action for a reboot
    call = await run([path, "-o", "metadata"], b"action=metadata\n", timeout_s)
    if call.code != 0:
        raise UnreadableMetadataError(call.gist())
    return parse(call.out)


def misfits(device: FenceDevice, metadata: Metadata) -> Iterator[tuple[tuple[str, ...], str]]:
    """Field and reason of each parameter that the agent does not know, would ignore, or misses. Repeats no value: it
    may be a secret in the wrong place."""
    agent = os.path.basename(device.agent)
    for section, names in (("options", list(device.options)), ("secrets", list(device.secrets))):
        for name in names:
            parameter = metadata.parameters.get(name)
            if parameter is None:
                yield (section, name), f"{agent} has no such option{_meant(name, metadata)}"
            elif section == "options":
                reason = _ignored(as_text(device.options[name]), parameter)
                if reason is not None:
                    yield (section, name), f"{agent} takes {reason}"
    given = {*(name for name, value in device.options.items() if value != ""), *device.secrets}
    for key, parameter in metadata.parameters.items():
        wanted = parameter.required and not parameter.deprecated and key not in ACTIONS
        if wanted and not metadata.same(key) & given:
            yield ("options", key), f"is missing, and {agent} requires it"


def _meant(name: str, metadata: Metadata) -> str:
    known = sorted(
        key for key, one in metadata.parameters.items() if key not in ACTIONS and not one.deprecated
    )
    near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _ignored(value: str, parameter: Parameter) -> str | None:
    """What the agent takes instead, where it does not take this value; None where it does."""
    if parameter.kind == "boolean" and value.lower() not in YES_OR_NO:
        return "yes or no here, and ignores all else"
    if parameter.choices and value.upper() not in {choice.upper() for choice in parameter.choices}:
        return f"one of {', '.join(parameter.choices)} here"
    return None
