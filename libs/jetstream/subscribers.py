"""Who else may hear the events: users of the embedded server with no right but that.

Each has an account of its own, and the pool's bus is another's. Rights inside one account would not do: a server
delivers what a consumer is asked for to whatever subject the request names for the reply, with its own rights, so that
who may only pull could write into any bucket, the run leases among them (nats-server 2.15.1, measured). Between
accounts the reply stays in the account of who asked. The accounts lie ready in the server's configuration, since one
that is added to a running server gets no services; a user that is added does.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from pydantic import ValidationError

from libs.access.login import NOBODY, Login
from libs.config.entries import NAME
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.jetstream.connection import connect
from libs.jetstream.schema import Names
from libs.model import Value

SLOTS = 16
ACK_WAIT_S = 10.0
"""A subscriber has so long to acknowledge; then the event comes again."""
PENDING_MOST = 256
INBOUND = "rekindle.*.in.>"
"""What a subscriber that may tell something publishes to: under its own name, by its rights."""
SERVICES = ("$JS.API.CONSUMER.MSG.NEXT.>", "$JS.ACK.>", INBOUND)
STREAM = "rekindle.*.event.>"
API, API_PREFIX = "$JS.API", "REKINDLE.API"
"""For clients that look at their consumer before they pull (the nats command and most others do): the same services by
another name. By the server's own name the request would also go to the subscriber's account, which has no JetStream
and says so first (nats-server 2.15.1, measured)."""
LOOKS = "CONSUMER.INFO.>"
EXPORTS = (
    f'{{ service: "{API}.{LOOKS}" }}',
    f'{{ service: "{SERVICES[0]}", response_type: stream }}',
    f'{{ service: "{SERVICES[1]}" }}',
    f'{{ service: "{INBOUND}" }}',
    f'{{ stream: "{STREAM}" }}',
)
"""What the pool's account shows to those of subscribers; which of it a user may use is in its rights."""


class Subscriber(Value):
    """One user. `password` is a secret: only ever written to files with mode 0600."""

    name: str
    slot: int
    password: str
    tells: bool = False
    """It may also tell facts, and answer scale-out requests, in its own name."""

    @property
    def user(self) -> str:
        return f"subscriber-{self.name}"


def durable(name: str) -> str:
    """The consumer that keeps the place of a subscriber in the stream."""
    return f"subscriber-{name}"


def known(directory: Path) -> list[Subscriber]:
    """All subscribers of the server in this directory. Raises BadInputError for a file that is none of ours."""
    found = []
    for path in sorted((directory / "subscribers").glob("*.json")):
        try:
            found.append(Subscriber.model_validate_json(path.read_text()))
        except (OSError, ValidationError) as error:
            raise BadInputError(f"{path}: is no subscriber's file: {error}") from error
    return found


def add(directory: Path, name: str, *, tells: bool = False) -> Subscriber:
    """A subscriber of this name, the same as before where there is one, but for what it may tell. Raises
    BadInputError."""
    if not NAME.fullmatch(name):
        raise BadInputError(f"NAME: {name!r} is no name: letters, digits, - and _ only, 63 at most")
    present = known(directory)
    for one in present:
        if one.name == name:
            return one if one.tells is tells else _kept(directory, one.model_copy(update={"tells": tells}))
    free = sorted(set(range(SLOTS)) - {one.slot for one in present})
    if not free:
        raise BadInputError(f"NAME: there are {SLOTS} subscribers, which is the most; revoke one first")
    made = Subscriber(name=name, slot=free[0], password=secrets.token_urlsafe(24), tells=tells)
    return _kept(directory, made)


def _kept(directory: Path, made: Subscriber) -> Subscriber:
    name = made.name
    place = directory / "subscribers"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = place / f".{name}"
    fresh.touch(mode=0o600)
    fresh.write_text(made.model_dump_json())
    fresh.replace(place / f"{name}.json")
    return made


def remove(directory: Path, name: str) -> None:
    """Raises BadInputError where there is none."""
    if name not in [one.name for one in known(directory)]:
        raise BadInputError(f"NAME: no subscriber is called {name}; `rekindle credentials list` has them")
    (directory / "subscribers" / f"{name}.json").unlink()


def accounts(subscribers: list[Subscriber]) -> str:
    """Their part of the server's configuration."""
    by_slot = {one.slot: one for one in subscribers}
    imports = [f'{{ service: {{ account: REKINDLE, subject: "{subject}" }} }}' for subject in SERVICES]
    for what in (LOOKS, "CONSUMER.MSG.NEXT.>"):
        theirs = f'service: {{ account: REKINDLE, subject: "{API}.{what}" }}'
        imports.append(f'{{ {theirs}, to: "{API_PREFIX}.{what}" }}')
    imports.append(f'{{ stream: {{ account: REKINDLE, subject: "{STREAM}" }} }}')
    return "\n".join(
        f"  SUBSCRIBER_{slot} {{ users: [ {user(by_slot[slot]) if slot in by_slot else ''} ], "
        f"imports: [ {', '.join(imports)} ] }}"
        for slot in range(SLOTS)
    )


def user(subscriber: Subscriber, pool: str = "*") -> str:
    """The user as it stands in a server's configuration, with its rights: hear events as they come, pull from its own
    consumer, see how that is, acknowledge what came from there, and an inbox of its own."""
    stream = "*" if pool == "*" else Names(pool).events
    place = durable(subscriber.name)
    own = [f"rekindle.{pool}.in.{subscriber.name}.*"] if subscriber.tells else []
    publish = json.dumps(
        [
            *own,
            f"{API}.CONSUMER.MSG.NEXT.{stream}.{place}",
            *(f"{API_PREFIX}.CONSUMER.{what}.{stream}.{place}" for what in ("INFO", "MSG.NEXT")),
            f"$JS.ACK.{stream}.{place}.>",
            f"$JS.ACK.*.*.{stream}.{place}.>",
        ]
    )
    subscribe = json.dumps([f"rekindle.{pool}.event.>", f"_INBOX_{subscriber.user}.>"])
    return (
        f'{{ user: "{subscriber.user}", password: "{subscriber.password}", '
        f"permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}"
    )


async def keep_place(js: JetStreamContext, pool: str, name: str, *, from_start: bool = False) -> None:
    """Make the subscriber's consumer, from now on or from the oldest event that is kept; where it is there it stays as
    it is. Raises UnavailableError."""
    wanted = ConsumerConfig(
        durable_name=durable(name),
        filter_subject=f"{Names(pool).prefix}.event.>",
        deliver_policy=DeliverPolicy.ALL if from_start else DeliverPolicy.NEW,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_ack_pending=PENDING_MOST,
        max_deliver=-1,
    )
    try:
        await js.consumer_info(Names(pool).events, durable(name))
    except nats.js.errors.NotFoundError:
        try:
            await js.add_consumer(Names(pool).events, wanted)
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"consumer {durable(name)}: {error!r}") from error
    except (TimeoutError, nats.errors.Error) as error:
        raise UnavailableError(f"consumer {durable(name)}: {error!r}") from error


async def forget_place(js: JetStreamContext, pool: str, name: str) -> None:
    """Raises UnavailableError."""
    try:
        await js.delete_consumer(Names(pool).events, durable(name))
    except nats.js.errors.NotFoundError:
        return
    except (TimeoutError, nats.errors.Error) as error:
        raise UnavailableError(f"consumer {durable(name)}: {error!r}") from error


async def reload(system_url: str, login: Login = NOBODY) -> None:
    """Have the running server read its configuration again; connections stay, but for users that are gone. Raises
    UnavailableError with the server's reason."""

    async def closed() -> None:
        return None

    client = await connect(
        [system_url], "rekindle-reload", closed=closed, jetstream=False, wait_s=3.0, login=login
    )
    try:
        pong = await client.request("$SYS.REQ.SERVER.PING", b"", timeout=3)
        server = json.loads(pong.data)["server"]["id"]
        answer = json.loads((await client.request(f"$SYS.REQ.SERVER.{server}.RELOAD", b"", timeout=10)).data)
    except (TimeoutError, nats.errors.Error, ValueError, KeyError) as error:
        raise UnavailableError(f"the server did not read its configuration again: {error!r}") from error
    finally:
        await client.close()
    if "error" in answer:
        raise UnavailableError(f"the server refused its configuration: {answer['error']}")
