"""What no pool file may ask of a fence agent, whatever the agent's own metadata allows."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

ACTIONS = ("action", "option")
"""`option` is the older name; agents take either."""


def plain(name: str) -> str:
    """An option's name with all forgiven that an agent might forgive."""
    return name.strip().lower().replace("-", "_")


def refusal(agent: str, options: Mapping[str, str | int | bool], secrets: Collection[str]) -> str | None:
    """Why these parameters are refused, with the field; None where nothing is wrong. Repeats no value: it may be a
    secret in the wrong place."""
    for name in secrets:
        if plain(name) in ACTIONS:
            return f"secrets.{plain(name)}: the action is ours to choose"
        if plain(name) in ("method", "missing_as_off"):
            return f"secrets.{plain(name)}: it is no secret: give it below options, where it can be checked"
    for name, value in options.items():
        reason = _refused(plain(name), value)
        if reason is not None:
            return f"options.{plain(name)}: {reason}"
    named = {*(name for name, value in options.items() if value != ""), *secrets}
    if os.path.basename(agent) == "fence_redfish" and not {"systems_uri", "systems-uri"} & named:
        return (
            "options.systems_uri is missing: without it fence_redfish takes the last system that the BMC names, "
            "which need not be this host (such as /redfish/v1/Systems/1)"
        )
    return None


def _refused(name: str, value: str | int | bool) -> str | None:
    if name in ACTIONS:
        return "the action is ours to choose"
    if name == "method" and str(value).strip().lower() != "onoff":
        return "only onoff: a cycle reports success without ever having seen the power off, and is no proof"
    if name == "missing_as_off" and is_yes(value):
        return "a plug that is not found would read as off, and be taken for a proof"
    if name.endswith(("password", "passwd")):
        return "a secret does not belong into the pool file: give it below secrets, as file or env"
    return None


def is_yes(value: str | int | bool) -> bool:
    """As agents read it, with doubt taken for a yes."""
    return value is not False and str(value).strip().lower() not in ("0", "no", "off", "false")
