"""What the settings of one pool must be to each other. Raises ValueError, which says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libs.config.settings import Settings


def check(settings: Settings) -> None:
    """All of it, what names hosts first."""
    names = [host.name for host in settings.hosts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"hosts: two hosts are called {name}")
    _datastores(settings, names)
    settings.alerts.fit(names)
    _standby(settings)
    _questions(settings)
    _retries(settings)
    _watchdogs(settings)
    _slots(settings)
    _guests(settings)


def _standby(settings: Settings) -> None:
    if settings.standby is not None and not any(host.standby and host.fencing for host in settings.hosts):
        raise ValueError(
            "standby: no host has standby: true and a fence device by which it could be switched on"
        )


def _questions(settings: Settings) -> None:
    beat, detect = settings.heartbeats.interval_s, settings.detection
    if detect.suspect_after_s < 3 * beat:
        raise ValueError(
            f"detection.suspect_after_s ({detect.suspect_after_s} s) is shorter than three heartbeats "
            f"(3 x heartbeats.interval_s = {3 * beat} s): one lost packet would be a suspicion"
        )
    if detect.confirm_silence_s < detect.confirm_witnessed_s:
        raise ValueError(
            f"detection.confirm_silence_s ({detect.confirm_silence_s} s) is shorter than "
            f"confirm_witnessed_s ({detect.confirm_witnessed_s} s): less evidence must wait longer"
        )
    if detect.confirm_witnessed_s < detect.ask_timeout_s:
        raise ValueError(
            f"detection.confirm_witnessed_s ({detect.confirm_witnessed_s} s) is shorter than "
            f"ask_timeout_s ({detect.ask_timeout_s} s): nobody could answer in time"
        )
    if detect.ask_every_s < detect.ask_timeout_s:
        raise ValueError(
            f"detection.ask_timeout_s ({detect.ask_timeout_s} s) is longer than ask_every_s "
            f"({detect.ask_every_s} s): the next question would come before the answer to this one"
        )


def _retries(settings: Settings) -> None:
    for name, first_s, max_s in (
        ("fencing", settings.fencing.retry_first_s, settings.fencing.retry_max_s),
        ("restart", settings.restart.retry_first_s, settings.restart.retry_max_s),
    ):
        if first_s > max_s:
            raise ValueError(
                f"{name}.retry_first_s ({first_s} s) is longer than retry_max_s ({max_s} s): waits grow from "
                "the one to the other"
            )


def _watchdogs(settings: Settings) -> None:
    beat = settings.heartbeats.interval_s
    for host in settings.hosts:
        if host.watchdog is not None and host.watchdog.timeout_s < 5 * beat:
            raise ValueError(
                f"hosts: the watchdog of {host.name} has a timeout_s of {host.watchdog.timeout_s} s, which is less "
                f"than five heartbeats (5 x heartbeats.interval_s = {5 * beat:g} s): a few lost packets would reset it"
            )


def _slots(settings: Settings) -> None:
    detect = settings.detection
    slot = settings.heartbeats.slot_interval_s
    if settings.datastores and detect.confirm_witnessed_s < 2 * slot:
        raise ValueError(
            f"detection.confirm_witnessed_s ({detect.confirm_witnessed_s} s) is shorter than two writes of a "
            f"storage slot (2 x heartbeats.slot_interval_s = {2 * slot} s): none could be seen to stand still"
        )
    write_s = slot + settings.heartbeats.slot_timeout_s
    if settings.datastores and detect.datastore_lost_s < 3 * write_s:
        raise ValueError(
            f"detection.datastore_lost_s ({detect.datastore_lost_s} s) is shorter than three slow writes of a "
            f"slot (3 x (heartbeats.slot_interval_s + slot_timeout_s) = {3 * write_s:g} s): a datastore that "
            "stalls for a moment would be lost"
        )


def _guests(settings: Settings) -> None:
    if settings.guests.silent_after_s < 3 * settings.guests.ping_every_s:
        raise ValueError(
            f"guests.silent_after_s ({settings.guests.silent_after_s} s) is shorter than three pings "
            f"(3 x guests.ping_every_s = {3 * settings.guests.ping_every_s} s): a guest that is busy for a "
            "moment would be restarted"
        )


def _datastores(settings: Settings, hosts: list[str]) -> None:
    stores = [store.name for store in settings.datastores]
    for index, store in enumerate(settings.datastores):
        where = f"datastores.{index}"
        if stores.count(store.name) > 1:
            raise ValueError(f"{where}: two datastores are called {store.name}")
        for host in store.hosts or ():
            if host not in hosts:
                raise ValueError(f"{where}.hosts: no host is called {host}")
        if not store.block:
            continue
        places = [settings.host(host).slot for host in store.hosts or hosts]
        if None in places or len(set(places)) < len(places):
            raise ValueError(
                f"{where}: on a block device each host needs a place of its own: hosts.N.slot, each another"
            )
