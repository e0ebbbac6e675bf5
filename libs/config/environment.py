"""Settings from environment variables: `REKINDLE_DETECTION__SUSPECT_AFTER_S=2` overrides `detection.suspect_after_s`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from libs.config.yamlfile import BadInputError

ENVIRONMENT_PREFIX = "REKINDLE_"
Place = tuple[str, ...]


def read_environment(
    environ: Mapping[str, str], sections: Collection[str]
) -> tuple[dict[str, Any], dict[Place, str]]:
    """`REKINDLE_A__B=x` as {"a": {"b": x}}, the value read as YAML, and by place the variable that gives it. Only
    names of settings count, and what looks like one and is none is a mistake.

    Raises BadInputError."""
    tree: dict[str, Any] = {}
    variables: dict[Place, str] = {}
    for key, text in sorted(environ.items()):
        if not key.startswith(ENVIRONMENT_PREFIX):
            continue
        path = key.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if path[0] not in sections:
            if len(path) > 1:
                raise BadInputError(f"environment variable {key}: {_unknown(path, sections)}")
            continue  # one that we tell our own processes something by
        variables[tuple(path)] = key
        at = tree
        for step in path[:-1]:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                raise BadInputError(f"environment variable {key}: another one gives {step} as a whole")
        try:
            at[path[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInputError(f"environment variable {key}: its value is no YAML") from error
    return tree, variables


def _unknown(path: list[str], sections: Collection[str]) -> str:
    near = difflib.get_close_matches(path[0], sorted(sections), n=1, cutoff=0.6)
    meant = ENVIRONMENT_PREFIX + "__".join([*near, *path[1:]]).upper()
    return f"no section of settings is called {path[0]}" + (f" (did you mean {meant}?)" if near else "")


def blamed(said: str, error: ValidationError, variables: dict[Place, str]) -> str:
    """What is wrong, line by line, with the variable named where it is one's value and not the file's."""
    lines, problems = said.splitlines(), error.errors()
    if len(lines) != len(problems):
        return "\n".join([said, f"with {', '.join(variables.values())} from the environment"])
    told = []
    for line, problem in zip(lines, problems, strict=True):
        where = tuple(str(step) for step in problem["loc"])
        giving = next((key for place, key in variables.items() if where[: len(place)] == place), None)
        if giving is not None:
            reason = line[line.index(f"{'.'.join(where)}: ") :]
            told.append(f"environment variable {giving}: {reason}")
            continue
        # a relation between settings stands at what holds them all
        part = [key for place, key in variables.items() if place[: len(where)] == where and place[-1] in line]
        told.append(f"{line}; from the environment: {', '.join(part)}" if part else line)
    return "\n".join(told)
