"""What the unit of the host agent needs that depends on the pool file: `python -m infra.systemd.dropin POOL HOST`.

Prints the drop-in; with `--udev` the rules that give the agent's group the host's watchdog and the block devices with
slots; with `--stores` the directories in which it keeps slots, one a line; with `--arrivals SCRIPT PYTHON` the hook by which
libvirt asks before it takes a VM in, nothing where the pool file says that it does not.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from libs.config.entries import Datastore
from libs.config.settings import Settings, load_settings
from libs.config.yamlfile import BadInputError
from libs.storage.mounts import FSTAB, Mounted

GROUP = "rekindle"
HOOK = Path(__file__).with_name("rekindle-arrivals")
ALLOWED = "arrivals-allowed"
"""Beside the socket: where a person has put such a file, every VM is let in."""
HEAD = "# Made by infra/systemd/install.sh from {pool}: run it again when that changes.\n"


def escaped(word: Path | str) -> str:
    """A word as unit files take it: a specifier begins with %, a space ends a word."""
    return '"' + str(word).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def watchdog_of(settings: Settings, host: str) -> Path | None:
    """The host's watchdog device; None where it has none, or only a simulated one."""
    entry = settings.host(host).watchdog
    return entry.device if entry is not None and entry.device.is_relative_to("/dev") else None


def stores_of(settings: Settings, host: str, *, block: bool) -> list[Datastore]:
    return [store for store in settings.datastores_of(host) if store.block == block]


def drop_in(settings: Settings, host: str, pool: Path) -> str:
    """The text of the drop-in. Raises BadInputError where the pool has no such host."""
    settings.host(host)
    lines = ["[Service]", f"Environment=REKINDLE_AGENT_HOST={host}"]
    stores = stores_of(settings, host, block=False)
    if stores:
        lines.append(
            "# its slots; permissions of files keep it from all else there. -: it may be away at boot"
        )
        # the quote is around the whole word, the - belongs to it
        lines += [f"ReadWritePaths={escaped(f'-{store.path}')}" for store in stores]
    devices = [store.path for store in stores_of(settings, host, block=True)]
    watchdog = watchdog_of(settings, host)
    if watchdog is not None:
        devices.append(watchdog)
    if devices:
        lines.append("# the machine's /dev, of which DevicePolicy=closed opens these alone")
        lines.append("PrivateDevices=no")
        lines += [f"DeviceAllow={escaped(device)} rw" for device in devices]
    return HEAD.format(pool=pool) + "\n".join(lines) + "\n"


def udev_rules(settings: Settings, host: str, pool: Path) -> str:
    """Rules for the devices that the agent writes to; only a comment where there are none."""
    give = f'GROUP="{GROUP}", MODE="0660"'
    rules = []
    if watchdog_of(settings, host) is not None:
        rules.append(f'SUBSYSTEM=="watchdog", {give}')
        rules.append(f'SUBSYSTEM=="misc", KERNEL=="watchdog", {give}')
    for store in stores_of(settings, host, block=True):
        name = str(store.path.relative_to("/dev")) if store.path.is_relative_to("/dev") else store.path.name
        if store.path.parent == Path("/dev/mapper"):
            match = f'ENV{{DM_NAME}}=="{store.path.name}"'
        elif "/" in name:
            match = f'SYMLINK=="*{name}*"'
        else:
            match = f'KERNEL=="{name}"'
        rules.append(f'SUBSYSTEM=="block", {match}, {give}')
    return HEAD.format(pool=pool) + "".join(f"{rule}\n" for rule in rules)


def slot_directories(settings: Settings, host: str, fstab: Path = FSTAB) -> list[tuple[Path, str]]:
    """Where the host keeps slots in directories, each with what is not mounted there; "" where nothing shows that."""
    return [
        (store.path / f".rekindle-{settings.pool}", Mounted(store.path, store.mount_point, fstab).lacking())
        for store in stores_of(settings, host, block=False)
    ]


def hook(settings: Settings, host: str, script: Path, python: Path) -> str:
    """The text of libvirt's hook; "" where libvirt asks nobody on this host."""
    path = settings.host(host).arrivals
    if path is None:
        return ""
    words = {"PYTHON": python, "SCRIPT": script, "SOCKET": path, "OVERRIDE": path.parent / ALLOWED}
    text = HOOK.read_text()
    for name, word in words.items():
        text = text.replace(f"@{name}@", shlex.quote(str(word)))
    return text


def main(arguments: list[str]) -> int:
    flags = {word for word in arguments if word.startswith("--")}
    pool, host, *more = (word for word in arguments if not word.startswith("--"))
    try:
        settings = load_settings(Path(pool))
        if flags == {"--udev"}:
            sys.stdout.write(udev_rules(settings, host, Path(pool)))
        elif flags == {"--arrivals"}:
            script, python = (Path(word) for word in more)
            sys.stdout.write(hook(settings, host, script, python))
        elif flags == {"--stores"}:
            for path, lacking in slot_directories(settings, host):
                sys.stdout.write("" if lacking else f"{path}\n")
                sys.stderr.write(f"{path}: {lacking}: mount it and run this again\n" if lacking else "")
        else:
            sys.stdout.write(drop_in(settings, host, Path(pool)))
    except BadInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
