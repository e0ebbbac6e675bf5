"""What all labs of this machine share, made before several of them begin at once: `python -m infra.lab.prepare`.

Guests, the answer whether KVM boots one (up to 8 s), and what libvirt finds out about QEMU. Where each of several made them for
itself, beside each other, on a machine that had none, a lab's observer had its turn 8.7 times a second and was not to be believed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from infra.lab.guest import ensure_bare_guest, ensure_guest
from infra.lab.lab import Lab, LabHost
from infra.lab.paths import default_cache


def main() -> None:
    cache = default_cache()
    ensure_bare_guest(cache)
    for agent in (False, True):
        for net in (False, True):
            ensure_guest(cache, agent=agent, net=net)
    with tempfile.TemporaryDirectory(prefix="rkl-") as folder:
        lab = Lab.create([LabHost("h1")], Path(folder) / "lab", kvm=None)
        try:
            lab.up()
        finally:
            lab.down()


if __name__ == "__main__":
    main()
