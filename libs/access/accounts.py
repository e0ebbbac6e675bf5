"""Accounts and users as they stand in the server's configuration.

Services share the pool's account, `REKINDLE`. Each agent has one of its own, into which the few subjects of its host are
imported. Rights inside one account would not do: the server delivers the answer to a JetStream call wherever the
request's reply subject points, with its own rights, so that who may write one row could have the acknowledgement written
over any other (nats-server 2.15.1, ADR 8 and 9). Between accounts the reply stays in the account of who asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from libs.access.rights import AGENT_HEARS, NOTICES, OWNER, SERVICES, Role, agent, agent_user
from libs.access.subjects import AGENT_API, ANSWER_S, API, bound, calls, facts, inbox, keys, subjects
from libs.jetstream.names import Names

POOL_ACCOUNT, SYSTEM_ACCOUNT = "REKINDLE", "SYS"
NOTICES_SUBJECT = "$SYS.ACCOUNT.*.DISCONNECT"


@dataclass(frozen=True, slots=True)
class Access:
    """Who is known to the server of one pool."""

    pool: str
    public: Mapping[str, str]
    """Public keys by user."""
    hosts: tuple[str, ...] = ()
    """Those with an agent."""

    @property
    def names(self) -> Names:
        return Names(self.pool)


def users(hosts: Iterable[str]) -> list[str]:
    """All users of a pool's bus that have keys."""
    return [*(role.name for role in SERVICES), OWNER, NOTICES, *(agent_user(host) for host in hosts)]


def account_of(host: str) -> str:
    """The account of a host's agent."""
    return f"AGENT-{host}"


def service_users(access: Access) -> list[str]:
    """Users of the pool's account."""
    owner = [f"{{ nkey: {access.public[OWNER]} }}"] if OWNER in access.public else []
    known = [role for role in SERVICES if role.name in access.public]
    return [*owner, *(_user(access.public[role.name], role, access.names) for role in known)]


def notices_user(access: Access) -> str:
    """The one of the system account."""
    may = {"publish": [], "subscribe": [NOTICES_SUBJECT, f"{inbox(NOTICES)}.>"]}
    rights = f'publish: {{ deny: [">"] }}, subscribe: {_words(may["subscribe"])}'
    return f"{{ nkey: {access.public[NOTICES]}, permissions: {{ {rights} }} }}"


def exports(access: Access) -> list[str]:
    """What the pool's account shows to those of agents: which of it one of them imports stands there."""
    if not access.hosts:
        return []
    prefix = access.names.prefix
    services = (f"{API}.STREAM.INFO.>", f"{API}.STREAM.MSG.GET.>", "$KV.>", f"{prefix}.event.>")
    return [
        *(f'{{ service: "{subject}" }}' for subject in services),
        *(f'{{ stream: "{prefix}.{topic}" }}' for topic in AGENT_HEARS),
    ]


def imports(access: Access) -> list[str]:
    """What the pool's account takes from those of agents."""
    prefix = access.names.prefix
    found = []
    for host in access.hosts:
        role, account = agent(host), account_of(host)
        found += [
            f'{{ stream: {{ account: "{account}", subject: "{prefix}.{topic}" }} }}' for topic in role.sends
        ]
        found += [
            f'{{ service: {{ account: "{account}", subject: "{prefix}.{topic}" }} }}'
            for topic in role.answers
        ]
    return found


def agent_account(access: Access, host: str) -> str:
    """The account of one agent, complete."""
    role, names = agent(host), access.names
    prefix = names.prefix
    taken = [_service(f"{API}.{call}", f"{AGENT_API}.{call}") for call in calls(role, names)]
    taken += [_service(key) for key in keys(role, names)]
    for kind, subject in zip(role.tells, facts(role, names), strict=True):
        # of a fact that may be about any VM the subject says, by the server's word, which host told it
        taken.append(_service(subject) if bound(kind) else _service(f"{subject}.{host}", subject))
    taken += [
        f'{{ stream: {{ account: {POOL_ACCOUNT}, subject: "{prefix}.{topic}" }} }}' for topic in role.hears
    ]
    shown = [f'{{ stream: "{prefix}.{topic}" }}' for topic in role.sends]
    shown += [f'{{ service: "{prefix}.{topic}" }}' for topic in role.answers]
    one = _user(access.public[role.name], role, names, AGENT_API) if role.name in access.public else ""
    return (
        f'  "{account_of(host)}" {{\n    users: [ {one} ]\n'
        f"    exports: [ {', '.join(shown)} ]\n    imports: [ {', '.join(taken)} ]\n  }}"
    )


def accounts(
    access: Access,
    *,
    pool_users: Sequence[str] = (),
    pool_exports: Sequence[str] = (),
    system_users: Sequence[str] = (),
    more: str = "",
) -> str:
    """All accounts: those of the pool, of its agents and of the system, and what else the caller has."""
    lines = [
        "accounts {",
        f"  {POOL_ACCOUNT} {{\n    jetstream: enabled",
        f"    users: [ {_lines([*pool_users, *service_users(access)])} ]",
        f"    exports: [ {_lines([*pool_exports, *exports(access)])} ]",
        f"    imports: [ {_lines(imports(access))} ]\n  }}",
        *(agent_account(access, host) for host in access.hosts),
    ]
    system = [*system_users, *([notices_user(access)] if NOTICES in access.public else [])]
    lines.append(f"  {SYSTEM_ACCOUNT} {{ users: [ {_lines(system)} ] }}")
    if more:
        lines.append(more)
    return "\n".join([*lines, "}", f"system_account: {SYSTEM_ACCOUNT}", ""])


def _user(public: str, role: Role, names: Names, api: str = API) -> str:
    may = subjects(role, names, api)
    replies = f', allow_responses: {{ max: 1, expires: "{ANSWER_S}s" }}' if may.replies else ""
    return (
        f"{{ nkey: {public}, permissions: {{ publish: {_words(may.publish)}, "
        f"subscribe: {_words(may.subscribe)}{replies} }} }}"
    )


def _service(subject: str, here: str = "") -> str:
    to = f', to: "{here}"' if here and here != subject else ""
    return f'{{ service: {{ account: {POOL_ACCOUNT}, subject: "{subject}" }}{to} }}'


def _words(words: Sequence[str]) -> str:
    return json.dumps(list(words))


def _lines(items: Sequence[str]) -> str:
    return ",\n      ".join(items)
