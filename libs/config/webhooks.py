"""Endpoints of other systems that events are posted to."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import functools
import re
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat

from libs.config.entries import Name, Secret, Section
from libs.config.yamlfile import BadInputError, did_you_mean, located, read
from libs.events.facts import KINDS

PREFIX = "whsec_"
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
OURS = frozenset(
    ("content-length", "content-type", "host", "webhook-id", "webhook-timestamp", "webhook-signature")
)
KEY_LEAST, KEY_MOST = 24, 64
"""Bytes of a key. Source: Standard Webhooks 1.0."""


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("is no URL of an endpoint, such as https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a password does not belong into the pool file; messages are signed, see secrets")
    return value


def _pattern(value: str) -> str:
    if not fnmatch.filter(KINDS, value):
        raise ValueError(
            f"no kind of event is called {value}{did_you_mean(value, KINDS)}; "
            "`rekindle schema list` has them, and * stands for any part, as in host.*"
        )
    return value


def _place(value: str) -> str:
    if not value or "/" in value or urlsplit(f"//{value}").hostname is None:
        raise ValueError(f"{value!r} is no host[:port]")
    return value.lower()


def _header(value: str) -> str:
    if not HEADER.fullmatch(value) or value.lower() in OURS:
        raise ValueError(f"{value!r} is no name of a header, or one that is ours: {', '.join(sorted(OURS))}")
    return value


HeaderName = Annotated[str, AfterValidator(_header)]
Endpoint = Annotated[str, AfterValidator(_url)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Place = Annotated[str, AfterValidator(_place)]


class Webhook(Section):
    """One endpoint. A filter that is not given lets everything pass; an event must pass all of them."""

    name: Name
    url: Endpoint
    secrets: tuple[Secret, ...] = Field(
        (),
        max_length=4,
        description="keys that sign, each as whsec_ and base64; several while one is replaced",
    )
    events: tuple[Pattern, ...] = Field((), description="kinds, such as host.failed or host.*")
    severities: tuple[Literal["info", "warning", "critical"], ...] = ()
    hosts: tuple[Name, ...] = Field((), description="only what is about one of these hosts")
    vms: tuple[str, ...] = Field((), description="only what is about one of these VMs, by name")
    timeout_s: PositiveFloat = Field(
        5.0, le=60, description="for one delivery, from connecting to the answer"
    )
    answer_max_kib: int = Field(64, ge=1, le=10240, description="more of an answer is not read")
    redirects_to: tuple[Place, ...] = Field(
        (), description="host[:port] that a 307 or 308 may lead to; nowhere where none is named"
    )
    ca_file: Path | None = Field(None, description="authorities to trust instead of the system's")
    headers: dict[HeaderName, Secret] = Field({}, max_length=8, description="sent with each, such as a token")
    body: dict[str, Any] | None = Field(
        None,
        description="what is posted instead of the event: JSON in which ${data.request} stands for a part of it",
    )

    def extra(self, where: str) -> dict[str, str]:
        """Headers with their values. Raises BadInputError naming field and reason, never the content."""
        found = {}
        for name, secret in self.headers.items():
            try:
                value = secret.read()
            except BadInputError as error:
                raise BadInputError(f"{where}.headers.{name}: {error}") from error
            if not value or not value.isprintable() or not value.isascii():
                raise BadInputError(f"{where}.headers.{name}: is no value of a header: one line of ASCII")
            found[name] = value
        return found

    def keys(self, where: str) -> tuple[str, ...]:
        """The keys that sign. Raises BadInputError naming field and reason, never the content."""
        return tuple(key_of(secret, f"{where}.secrets.{n}") for n, secret in enumerate(self.secrets))

    def trust(self, where: str) -> ssl.SSLContext:
        """What its certificate is verified against. Raises BadInputError."""
        return trust(self.ca_file, where)


@functools.lru_cache
def _trust(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))


def trust(ca_file: Path | None, where: str) -> ssl.SSLContext:
    """What certificates are verified against: these authorities, else the system's. Raises BadInputError."""
    try:
        return _trust(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadInputError(f"{where}.ca_file: {ca_file}: cannot be read: {error}") from error


def refuse_unusable(webhooks: Sequence[Webhook], path: Path) -> None:
    """Read what the endpoints of a pool file need from other files. Raises BadInputError naming file, line, field and
    reason."""
    for index, webhook in enumerate(webhooks):
        where = f"alerts.webhooks.{index}"
        with shown_in(path):
            webhook.keys(where)
            webhook.trust(where)
            webhook.extra(where)


@contextlib.contextmanager
def shown_in(path: Path) -> Iterator[None]:
    """Show where in the pool file the field stands that a BadInputError begins with."""
    try:
        yield
    except BadInputError as error:
        _, node = read(path)
        place, _, reason = str(error).partition(": ")
        steps = tuple(int(step) if step.isdigit() else step for step in place.split("."))
        raise BadInputError(located(path, node, steps, reason)) from error


def key_of(secret: Secret, where: str) -> str:
    """One key that signs. Raises BadInputError naming field and reason, never the content."""
    try:
        text = secret.read()
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from error
    bare = text.removeprefix(PREFIX)
    try:
        length = len(base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True))
    except (binascii.Error, ValueError):
        length = 0
    if not text.startswith(PREFIX) or not KEY_LEAST <= length <= KEY_MOST:
        raise BadInputError(
            f"{where}: is no key: {PREFIX} and then {KEY_LEAST} to {KEY_MOST} bytes in base64, as from "
            f"`echo {PREFIX}$(head -c 32 /dev/urandom | base64)`"
        )
    return text
