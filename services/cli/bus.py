"""`rekindle bus`: keys and rights of the bus's users, and the server's configuration made of them."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from libs.access.accounts import Access, accounts, users
from libs.access.keys import KeyRing, write_secret
from libs.access.rights import SERVICES, Role, agent, agent_user
from libs.access.subjects import AGENT_API, API, subjects
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.jetstream.names import Names
from libs.jetstream.server import EmbeddedServer, embedded
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

bus = typer.Typer(help="Keys and rights on the bus.", no_args_is_help=True)
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="where keys lie; none: those of the embedded server")
]
TLS = """\
tls {{
  cert_file: "{place}/{name}.pem"
  key_file: "{place}/{name}.key"
  ca_file: "{place}/ca.pem"
  timeout: 5{verify}
}}
"""


def hosts_of(settings: Settings) -> tuple[str, ...]:
    """Those with an agent."""
    return tuple(host.name for host in settings.hosts if host.agent)


def ring_of(settings: Settings, keys: Path | None) -> KeyRing:
    """Raises BadInputError where the server is somebody else's and no directory is given."""
    if keys is None and not settings.embedded:
        raise BadInputError("--keys: is needed, as the bus is a server of your own (bus.url)")
    return KeyRing(keys or settings.nats_directory() / "keys")


@bus.command("keys")
def keys(
    config: ConfigOption = None,
    directory: KeysOption = None,
    renew: Annotated[list[str] | None, typer.Option(help="another key for this user")] = None,
) -> None:
    """Make a key for each service and each agent of the pool file that has none. The embedded server does so by itself."""
    settings = settings_of(config)
    ring, known = ring_of(settings, directory), users(hosts_of(settings))
    wrong = sorted(set(renew or ()) - set(known))
    if wrong:
        raise BadInputError(f"--renew: no user is called {wrong[0]}; there are {', '.join(known)}")
    made = ring.make(known)
    for user in renew or ():
        ring.renew(user)
    for user in [*made, *(renew or ())]:
        sys.stdout.write(f"{ring.seed(user)}\n")
    for user in sorted(set(ring.users()) - set(known)):
        sys.stdout.write(f"{user}: is in the pool file no more; delete its files to take its rights away\n")


@bus.command("config")
def configuration(
    config: ConfigOption = None,
    directory: KeysOption = None,
    certificate: Annotated[
        str | None, typer.Option(help="the server's certificate is called so; none: no TLS")
    ] = None,
    place: Annotated[Path, typer.Option(help="where the server finds it, its key and ca.pem")] = Path(
        "/etc/rekindle/tls"
    ),
    verify: Annotated[
        bool, typer.Option("--verify-clients", help="clients must have a certificate, too")
    ] = False,
) -> None:
    """Print the part of a NATS server's configuration that says who may do what, for its `include`. Makes the keys that
    are missing."""
    settings = settings_of(config)
    ring, hosts = ring_of(settings, directory), hosts_of(settings)
    ring.make(users(hosts))
    access = Access(settings.pool, {user: ring.public(user) for user in users(hosts)}, hosts)
    sys.stdout.write(
        "# Made by `rekindle bus config`: run it again when a host comes or goes. No secret is in it.\n"
    )
    sys.stdout.write("authorization { timeout: 10 }\n")
    sys.stdout.write(accounts(access))
    if certificate is not None:
        more = "\n  verify: true" if verify else ""
        sys.stdout.write(TLS.format(place=place, name=certificate, verify=more))


@bus.command("rights")
def rights(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What each user may publish and subscribe to; of agents that of a host called HOST."""
    names = Names(settings_of(config).pool)
    rows = [(role, subjects(role, names, api)) for role, api in _roles()]
    if as_json:
        found = [
            {"user": role.name, "what": role.what, "publish": may.publish, "subscribe": may.subscribe}
            for role, may in rows
        ]
        print_json({"schema": "rekindle.rights.v1", "users": found})
        return
    for role, may in rows:
        sys.stdout.write(f"{role.name}: {role.what}\n")
        sys.stdout.write("".join(f"  publish    {subject}\n" for subject in may.publish))
        sys.stdout.write("".join(f"  subscribe  {subject}\n" for subject in may.subscribe))


def _roles() -> list[tuple[Role, str]]:
    return [*((role, API) for role in SERVICES), (agent("HOST"), AGENT_API)]


@bus.command("reload")
def reload(config: ConfigOption = None) -> None:
    """Have the embedded server read the pool file's hosts, keys and certificates. Nobody's connection is disturbed, but
    that of a user who has another key, or none, now."""
    settings = settings_of(config)
    server = _ours(settings)
    server.configure()
    asyncio.run(server.reload())


@bus.command("hand-out")
def hand_out(
    host: Annotated[str, typer.Argument(help="host of the pool file with an agent")],
    to: Annotated[Path, typer.Option(help="an empty directory: what the host's installer needs")],
    config: ConfigOption = None,
) -> None:
    """Copy what the agent of one host needs to come to the embedded server: address, key, certificates to know it by."""
    settings = settings_of(config)
    if host not in hosts_of(settings):
        raise BadInputError(f"HOST: no host with an agent is called {host}")
    server = _ours(settings)
    seed = KeyRing(server.directory / "keys").seed(agent_user(host))
    try:
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(to / "bus_key", seed.read_bytes())
        (to / "bus_url").write_text(server.address + "\n")
        authority = server.directory / "tls" / "ca.pem"
        if authority.exists():
            shutil.copyfile(authority, to / "ca.pem")
    except OSError as error:
        raise BadInputError(
            f"{error.filename}: {error.strerror}: has `rekindle up` run with this pool file?"
        ) from error
    sys.stdout.write(
        f"{to}: give it to infra/systemd/install.sh on {host} by --bus-dir, and delete it here\n"
    )


def _ours(settings: Settings) -> EmbeddedServer:
    if not settings.embedded:
        raise BadInputError("bus.url: the bus is a server of your own: see docs/DEPLOYING.md")
    server = embedded(settings)
    server.configure()
    return server
