"""Live migrations over libvirt, each driven by us: it is given up when our connection to either host ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import libvirt

FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)


def migrate(connection: Any, *, uuid: str, target: Callable[[], Any], uri: str, unsafe: bool) -> str:
    """Move it, `unsafe` without libvirt's own look at its disks; why libvirt refused, "" where it did not. Blocks. Raises libvirt.libvirtError where it was not heard."""
    try:
        parameters = {libvirt.VIR_MIGRATE_PARAM_URI: uri} if uri else {}
        flags = FLAGS | (libvirt.VIR_MIGRATE_UNSAFE if unsafe else 0)
        connection.lookupByUUIDString(uuid).migrate3(target(), parameters, flags)
    except libvirt.libvirtError as error:
        if not connection.isAlive():
            raise
        return str(error) or "refused without a reason"
    return ""


def abort(connection: Any, *, uuid: str) -> None:
    """Have the source give up what is under way. No error where nothing is."""
    with contextlib.suppress(libvirt.libvirtError):
        connection.lookupByUUIDString(uuid).abortJob()
