"""YAML files read so that a mistake can be shown with file, line, field and reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
SECRET = ("secrets", "options")
"""Below these nothing that was given is repeated in a message: it may be a secret in the wrong place."""


NEAR = 0.65
"""How alike two names are of which one may be the other misspelled: url and uri are, state and steps are not."""
NEARER = 0.8
"""The same for a field that stands in another part of the tree."""


class BadInputError(Exception):
    """What a person gave us cannot be used. The message names file, field and reason; exit status 2."""


class _UniqueLoader(yaml.SafeLoader):
    """A key given twice is a mistake, not the last one's victory; so is a value that is not what its tag says."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError) as error:  # a date in a 13th month, !!int of a word
            tag = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"the value cannot be read as {tag}", node.start_mark
            ) from error


def _mapping(loader: _UniqueLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a list or a mapping cannot be a field's name", key_node.start_mark
            )
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def text_of(path: Path) -> str:
    """What a file says. Raises BadInputError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: is no UTF-8 text: {error.reason}") from error


def read(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """The file as plain data and as nodes with positions. Raises BadInputError."""
    text = text_of(path)
    try:
        data = yaml.load(text, Loader=_UniqueLoader)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise BadInputError(f"{path}: {line}{error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = f"line {text.count(chr(10), 0, error.position) + 1}: "
        raise BadInputError(
            f"{path}: {line}the character {error.character:#04x} cannot stand in YAML"
        ) from error
    except RecursionError as error:
        raise BadInputError(f"{path}: is nested too deeply") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise BadInputError(f"{path}: line 1: the file must be a mapping of fields")
    return data, node


def line_of(node: yaml.Node | None, where: tuple[int | str, ...]) -> int | None:
    """The line of a field, or of the nearest of its parents that stands in the file."""
    line = None
    for step in where:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        # a union's tag stands in `where` and not in the file
    return line


def explain(path: Path, node: yaml.Node | None, error: ValidationError, model: type[BaseModel]) -> str:
    """One line a mistake: file, line, field, reason."""
    lines = []
    problems = error.errors()
    for problem in problems:
        where = tuple(problem["loc"])
        inside = [one["loc"] for one in problems if one["loc"][: len(where)] == where != one["loc"]]
        if problem["type"] == "too_short" and inside:
            continue  # an entry that is wrong is not counted: that it is there shows in its own line
        lines.append(located(path, node, where, reason_of(problem, model)))
    return "\n".join(lines)


def located(path: Path, node: yaml.Node | None, where: tuple[int | str, ...], reason: str) -> str:
    """A mistake as it is shown: file, line, field, reason."""
    field = ".".join(str(step) for step in where) or "the file"
    line = line_of(node, where)
    at = f"line {line}: " if line else ""
    return f"{path}: {at}{field}: {reason}"


def reason_of(problem: Any, model: type[BaseModel]) -> str:
    """What is wrong, without a secret: for the end of a line that names file and field."""
    where = problem["loc"]
    if problem["type"] == "extra_forbidden":
        name = str(where[-1])
        known = _model_at(model, where[:-1]).model_fields
        near = did_you_mean(name, known) or did_you_mean(name, _field_names(model) - {name}, NEARER)
        return f"unknown field{near}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    given = problem.get("input")
    secret = any(str(step) in SECRET or str(step).endswith("url") for step in where)
    hidden = secret or given is None or isinstance(given, dict | list)
    return f"{problem['msg']}{'' if hidden else f', not {given!r}'}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = NEAR) -> str:
    """The known name that was meant, most likely, for the end of a message; nothing where none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def _model_at(model: type[BaseModel], where: tuple[int | str, ...]) -> type[BaseModel]:
    """The part of the tree that stands at this place."""
    for step in where:
        field = model.model_fields.get(str(step))
        if field is not None:
            parts = (field.annotation, *getattr(field.annotation, "__args__", ()))
            model = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), model)
    return model


def _field_names(model: type[BaseModel], seen: set[type] | None = None) -> set[str]:
    """Every field name of a tree of models: a misspelled field is near one of them."""
    seen = set() if seen is None else seen
    if model in seen:
        return set()
    seen.add(model)
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _field_names(part, seen)
    return names


def load(path: Path, model: type[M], overlay: dict[str, Any] | None = None) -> M:
    """Read a file into a model, with values from elsewhere laid over it. Raises BadInputError."""
    data, node = read(path)
    try:
        return model.model_validate(_merge(data, overlay or {}))
    except ValidationError as error:
        raise BadInputError(explain(path, node, error, model)) from error


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
