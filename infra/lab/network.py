"""The lab's switch (root only): a bridge in the machine's own network namespace, one cable a host.

The bridge has an address: what listens on it (or on 0.0.0.0) is reached from every host. The hosts' own 127.0.0.1
is theirs alone.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from infra.lab.needs import program
from infra.lab.spec import LabError, LabHost, LabNetwork

_LOCK = "network.lock"
CLAIMS = Path("/run/rekindle-lab")
"""A link for each network that a lab has chosen, named as the network, to the lab's directory: between the choice and
the first address on it nothing else says that it is taken."""
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP, _IFF_NOARP = 0x8913, 0x8914, 0x01, 0x80
_SIOCBRADDIF, _SIOCBRDELIF = 0x89A2, 0x89A3


def _ip(*arguments: str, holding: int | None = None) -> str:
    """Run `ip`; it keeps the open file `holding` for as long as it lives."""
    argv = [program("ip"), *arguments]
    kept = () if holding is None else (holding,)
    done = subprocess.run(argv, pass_fds=kept, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _used() -> set[str]:
    """All networks that this machine has an address in or a route to, as text."""
    addresses = json.loads(_ip("-j", "-4", "addr"))
    found = {
        f"{each['local']}/{each['prefixlen']}" for link in addresses for each in link.get("addr_info", [])
    }
    return found | {
        route["dst"] for route in json.loads(_ip("-j", "-4", "route")) if route["dst"] != "default"
    }


def _claim(wanted: IPv4Network, root: Path) -> bool:
    """Take a network for the lab whose directory is `root`; False where another lab has it, whose directory is there."""
    claim = CLAIMS / str(wanted.network_address)
    with _claims_locked():
        if claim.is_symlink() and claim.readlink() != root and claim.exists():
            return False
        claim.unlink(missing_ok=True)
        claim.symlink_to(root)
        return True


def _release(root: Path) -> None:
    """Give back what the lab at `root` has claimed."""
    with _claims_locked():
        for claim in CLAIMS.glob("198.*"):
            if claim.readlink() == root:
                claim.unlink()


@contextmanager
def _claims_locked() -> Iterator[None]:
    CLAIMS.mkdir(exist_ok=True)
    with open(CLAIMS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def plan(root: Path, hosts: list[LabHost]) -> LabNetwork:
    """Names and addresses for a lab whose directory `root` is there, on a network that neither this machine uses nor
    another lab has chosen; `down` gives it back.

    The range is 198.18.0.0/15, kept for benchmarks (RFC 2544), so no real network is shadowed.
    """
    seed = hashlib.sha256(str(root).encode()).digest()
    used = [ip_network(each, strict=False) for each in _used()]
    for step in range(512):
        number = (int.from_bytes(seed[:2]) + step) % 512
        candidate = IPv4Network(f"198.{18 + number // 256}.{number % 256}.0/24")
        if not any(candidate.overlaps(each) for each in used) and _claim(candidate, root):
            break
    else:
        raise LabError("every network of 198.18.0.0/15 is in use on this machine")
    addresses = {host.name: str(candidate[10 + index]) for index, host in enumerate(hosts)}
    return LabNetwork(f"rk{seed[:4].hex()}", str(candidate[1]), 24, addresses)


def works() -> bool:
    """Whether this machine can make bridges and cables at all (a container often cannot): tried, not guessed."""
    # Names of our own, so that two probes at once do not take each other for a refusal.
    one, other = (f"rkt{threading.get_native_id()}{end}" for end in "ab")
    try:
        _ip("link", "add", one, "type", "veth", "peer", "name", other)
        _ip("link", "del", one)
        _ip("link", "add", one, "type", "bridge")
        _ip("link", "del", one)
    except LabError:
        return False
    return True


@contextmanager
def trial_bridge() -> Iterator[str]:
    """A bridge to try things on, by name; gone afterwards. Raises LabError where none can be made."""
    name = f"rkt{threading.get_native_id()}c"
    _ip("link", "add", name, "type", "bridge")
    try:
        yield name
    finally:
        _ip("link", "del", name)


# -- by the kernel's own calls: each takes 0.3 ms, `ip` 2 ms


def _change_flags(device: str, on: int = 0, off: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.Struct("16sH22x")
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request.pack(device.encode(), 0))
        flags = (request.unpack(answer)[1] | on) & ~off
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request.pack(device.encode(), flags))


def pull(port: str) -> None:
    """Take the carrier off a cable, by its end at the switch; nothing where there is no such cable. Raises OSError."""
    try:
        _change_flags(port, off=_IFF_UP)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _switch(bridge: str, number: int, device: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16si20x", bridge.encode(), socket.if_nametoindex(device))
        fcntl.ioctl(any_socket, number, request)


def put_on(bridge: str, device: str) -> None:
    """Make a device a port of the switch. Raises OSError."""
    _switch(bridge, _SIOCBRADDIF, device)
    _change_flags(device, on=_IFF_UP, off=_IFF_NOARP)


def take_off(bridge: str, device: str) -> None:
    """Take a port off the switch. The machine itself answers nothing on it, as it would on a device of its own.

    Raises OSError.
    """
    _change_flags(device, on=_IFF_NOARP)
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path("/proc/sys/net/ipv6/conf", device, "disable_ipv6").write_text("1")
    _switch(bridge, _SIOCBRDELIF, device)


def up(network: LabNetwork, root: Path) -> None:
    """Make the switch, unless it is there. Raises LabError."""
    # The lock is held by each command itself, from its fork on: if the caller is killed now, `down` waits for a
    # command that is still under way instead of overtaking it.
    with open(root / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = lock.fileno()
        if not Path(f"/sys/class/net/{network.bridge}").exists():
            # without an address of its own a bridge takes the lowest of its ports', another with each boot
            mac = network.mac(network.gateway)
            _ip("link", "add", network.bridge, "address", mac, "type", "bridge", holding=held)
            address = f"{network.gateway}/{network.prefix}"
            _ip("addr", "add", address, "dev", network.bridge, holding=held)
        _ip("link", "set", network.bridge, "up", holding=held)


def down(network: LabNetwork, root: Path) -> None:
    """Take the switch and what cables and wires are left away. Raises LabError when they stay."""
    with open(root / _LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    left = [name(host) for host in network.addresses for name in (network.wire, network.port)]
    for name in [*left, network.bridge]:
        if Path(f"/sys/class/net/{name}").exists():
            # A cable goes by itself with its host's namespace, perhaps just now; only what remains is an error.
            done = subprocess.run(
                [program("ip"), "link", "del", name], capture_output=True, text=True, check=False
            )
            if Path(f"/sys/class/net/{name}").exists():
                raise LabError(f"ip link del {name}: {done.stderr.strip()}")
    _release(root)
