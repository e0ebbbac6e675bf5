"""What people should know of the steps in the lab: why it cannot do some, and where the worlds differ in others."""

from __future__ import annotations

from infra.lab.powerd import FAULTS

BREAKS = tuple(how for how in FAULTS if how != "none")
"""How a fence device can be broken here."""
WHY_NOT = {
    "guest_io_error": "no file system under the lab's disks can be made to return an error: its datastores only stall",
    "start_copy": "the lab has no step for it: in tests/lab/test_returning.py libvirtd starts a second copy by itself",
    "migrate_vm": "the lab has no step for it: tests/lab/test_arrivals.py migrates by hand",
    "restore_state": "its bus is one supervised process; tests/integration puts a real server's data back",
    "confirm_absent": "its state is never put back",
    "step_clock": "the hosts of one machine share its clock",
}
"""Why the lab cannot do a step that a scenario may have."""
NOTES = {
    "add_host": "the pool file is written anew and the plane started anew",
    "confirm_failed": "as `rekindle confirm-failed`",
    "enter_maintenance": "as `rekindle maintenance enter`; `how: drain` what runs there moves away",
    "fence_test": "as `rekindle fence-test`, while the play goes on; `how: force` also where VMs run there, `how: drain` they move away first",
    "exit_maintenance": "as `rekindle maintenance exit`",
    "protect": "as `virsh metadata --set`",
    "unprotect": "as `virsh metadata --set`",
    "readmit": "as `rekindle readmit`",
    "release_storm": "as `rekindle storm release`",
    "remove_host": "as `rekindle remove-host`",
    "break_fencing": f"in the lab by {', '.join(BREAKS)}; `method` may name one of several devices",
    "crash": "the lab ends all processes of the host; its power reads on",
    "delay": "of the network, root only, on one `host` in the lab only; in the lab each frame is late by all of it, in the simulator by a share",
    "destroy_vm": "as `virsh destroy`",
    "start_vm": "as `virsh start` by a person who has looked whether it runs; without a `host` where it was destroyed",
    "hang_libvirt": "libvirtd stands still, all else on the host goes on",
    "fail_start": "a libvirt hook refuses the next starts; root only",
    "guest_panic": "of a VM with `agent: true`; its QEMU is kept, as with `on_crash` preserve",
    "guest_silent": "of a VM with `agent: true`; its agent is stopped and its guest lives on. In the simulator one without an agent hangs, too",
    "guest_watchdog": "of a VM with `agent: true`; the guest hangs and its watchdog (i6300esb, action none) fires, in the lab 8 s after it was fed last",
    "hang": "all processes stand still but the guests; its power reads on",
    "hang_guest": "as `virsh suspend`: libvirt says paused, the VM counts as running",
    "kill_agent": "`count` (kill at the so-manieth call) in the simulator only",
    "kill_bus": "the simulator's bus has three nodes; the lab's has one, which its supervisor starts again",
    "kill_service": "`count` (kill at the so-manieth call) in the simulator only",
    "loss": "of the network, root only, on one `host` in the lab only; in the lab frames are lost, so TCP repeats them and is late",
    "partition": "root only, whole or one_way; libvirt's lines are cut too, fence devices stand apart. From `storage` in the simulator only: there is `stall_storage`",
    "power_on": "a boot takes 1 s in the lab, 3 to 9 s in the simulator",
    "reboot": "a boot takes 1 s in the lab, 3 to 9 s in the simulator; `how: fast` in the simulator only",
    "restore_storage": "root only",
    "save_vm": "as `virsh managedsave`; the simulator's hosts resume it at boot as libvirt-guests does, the lab's with autostart only",
    "stall_storage": "of the `datastores` that the file names, root only; a restored one is as before. What hangs "
    "can be killed there (`how: killable`, or none); in the simulator only with it",
    "start_bus": "nothing in the lab: the supervisor did it",
}
"""What one should know of a step where the worlds differ, or how the lab does it."""
