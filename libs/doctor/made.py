"""One finding as it is made: its code, what it is about, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass

from libs.doctor.codes import CODES, About, Severity
from libs.doctor.seen import Domain


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is a name for people; `host` where it was seen, "" for the pool; `uuid` of a VM."""

    code: str
    subject: str
    seen: str
    host: str = ""
    uuid: str = ""

    @property
    def about(self) -> About:
        return CODES[self.code].about

    @property
    def error(self) -> bool:
        """True where it keeps a VM from being restarted safely."""
        return CODES[self.code].severity is Severity.ERROR


def of_host(code: str, host: str, seen: str) -> Finding:
    return Finding(code, host, seen, host)


def of_domain(code: str, vm: Domain, host: str, seen: str) -> Finding:
    return Finding(code, vm.name, seen, host, vm.uuid)


def version(number: int | None) -> str | None:
    """libvirt's way to number versions, for people: 9001002 is 9.1.2."""
    return None if number is None else f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
