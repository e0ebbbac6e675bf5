"""`rekindle schema`: what other systems may rely on, as it is in this version."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from libs.config.yamlfile import BadInputError, did_you_mean
from libs.contract.asyncapi import asyncapi
from libs.contract.documents import schemas
from services.cli.app import JsonOption, print_json

schema = typer.Typer(help="Published schemas of events and documents.", no_args_is_help=True)
ASYNCAPI = "asyncapi"


@schema.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Names of all schemas, and of the AsyncAPI document."""
    names = [ASYNCAPI, *schemas()]
    if as_json:
        print_json({"schema": "rekindle.schemas.v1", "schemas": names})
    else:
        sys.stdout.write("\n".join(names) + "\n")


@schema.command("show")
def show(
    name: Annotated[str, typer.Argument(help="as `rekindle schema list` has it; the kind will do")],
) -> None:
    """One schema as JSON; `asyncapi` for the AsyncAPI 3 document of all events."""
    if name == ASYNCAPI:
        print_json(asyncapi())
        return
    known = schemas()
    found = known.get(name) or known.get(f"rekindle.{name}.v1")
    if found is None:
        raise BadInputError(
            f"NAME: no schema is called {name}{did_you_mean(name, known)}; see `rekindle schema list`"
        )
    print_json(found)
