"""`rekindle pki`: certificates for the bus, its clients, and what is answered over HTTP."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated

import typer

from libs import pki as certificates
from libs.config.yamlfile import BadInputError
from libs.pki import CA, CA_DAYS, DAYS, SOON_DAYS, Pki, Shown
from services.cli.app import AUTHORITY, JsonOption, print_json

pki = typer.Typer(help="A certificate authority of your own.", no_args_is_help=True)
DirOption = Annotated[Path, typer.Option("--dir", help="where the authority and its certificates lie")]
NamesOption = Annotated[
    list[str] | None,
    typer.Option("--name", help="host name or address of a server, again for each; none: a client alone"),
]


@pki.command("init")
def init(
    directory: DirOption = AUTHORITY,
    common_name: Annotated[str, typer.Option("--common-name", help="of the authority")] = "Rekindle",
    days: Annotated[int, typer.Option(min=1, help="until the authority ends")] = CA_DAYS,
) -> None:
    """Make an authority: ca.pem, which everybody may have, and ca.key, which nobody who runs needs. One that is there
    stays."""
    made = Pki(directory).init(common_name, days)
    what = "an authority was made" if made else "there is an authority already; it stays"
    sys.stdout.write(f"{Pki(directory).certificate(CA)}: {what}\n")


@pki.command("issue")
def issue(
    certificate: Annotated[str, typer.Argument(help="what its files are called")],
    names: NamesOption = None,
    directory: DirOption = AUTHORITY,
    days: Annotated[int, typer.Option(min=1)] = DAYS,
    begin: Annotated[bool, typer.Option("--init", help="make the authority where there is none")] = False,
) -> None:
    """Make a certificate and its key, in place of those that are there."""
    if begin:
        Pki(directory).init("Rekindle")
    Pki(directory).issue(certificate, tuple(names or ()), days)
    _say(Pki(directory).read(certificate))


@pki.command("renew")
def renew(
    chosen: Annotated[list[str] | None, typer.Argument(help="which; none: all that end soon")] = None,
    directory: DirOption = AUTHORITY,
    within_days: Annotated[
        int, typer.Option(min=0, help="what ends within so many days ends soon")
    ] = SOON_DAYS,
    days: Annotated[int, typer.Option(min=1)] = DAYS,
) -> None:
    """Make other certificates and keys for the same names. Copy them to where they are used and have the server read
    them: nobody has to start again (docs/DEPLOYING.md)."""
    place, now = Pki(directory), datetime.datetime.now(datetime.UTC)
    due = [one.name for one in place.all() if not one.authority and one.days_left(now) < within_days]
    for name in chosen or due:
        place.renew(name, days)
        _say(place.read(name))
    if not chosen and not due:
        sys.stdout.write(f"no certificate ends within {within_days} days\n")


@pki.command("show")
def show(directory: DirOption = AUTHORITY, as_json: JsonOption = False) -> int:
    """All certificates and when they end. Exit status 1 where one has ended, or ends soon."""
    now = datetime.datetime.now(datetime.UTC)
    found = Pki(directory).all()
    if not found:
        raise BadInputError(
            f"--dir: {directory}: there is no certificate; `rekindle pki init` makes an authority"
        )
    if as_json:
        rows = [
            {
                "name": one.name,
                "file": str(one.path),
                "names": one.names,
                "ends": one.ends.isoformat(),
                "days_left": round(one.days_left(now), 1),
                "authority": one.authority,
            }
            for one in found
        ]
        print_json({"schema": "rekindle.certificates.v1", "certificates": rows})
    else:
        for one in found:
            _say(one)
    return 1 if any(one.days_left(now) < certificates.SOON_DAYS for one in found) else 0


def _say(one: Shown) -> None:
    left = one.days_left(datetime.datetime.now(datetime.UTC))
    what = "authority" if one.authority else ", ".join(one.names) or "client"
    ends = f"ends {one.ends:%Y-%m-%d}, in {left:.0f} days" if left > 0 else f"ENDED {one.ends:%Y-%m-%d}"
    sys.stdout.write(f"{one.name:<16} {what:<32} {ends}\n")
