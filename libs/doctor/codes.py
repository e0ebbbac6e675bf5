"""Every reason that `rekindle doctor` can give, as a table: how bad, of what, what it means, what to do. Its order is
that in which reasons of one severity are told.

An **error** keeps a protected VM from being restarted, or would let one run twice. The codes are part of the
contract: scripts ask for them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Worst first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 is the worst."""
        return list(Severity).index(self)


class About(StrEnum):
    """What a finding is about."""

    POOL = "pool"
    HOST = "host"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Code:
    """One reason: `means` in general, while a finding adds what was seen; `do` is what to do about it."""

    code: str
    severity: Severity
    about: About
    means: str
    do: str


def _rows(about: About, *rows: tuple[str, Severity, str, str]) -> tuple[Code, ...]:
    return tuple(Code(code, severity, about, means, do) for code, severity, means, do in rows)


E, W, I = Severity.ERROR, Severity.WARNING, Severity.INFO

# fmt: off
TABLE: tuple[Code, ...] = (
    *_rows(
        About.VM,
        ("runs-twice", E, "two hosts run a VM of this UUID at this moment: its disks are being destroyed",
         "stop one of them at once; if they are different machines, give one a UUID of its own"),
        ("no-other-host", E, "no other host of the pool could be started on now: there is none, or none answers, or all are closed",
         "see what is said of the hosts; add one"),
        ("disk-local", E, "no other host has one of its disks",
         "move the disk to a shared datastore. If it is shared already, name the place under `datastores`, or define it as a storage pool of the same source on each host (and refresh it there: `virsh pool-refresh`)"),
        ("disk-unproven", W, "nothing shows that another host has the same disk there",
         "name the shared place under `datastores`, or define it as a storage pool (netfs, iscsi, rbd ...) on each host"),
        ("iso-local", E, "a medium in its drive is on no other host: it would not start there",
         "eject it (`virsh change-media VM TARGET --eject --live --config`), or move it to a shared datastore"),
        ("iso-unproven", W, "a medium in its drive may be on no other host: it would not start there",
         "eject it (`virsh change-media VM TARGET --eject --live --config`), unless it is on each host"),
        ("host-file-local", E, "a file or directory that it needs at its start (kernel, initrd, firmware, shared directory, NVDIMM) is on no other host",
         "move it to a shared datastore, or copy it to the same path of each host"),
        ("host-file-unproven", W, "a file or directory that it needs at its start may be on no other host",
         "see that it is on each host, at the same path"),
        ("nvram-local", W, "its firmware's variables lie on this host alone: elsewhere it starts with empty ones, without its boot entries and keys",
         "put the file on a shared datastore (`<nvram>` in its XML), or see that its boot loader lies at the fallback path"),
        ("tpm-local", W, "the state of its TPM lies on this host alone: elsewhere it starts with an empty TPM, and what was sealed with it stays closed",
         "share libvirt's directory of TPM states, or have the guest's recovery keys at hand"),
        ("host-device", E, "it holds a device of this very host: no other has it",
         "take the device out of its definition, or protect it with `protection=\"none\"`"),
        ("vhost-user", W, "a device of it is served by another process of this host over a socket: whether another host has that cannot be told",
         "see that each host has the same socket served"),
        ("machine-missing", E, "no other host can run its machine type, emulator or kind of virtualisation",
         "install the same QEMU on each host, or set an older machine type"),
        ("machine-unproven", I, "no other host could tell whether it can run its machine type and emulator",
         "nothing, where that driver cannot tell"),
        ("cpu-missing", E, "no other host's processor can give what its CPU definition requires",
         "set a CPU model that each host has (`virsh hypervisor-cpu-baseline`)"),
        ("cpu-unproven", I, "no other host could tell whether its processor gives what its CPU definition requires",
         "nothing, where the guest's processor is emulated"),
        ("cpu-differs", W, "its CPU is the host's own (`host-passthrough`, `maximum` or `host-model`), and other hosts have another: it restarts with a different one",
         "set a CPU model that each host has, unless the guest bears the change"),
        ("network-missing", E, "no other host has a network, bridge or device that one of its interfaces is on",
         "make it on each host under the same name, and let it start by itself"),
        ("network-unproven", W, "no other host could tell whether it has a network, bridge or device that one of its interfaces is on",
         "look that each host has it under the same name"),
        ("secret-missing", E, "no other host's libvirt has a secret that one of its disks needs (a key of Ceph, iSCSI or LUKS)",
         "define it on each host with the same UUID and usage, and set its value (`virsh secret-define`, `secret-set-value`)"),
        ("secret-unproven", W, "no other host's libvirt could tell whether it has a secret that one of its disks needs",
         "look with `virsh secret-list` on each host"),
        ("name-taken", E, "every other host has another VM of this name: libvirt would refuse this one",
         "rename one of them"),
        ("fits-nowhere", E, "no other host is big enough for it, even if it were empty",
         "make it smaller, or add a bigger host"),
        ("no-host-suits", E, "each other host lacks something that it needs, one this, another that",
         "see what each lacks"),
        ("some-hosts-only", I, "some of the other hosts could not take it",
         "see what they lack: with fewer hosts to go to, it may find no room"),
        ("definition-missing", E, "no copy of its definition is on the bus: nothing could be started from it",
         "see the log of the agent of its host"),
        ("disk-unlocked", W, "the lock manager of its host does not guard its disks: it could be started twice all the same",
         "take `<shareable/>` out of its disks, unless it is a cluster that shares them; set `auto_disk_leases = 1` beside qemu.conf, or name a `<lease>` in its definition"),
        ("policy-unreadable", W, "its policy cannot be read, so the pool's defaults hold",
         "correct it (`virsh metadata VM urn:rekindle:policy:1 --key rekindle ...`)"),
        ("autostart", W, "libvirt starts it by itself when this host boots, also when it runs elsewhere by then, unless the gate before libvirt (`rekindle-gate.service`) holds it back: without that only an agent stops it, a moment later",
         "install the gate on this host; or `virsh autostart --disable VM`: Rekindle starts it"),
        ("managed-save", W, "an image of its memory is kept on this host: started there by hand, it goes on from old memory over disks that have changed",
         "start it here if that is wanted, else `virsh managedsave-remove VM`"),
        ("transient", W, "it is not persistent: once it stops, libvirt knows no more of it, nor why it stopped",
         "`virsh define` it"),
    ),
    *_rows(
        About.HOST,
        ("host-unreachable", E, "its libvirt does not answer: what runs there was not seen, and nothing could be started there now",
         "mend the way there (URI, keys or certificates, libvirtd); if the host is gone for good, take it out of the pool file"),
        ("host-cloned", E, "two entries of the pool file lead to hosts with one libvirt host UUID: one machine under two names, or a cloned one",
         "give each entry a URI of its own; on clones set `host_uuid` in libvirtd.conf (or virtqemud.conf) and restart it"),
        ("fence-none", E, "it has no fence device: nothing proves it harmless, and its VMs wait for `rekindle confirm-failed`",
         "name a device under `hosts.N.fencing`"),
        ("fence-unusable", E, "a device of it cannot be asked at all, as the pool file has it: no service would start",
         "install the fence agent, mend the parameter or the secret that is named"),
        ("fence-unreadable", E, "no level of its fence devices tells its power: no proof can be had that way",
         "mend the device, its address or its credentials until `rekindle check` reads it"),
        ("fence-contradicts", E, "its devices read off while its libvirt answers: they are another machine's, or lie, and would prove a living host dead",
         "look which machine the device really switches; correct the address, plug or system"),
        ("fence-same-device", E, "another host has the very same device with the same parameters: fencing one switches the other",
         "give each host its own address or plug"),
        ("fence-watchdog-only", W, "it has a watchdog and no fence device: after its failure its VMs wait until its time-out has passed, and where no majority of its peers answers, for a person",
         "name a device under `hosts.N.fencing`"),
        ("watchdog-unarmed", W, "it has a watchdog by the pool file and promises nothing by it: nobody counts on it",
         "see `host.watchdog_unarmed` in `rekindle events` and the log of its agent"),
        ("fence-level-broken", W, "one level of its fence devices does not tell its power; another does",
         "mend the device while the other still works"),
        ("fence-bmc-only", W, "its only fence devices are management controllers, which lose their power together with the host",
         "add a level that does not: a switched power strip; give the host a `watchdog`; or be ready to say `rekindle confirm-failed`"),
        ("fence-one-level", I, "it has one level of fence devices: where that fails, its VMs wait for a person",
         "add a second `level` by another way, or give the host a `watchdog`"),
        ("fence-unverified", W, "a device of it is asked without knowing who answers, or in the clear: whoever is on the way reads its password, and a forged *off* would pass for a proof",
         "verify its certificate or host key, use IPMI 2.0 with cipher suite 3 or 17, SNMP 3 with authPriv; where the device can do no better, put it on a network of its own"),
        ("libvirt-unverified", W, "its libvirt is reached in the clear, or without knowing who answers (`insecure: true`): whoever is on the network may command it, or play it and be believed",
         "use qemu+ssh:// or qemu+tls:// with verified peers, without `no_verify` and `known_hosts_verify=ignore`, and take `insecure` out; docs/DEPLOYING.md says how"),
        ("lock-manager-none", W, "no lock manager guards the disks there: should a fence device lie, or a start come late, nothing else keeps a VM from being started twice",
         "set `lock_manager = \"lockd\"` in its qemu.conf, `file_lockspace_dir` in qemu-lockd.conf to a directory that all hosts share, let virtlockd run, and restart libvirtd (VMs that run are locked from their next start on)"),
        ("arrivals-unasked", W, "its libvirt takes in whatever is migrated to it without asking its agent: if it is cut off then, and the host that the VM comes from fails, nobody can know where the VM runs, and it may be started twice",
         "run `infra/systemd/install.sh` there again (without `--no-arrivals`), which puts the hook in place; libvirt reads which hooks there are when it starts, and on a reload"),
        ("clock-off", W, "its wall clock and this machine's differ by more than a second. Nothing is decided by one, but logs are compared by them, and certificates checked",
         "run chrony or another NTP client there, and here"),
        ("agent-none", I, "no agent of its own: its boots cannot be told exactly, there is no gate at its boot, and verdicts take longer",
         "run `rekindle service heartbeat` there and set `agent: true`"),
        ("agent-not-heard", W, "its agent is not heard on the bus: no VM is started there, and its VMs are watched less well",
         "start the agent on the host; see its log"),
        ("host-not-healthy", W, "the detector does not hold it healthy",
         "see `rekindle events`; wait until its incident is over"),
        ("host-closed", W, "it takes no new VMs: maintenance, quarantine or a drain",
         "`rekindle maintenance exit` or `rekindle readmit` when it is well"),
        ("libvirt-old", W, "its libvirt is older than any that Rekindle is tested with",
         "bring the host up to date"),
        ("not-asked", I, "its libvirt could not be asked something; what hangs on that is unknown",
         "nothing, where that driver cannot tell; else see libvirt's log there"),
    ),
    *_rows(
        About.POOL,
        ("not-n-plus-one", W, "after the loss of one host not all of its protected VMs would find room",
         "add memory or a host, or protect fewer VMs"),
        ("lock-managers-differ", W, "hosts do not guard the disks in the same way and place: a lock that is taken on one is not seen on another",
         "set the same `lock_manager` and the same directory of locks on each host"),
        ("locks-local", W, "the directory of a lock manager's locks is not one that hosts share: a lock that is taken on one is not seen on another",
         "set `file_lockspace_dir` in qemu-lockd.conf, or `disk_lease_dir` in qemu-sanlock.conf (by default `/var/lib/libvirt/sanlock`), to a directory on shared storage, name that under `datastores`, and restart libvirtd"),
        ("lock-manager-unknown", I, "cannot be told: libvirt does not say whether a lock manager guards the disks, and no agent has; the last line of defence against a double start is not proven",
         "run an agent there, which reads it (`qemu_conf` of the host); or see `lock_manager` in qemu.conf of each host: `lockd` (virtlockd) or `sanlock`"),
        ("versions-differ", I, "hosts have different versions of libvirt or QEMU: a VM may not start on an older one",
         "bring them to the same"),
        ("clock-unknown", I, "cannot be told: libvirt has no question for a host's clock, and no agent was asked. Nothing is decided by one, but logs are compared by them, and certificates checked",
         "run chrony or another NTP client on each host"),
        ("bus-in-the-clear", W, "the bus is reached by other machines without TLS: whoever is on the network hears it, and can change what is said on it",
         "have the server ask for TLS (`rekindle bus config --certificate`; embedded: `bus.tls`, which is the default), and give each service and agent `bus.ca_file`"),
        ("certificate-ended", E, "a certificate has ended: who checks it is refused, and a service or an agent that loses its connection does not come back",
         "`rekindle pki renew`, or put another in its place, and have the server read it: nobody need start again (docs/DEPLOYING.md)"),
        ("certificate-ends-soon", W, "a certificate ends within 30 days",
         "`rekindle pki renew`, or put another in its place, and have the server read it: nobody need start again (docs/DEPLOYING.md)"),
        ("certificate-unread", I, "a certificate that the settings name could not be read here, so that nothing tells when it ends",
         "run this command where it lies, or look at it there with `rekindle pki show --dir`"),
        ("plane-not-reached", W, "the bus was not reached, so what only it knows was not looked at; while no plane runs, nothing is restarted",
         "`rekindle up`; run this command again where it runs, with the same pool file"),
        ("role-vacant", W, "nobody holds a role of the management plane: no failover would be carried through now",
         "see `rekindle status` and the log of the service"),
    ),
)
# fmt: on
CODES = {one.code: one for one in TABLE}
ORDER = {one.code: (one.severity.rank, index) for index, one in enumerate(TABLE)}


def as_table() -> str:
    """For docs/DOCTOR.md: Markdown, by what a code is about and worst first."""
    parts = []
    for about, title in ((About.VM, "VM"), (About.HOST, "Host"), (About.POOL, "Pool")):
        rows = [one for one in TABLE if one.about is about]
        parts += [f"| {title}: code | severity | it means | do |", "|---|---|---|---|"]
        parts += [
            f"| `{one.code}` | {one.severity} | {one.means} | {one.do} |"
            for one in sorted(rows, key=lambda one: one.severity.rank)
        ]
        parts.append("")
    return "\n".join(parts).rstrip()
