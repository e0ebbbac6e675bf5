"""The lab's switch (root only): a bridge in the machine's own network namespace, one cable a host.

The bridge has an address: what listens on it (or on 0.0.0.0) is reached from every host. The hosts' own 127.0.0.1
is theirs alone.
"""

import errno
import fcntl
import hashlib
import json
import socket
import struct
import subprocess
import threading
from ipaddress import ip_network
from pathlib import Path

from infra.lab.needs import program
from infra.lab.spec import LabError, LabHost, LabNetwork

_LOCK = "network.lock"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


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


def plan(root: Path, hosts: list[LabHost]) -> LabNetwork:
    """Names and addresses for a lab at `root`, on a network that this machine does not use.

    The range is 198.18.0.0/15, kept for benchmarks (RFC 2544), so no real network is shadowed.
    """
    seed = hashlib.sha256(str(root).encode()).digest()
    used = [ip_network(each, strict=False) for each in _used()]
    for step in range(512):
        number = (int.from_bytes(seed[:2]) + step) % 512
        candidate = ip_network(f"198.{18 + number // 256}.{number % 256}.0/24")
        if not any(candidate.overlaps(each) for each in used):
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


def pull(port: str) -> None:
    """Take the carrier off a cable at once, by its end at the switch (0.3 ms; `ip` would take 2, removing it 20).

    Does nothing when there is no such cable. Raises OSError when it cannot be done.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.Struct("16sH14x")
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request.pack(port.encode(), 0))
            flags = request.unpack(answer)[1] & ~_IFF_UP
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request.pack(port.encode(), flags))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


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
    """Take the switch and what cables are left away. Raises LabError when they stay."""
    with open(root / _LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    for name in [network.port(host) for host in network.addresses] + [network.bridge]:
        if Path(f"/sys/class/net/{name}").exists():
            # A cable goes by itself with its host's namespace, perhaps just now; only what remains is an error.
            done = subprocess.run(
                [program("ip"), "link", "del", name], capture_output=True, text=True, check=False
            )
            if Path(f"/sys/class/net/{name}").exists():
                raise LabError(f"ip link del {name}: {done.stderr.strip()}")
