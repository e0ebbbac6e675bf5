"""Where the copies of VM definitions lie: one of each host that had the VM, which that host's agent alone may write.

A VM is restarted from the copy of the host that had it last. So whoever speaks as one host cannot have another host's VM
started as something else.
"""

from __future__ import annotations

import contextlib

from pydantic import ValidationError

from libs.core.ports import ConflictError, Store, UnavailableError
from libs.model import VmDefinition


def key_of(vm: str, host: str) -> str:
    """The row of a VM, by its UUID, as a host has it."""
    return f"{vm}.{host}"


async def read(store: Store, vm: str, host: str) -> VmDefinition | None:
    """As that host had it; or the one that an earlier version stored, which knew one copy a VM. None where there is none.
    Raises UnavailableError."""
    row = await store.get(key_of(vm, host)) or await store.get(vm)
    if row is None:
        return None
    try:
        found = VmDefinition.model_validate_json(row.value)
    except ValidationError as error:
        raise UnavailableError(f"the definition {row.key} cannot be read: {str(error)[:200]}") from error
    if found.uuid != vm:
        raise UnavailableError(f"the definition {row.key} is one of {found.uuid}")
    return found


async def write(store: Store, definition: VmDefinition, host: str) -> None:
    """Raises UnavailableError."""
    await store.put(key_of(definition.uuid, host), definition.model_dump_json().encode(), None)


async def taken_along(store: Store, vm: str, from_: str, to: str) -> None:
    """A VM that came to a host has that host's copy once its agent has written it. A host may be lost before: then the one
    where it was before serves. Raises UnavailableError."""
    if await store.get(key_of(vm, to)) is None:
        found = await read(store, vm, from_)
        if found is not None:
            with contextlib.suppress(ConflictError):  # its agent has written it meanwhile
                await store.put(key_of(vm, to), found.model_dump_json().encode(), 0)
