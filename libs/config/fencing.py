"""What no pool file may ask of a fence agent, whatever the agent's own metadata allows."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

ACTIONS = ("action", "option")
"""`option` is the older name; agents take either."""


def plain(name: str) -> str:
    """An option's name as agents read it: hyphens are underscores, and spaces around it do not count."""
    return name.strip().lower().replace("-", "_")


def refusal(agent: str, options: Mapping[str, str | int | bool], secrets: Collection[str]) -> str | None:
    """Why these parameters are refused, with the field; None where nothing is wrong. Repeats no value: it may be a
    secret in the wrong place."""
    given = {plain(name): value for name, value in options.items()}
    for where, names in (("options", given), ("secrets", {plain(name) for name in secrets})):
        for key in ACTIONS:
            if key in names:
                return f"{where}.{key}: the action is ours to choose"
    for key in ("method", "missing_as_off"):
        if key in {plain(name) for name in secrets}:
            return f"secrets.{key}: it is no secret: give it below options, where it can be checked"
    if str(given.get("method", "onoff")).strip().lower() != "onoff":
        return (
            "options.method: only onoff: a cycle reports success without ever having seen the power off, "
            "and is no proof"
        )
    if _is_yes(given.get("missing_as_off", False)):
        return "options.missing_as_off: a plug that is not found would read as off, and be taken for a proof"
    for key in given:
        if key.endswith(("password", "passwd")):
            return f"options.{key}: a secret does not belong into the pool file: give it below secrets, as file or env"
    known = {*given, *(plain(name) for name in secrets)}
    if os.path.basename(agent) == "fence_redfish" and "systems_uri" not in known:
        return (
            "options.systems_uri is missing: without it fence_redfish takes the last system that the BMC names, "
            "which need not be this host (such as /redfish/v1/Systems/1)"
        )
    return None


def _is_yes(value: str | int | bool) -> bool:
    """As agents read it, with doubt taken for a yes."""
    return value is not False and str(value).strip().lower() not in ("0", "no", "off", "false")
