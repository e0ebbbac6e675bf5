"""Cut links (root only): routing rules inside the host's own network namespace, gone with it.

Rules need nothing but `ip`; packet filters and netem are not in every kernel. Each rule is one direction: what
comes from an address is dropped before it is delivered, what goes to an address is not routed.
"""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from infra.lab.needs import program
from infra.lab.spec import LabError, LabSpec

BUS = "bus"
_LOCAL_PREF = 100
"""Where the rule for the host's own addresses goes: by default it is the first, and nothing comes before it."""


@dataclass(frozen=True)
class Cuts:
    """Addresses that a host does not hear (`deaf_to`) or does not reach (`mute_to`)."""

    deaf_to: frozenset[str] = frozenset()
    mute_to: frozenset[str] = frozenset()

    def rules(self, device: str) -> set[str]:
        """As `ip rule` says them; `device` has the host's address. What the host itself sends has the incoming interface lo."""
        heard = {f"pref 50 from {address} iif {device} blackhole" for address in self.deaf_to}
        return heard | {f"pref 51 to {address} iif lo blackhole" for address in self.mute_to}


NONE = Cuts()


def links_of(spec: LabSpec, links: Iterable[tuple[str, str]]) -> dict[str, Cuts]:
    """What each host must do for these links, from one to another, to be cut. Raises LabError.

    The receiver drops, as a cable would: the sender is told nothing. Only where the receiver is the machine
    itself, whose own network is not ours to change, does the sender keep it back.
    """
    cut = list(links)
    if spec.network is None:
        if cut:
            raise LabError(
                "cutting links needs a network for each host, so root and a kernel that has bridges"
            )
        return {}
    found = {host.name: (set[str](), set[str]()) for host in spec.hosts}
    address = {**spec.network.addresses, BUS: spec.network.gateway}
    for sender, receiver in cut:
        if receiver == BUS:
            found[sender][1].add(address[BUS])
        else:
            found[receiver][0].add(address[sender])
    return {host: Cuts(frozenset(deaf), frozenset(mute)) for host, (deaf, mute) in found.items()}


def apply(pid: int, device: str, before: Cuts, wanted: Cuts) -> None:
    """Turn one state into the other in the network namespace of a process, whose network device is this. Raises LabError."""
    old, new = before.rules(device), wanted.rules(device)
    lines = []
    if new and not old:
        lines += [f"rule add pref {_LOCAL_PREF} lookup local", "rule del pref 0 lookup local"]
    lines += [f"rule add {rule}" for rule in sorted(new - old)]
    lines += [f"rule del {rule}" for rule in sorted(old - new)]
    if old and not new:
        lines += ["rule add pref 0 lookup local", f"rule del pref {_LOCAL_PREF} lookup local"]
    if not lines:
        return
    argv = [program("nsenter"), f"--net=/proc/{pid}/ns/net", program("ip"), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(lines), text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(f"ip rule: {done.stderr.strip()}")
