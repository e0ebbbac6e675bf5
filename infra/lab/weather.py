"""Loss and delay on hosts' links (root only), both directions: by netem where the kernel has it, else by our own wire.

With netem each end of a host's cable gets a queueing discipline, which goes with the cable; without, a process relays
the host's frames (wire.py). Either way the host's power device puts it on again at each boot. Standard library only.
"""

import functools
import os
import subprocess
from dataclasses import asdict, dataclass

from infra.lab import network
from infra.lab.needs import program
from infra.lab.powerclient import ask
from infra.lab.spec import LabError, LabSpec

TUN = "/dev/net/tun"
LONGEST_S = 60.0


@dataclass(frozen=True)
class Weather:
    """What happens to each frame, in each direction by itself: lost with this chance, else late by `delay_s`, give or
    take up to `jitter_s` (evenly, so that a later frame may arrive first). Raises LabError for what cannot be."""

    loss_percent: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.loss_percent <= 100:
            raise LabError(f"loss_percent {self.loss_percent:g}: from 0 to 100")
        if not 0 <= self.delay_s <= LONGEST_S:
            raise LabError(f"delay_s {self.delay_s:g}: from 0 to {LONGEST_S:g}")
        if not 0 <= self.jitter_s <= self.delay_s:
            raise LabError(f"jitter_s {self.jitter_s:g}: from 0 to delay_s, which is {self.delay_s:g}")


FAIR = Weather()


def netem(weather: Weather) -> list[str]:
    """How tc names this weather."""
    words = ["netem", "limit", "10000"]
    if weather.delay_s:
        words += ["delay", f"{weather.delay_s * 1e6:.0f}us"]
        words += [f"{weather.jitter_s * 1e6:.0f}us"] if weather.jitter_s else []
    if weather.loss_percent:
        words += ["loss", f"{weather.loss_percent:.6f}%"]
    return words


def _tc(where: list[str], *words: str) -> None:
    done = subprocess.run([*where, program("tc"), *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"tc {' '.join(words)}: {done.stderr.strip()}")


@functools.cache
def has_netem() -> bool:
    """Whether this kernel has netem: tried on a bridge that is made for it and removed."""
    with network.trial_bridge() as name:
        try:
            _tc([], "qdisc", "add", "dev", name, "root", *netem(Weather(1.0, 0.001)))
        except LabError:
            return False
    return True


def why_not() -> str | None:
    """What this machine lacks for weather, None when nothing."""
    if os.getuid() != 0 or not network.works():
        return "needs root, and a machine on which bridges can be made"
    if not os.access(TUN, os.R_OK | os.W_OK) and not has_netem():
        return f"needs a kernel with netem, or {TUN}"
    return None


def apply(spec: LabSpec, host: str, pid: int | None, before: Weather, weather: Weather) -> None:
    """Turn one weather into the other on a host's cable; `pid`: its first process, None while it is off.

    Raises LabError or TimeoutError.
    """
    assert spec.network is not None
    if before == weather == FAIR:
        return
    if not has_netem():
        request = {"do": "unset"} if weather == FAIR else {"do": "set", **asdict(weather)}
        ask(spec.paths.wire_socket, {**request, "host": host})
    elif pid is not None:
        inside = [program("nsenter"), f"--net=/proc/{pid}/ns/net"]
        for where, device in (([], spec.network.port(host)), (inside, "eth0")):
            if weather != FAIR:
                _tc(where, "qdisc", "replace", "dev", device, "root", *netem(weather))
            else:
                _tc(where, "qdisc", "del", "dev", device, "root")
