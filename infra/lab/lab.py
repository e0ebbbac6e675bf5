"""The lab: hosts with their own libvirtd and QEMU on one machine, to be built, broken and taken away again."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import libvirt

from infra.lab import build, procs
from infra.lab.build import Progress
from infra.lab.cuts import links_of
from infra.lab.guest import UP_LINE, Guest, ensure_bare_guest, ensure_guest
from infra.lab.guests import GuestHandle
from infra.lab.handle import StorageHandle
from infra.lab.needs import program
from infra.lab.observations import Observations, Summary, read_observations
from infra.lab.paths import default_cache, default_root
from infra.lab.spec import LabError, LabHost, LabStore, check_hosts, check_root, check_stores, load
from infra.lab.vm import LabVm, VmGround, domain_xml, vm_uuid
from infra.lab.weather import Weather

__all__ = ["Lab", "LabError", "LabHost", "LabStore", "LabVm"]

# A session URI would otherwise start a libvirtd of the caller's own when the host is off; and libvirt prints each
# error to standard error besides raising it.
os.environ["LIBVIRT_AUTOSTART"] = "0"
libvirt.registerErrorHandler(lambda *_: None, None)

PROBE_PORT = 7946
FENCE_AGENT = Path(__file__).parent / "fence_lab"


class Lab(StorageHandle, GuestHandle):
    """A handle on a lab. Any number of them, in any process, may be open; all methods may be called from threads."""

    # -- life -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        hosts: list[LabHost],
        root: Path | None = None,
        *,
        agent_argv: Mapping[str, list[str]] | None = None,
        agent_env: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        network: bool | None = None,
        kvm: bool | None = False,
        hooks: bool = False,
        datastores: Iterable[str | LabStore] = (),
        lock_manager: str = "",
    ) -> "Lab":
        """Lay out a lab; nothing runs yet. The directory must be new, empty, or a lab's that is down.

        `agent_argv` and `agent_env`: each host's agent, see `set_agent`. `network`: hosts get a network of their
        own (root only; None: if this machine can), see `bus_address`. `kvm`: False TCG, True KVM, None whatever boots.
        `hooks`: `fail_start` works (root only). `datastores`: what `stall_storage` can stall, by name or with the
        hosts that have it (root only). `lock_manager`: `lockd` gives each host a virtlockd, `sanlock` a sanlock; disks are then not shareable.
        Raises LabError.
        """
        check_hosts(hosts)
        absolute = check_root(root or default_root())
        named = check_stores(datastores, hosts)
        spec = build.lay_out(absolute, hosts, cache_dir or default_cache(), network, named, lock_manager)
        lab = cls(replace(spec, hooks=hooks, created=datetime.now(UTC).isoformat(timespec="seconds")))
        lab.spec = build.settle(lab.spec, kvm)
        lab.spec.save()
        for host in hosts:
            if agent_argv is not None and host.name in agent_argv:
                lab.set_agent(host.name, agent_argv[host.name], agent_env or {})
        return lab

    @classmethod
    def open(cls, root: Path | None = None) -> "Lab":
        """The lab that is at `root`, whoever made it. Raises LabError when there is none."""
        return cls(load(root or default_root()))

    def up(self, progress: Progress = lambda _: None, *, observe: bool = True) -> None:
        """Power all hosts on, and start the observer. Whatever goes wrong (Ctrl-C too), everything is taken down.

        `progress` gets a line of text per step, from several threads.
        """
        try:
            build.raise_hosts(self.spec, progress, self.power_on)
            if observe:
                self.start_observer()
        except BaseException as error:
            # Logs tell what went wrong, but nobody asks why after a Ctrl-C.
            self.down(keep_logs=not isinstance(error, KeyboardInterrupt))
            raise
        progress("lab is up")

    def down(self, *, keep_logs: bool = False) -> None:
        """Take everything away: processes, network, directory. Does nothing the second time.

        `keep_logs` leaves logs, consoles and observations. Raises TimeoutError or LabError when something stays.
        """
        build.take_down(self.spec, keep_logs)

    # -- hosts ------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> Path:
        """The directory that all hosts share: disks, and whatever else is to be shared storage."""
        return self.paths.shared

    @property
    def bus_address(self) -> str:
        """The address on which a server in the machine's root network must listen for the hosts to reach it."""
        return self.spec.network.gateway if self.spec.network else "127.0.0.1"

    def probe_address(self, host: str) -> str:
        """host:port for the host's agent to be asked directly: on its own address, or, without a network of its own,
        a port of the machine's that follows from the lab's directory."""
        index = self.hosts.index(host)
        if self.spec.network is not None:
            return f"{self.spec.network.addresses[host]}:{PROBE_PORT}"
        spread = int.from_bytes(hashlib.sha256(str(self.root).encode()).digest()[:2])
        return f"127.0.0.1:{20000 + (spread * 16 + index) % 12000}"

    def line_uri(self, host: str) -> str:
        """The libvirt URI for who speaks to the host over the network: the same text means each speaker's own line,
        and a cut link cuts it. Without a network of its own it is `uri`."""
        if self.spec.network is None:
            return self.uri(host)
        return f"qemu+unix:///system?socket={self.paths.line / self.host(host).host}.sock"

    def power_socket(self, host: str) -> Path:
        """What the fence agent's parameter `socket` wants."""
        return self.host(host).power_socket

    def power_on(self, host: str) -> None:
        """Power on; returns when libvirtd listens and the agent was started. Nothing happens when it is on."""
        self._control(host, "on")

    def power_off(self, host: str) -> None:
        """Cut the power; returns when no process of the host is left."""
        self._control(host, "off")

    def boot_id(self, host: str) -> str:
        """The id of the host's present or last boot."""
        return self.host(host).boot_id.read_text().strip()

    def crash_host(self, host: str, how: str = "kill") -> None:
        """The host stops working, its power stays on: `kill` ends its processes, `stop` freezes them, `hang` all
        but its guests (see thaw)."""
        self._control(host, "crash", how=how)

    def thaw_host(self, host: str) -> None:
        """Let a frozen host go on."""
        self._control(host, "thaw")

    def reboot(self, host: str) -> None:
        """The host boots anew at once, with its power on all the while; returns as `power_on` does."""
        self._control(host, "reboot")

    def cut(self, links: Iterable[tuple[str, str]]) -> None:
        """From now on exactly these links are cut, each from one to another: hosts by name, BUS for the machine
        itself, with the bus and all management. None heals. Raises LabError without a network of the lab's own."""
        for host, cuts in links_of(self.spec, links).items():
            self._control(host, "cut", deaf_to=sorted(cuts.deaf_to), mute_to=sorted(cuts.mute_to))

    def weather(
        self, host: str | None, loss_percent: float = 0.0, delay_s: float = 0.0, jitter_s: float = 0.0
    ) -> None:
        """The link of a host (None: of every host) loses and delays frames from now on, in each direction by itself,
        over every boot; nothing given: no more. Raises LabError without a network of the lab's own."""
        wanted = Weather(loss_percent, delay_s, jitter_s)
        build.prepare_weather(self.spec)
        for name in self.hosts if host is None else [host]:
            self._control(name, "weather", **asdict(wanted))

    def fault(self, host: str, how: str, outlet: str | None = None) -> None:
        """Break the host's power devices (or the named one), not the host: dead, hang, refuse, lie (says done and
        off), no_effect (says done), shared_power (dead while the host is off); none mends them."""
        self._control(host, "fault", how=how, outlet=outlet)

    def set_agent(
        self,
        host: str,
        argv: list[str],
        env: Mapping[str, str] | None = None,
        preload: str = "",
        gate: list[str] | None = None,
    ) -> None:
        """What runs as the host's agent from its next start on. Runs in the host's namespaces, output to agent.log.
        `preload`: a module that imports what `python -m …` in `argv` will: where it is said before the lab is up, the
        agents that start with it are forks of what has imported it (see midwife.py). `gate`: what a host with VMs to start
        by itself runs before its libvirtd, at each boot."""
        path = self.host(host).agent_config
        build.write_json(path, {"argv": argv, "env": dict(env or {}), "preload": preload, "gate": gate})

    def start_agent(self, host: str) -> None:
        """Start the agent unless it runs."""
        self._control(host, "start_agent")

    def kill_agent(self, host: str) -> None:
        """SIGKILL the agent with its process group; the host and its VMs live on."""
        self._control(host, "kill_agent")

    def hang_libvirt(self, host: str) -> None:
        """The host's libvirtd stands still; all else on it goes on. Raises LabError where it has none."""
        if not self._signal_libvirt(host, signal.SIGSTOP):
            raise LabError(f"no libvirtd runs on {host}")

    def resume_libvirt(self, host: str) -> None:
        """Let it go on. Nothing where it is another by now, or gone."""
        self._signal_libvirt(host, signal.SIGCONT)

    def _signal_libvirt(self, host: str, number: signal.Signals) -> bool:
        found = [
            proc for pid in self.pids(host) if procs.name(pid) == "libvirtd" and (proc := procs.find(pid))
        ]
        return sum(procs.send(proc, number) for proc in found) > 0

    def pids(self, host: str) -> list[int]:
        """All processes of a host, as numbered outside; empty when it is off."""
        return [int(pid) for pid in self._control(host, "pids")["pids"]]

    def all_pids(self) -> list[int]:
        """Every process of the lab: hosts, power devices, observer."""
        inside = [
            pid for host in self.hosts if self.host(host).control_socket.exists() for pid in self.pids(host)
        ]
        return sorted({*inside, *(proc.pid for proc in procs.of_lab(self.root))})

    # -- VMs --------------------------------------------------------------------------------------------------

    @property
    def guest(self) -> Guest:
        return ensure_guest(self.spec.cache_dir)

    def xml(self, vm: LabVm) -> str:
        """The VM's definition in this lab."""
        emulator = program("qemu-system-x86_64")
        cache = self.spec.cache_dir
        guest = (
            ensure_bare_guest(cache)
            if vm.bare
            else ensure_guest(cache, agent=vm.guest_agent, net=bool(vm.address))
        )
        ground = VmGround(guest, emulator, self.spec.domain_type, self.spec.disk_cache)
        disk = self.store_path(vm.datastore) / f"{vm.name}.raw" if vm.datastore else self.paths.disk(vm.name)
        shareable = vm.shareable if vm.shareable is not None else not self.spec.lock_manager
        network = self.spec.network
        mac = network.mac(vm.address.partition("/")[0]) if network is not None and vm.address else ""
        return domain_xml(
            vm, ground, vm.disk or disk, self.console_log(vm.name), shareable=shareable, mac=mac
        )

    def guest_address(self, number: int) -> str:
        """An address for a guest, with its prefix, as LabVm wants it. Raises LabError without a network of the lab's own."""
        if self.spec.network is None:
            raise LabError(
                "guests have addresses in a network of the lab's own: as root, on a machine that has bridges"
            )
        return f"{self.spec.network.guest(number)}/{self.spec.network.prefix}"

    def define_vm(self, vm: LabVm, host: str, *, start: bool = True, autostart: bool = False) -> None:
        """Make the VM's disk unless it exists, define the VM on a host, and start it. Raises libvirt.libvirtError."""
        folder = self.backing(vm.datastore) if vm.datastore else self.shared
        disk = vm.disk or folder / f"{vm.name}.raw"
        if not disk.exists():
            with open(disk, "wb") as file:
                file.truncate(1 << 20)
        with self.connect(host) as connection:
            domain = connection.defineXML(self.xml(vm))
            domain.setAutostart(autostart)
            if start:
                domain.create()

    def vm_state(self, host: str, name: str) -> tuple[int, int]:
        """libvirt's (state, reason) of a VM on a host. Raises libvirt.libvirtError."""
        with self.connect(host) as connection:
            state, reason = connection.lookupByName(name).state()
            return int(state), int(reason)

    def crash_vm(self, name: str, host: str | None = None) -> None:
        """SIGKILL the VM's QEMU. Raises LabError when it is not active on exactly one host (or on `host`)."""
        where = host or self._only_host_of(name)
        with self.connect(where) as connection:
            vm_uuid_there = connection.lookupByName(name).UUIDString()
        self._control(where, "kill_vm", uuid=vm_uuid_there)

    def destroy_vm(self, name: str) -> str:
        """As `virsh destroy`: somebody means it to be off. The host where it was. Raises LabError, libvirt.libvirtError."""
        host = self._only_host_of(name)
        with self.connect(host) as connection:
            connection.lookupByName(name).destroy()
        return host

    def start_vm(self, name: str, host: str) -> None:
        """As `virsh start` by a person who has looked: nothing where it is active anywhere. Raises LabError,
        libvirt.libvirtError."""
        if not self.placement().get(name):
            with self.connect(host) as connection:
                connection.lookupByName(name).create()

    def save_vm(self, name: str) -> None:
        """As `virsh managedsave`: its memory stays on the host. Raises LabError, libvirt.libvirtError."""
        with self.connect(self._only_host_of(name)) as connection:
            connection.lookupByName(name).managedSave(0)

    def hang_guest(self, name: str) -> None:
        """The guest stands still, its QEMU stays. Raises LabError, libvirt.libvirtError."""
        with self.connect(self._only_host_of(name)) as connection:
            connection.lookupByName(name).suspend()

    def set_metadata(self, name: str, uri: str, key: str, text: str) -> None:
        """As `virsh metadata`, now and for later starts. Raises LabError, libvirt.libvirtError."""
        kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        with self.connect(self._only_host_of(name)) as connection:
            domain = connection.lookupByName(name)
            domain.setMetadata(kind, text, key, uri, flags | libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def fail_start(self, name: str, host: str, count: int) -> None:
        """The next `count` starts of the VM on the host are refused by its libvirt (root only)."""
        folder = self.host(host).refused
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"{count}\n")

    def shutdown_guest(self, name: str, timeout_s: float = 20.0) -> None:
        """Press the VM's power button and wait until it is shut off. Raises LabError, TimeoutError."""
        host = self._only_host_of(name)
        with self.connect(host) as connection:
            domain = connection.lookupByName(name)
            domain.shutdown()
            procs.wait_for(lambda: not domain.isActive(), timeout_s, f"shutdown of {name}", 0.02)

    def console_log(self, vm: str) -> Path:
        return self.paths.console(vm)

    def guest_up_count(self, vm: str) -> int:
        """How many boots of the VM came up so far, on whatever host."""
        path = self.console_log(vm)
        return path.read_bytes().count(UP_LINE.encode()) if path.exists() else 0

    def guest_up_times(self, vm: str) -> list[datetime]:
        """When the VM's boots came up, as the observer saw it (to 50 ms)."""
        return [up.at for up in self.observations().guests if up.name == vm]

    def wait_guest_up(self, vm: str, count: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until `count` boots of the VM came up in all. Raises TimeoutError."""
        procs.wait_for(lambda: self.guest_up_count(vm) >= count, timeout_s, f"boot {count} of {vm}", 0.02)

    @staticmethod
    def vm_uuid(name: str) -> str:
        """The uuid of a VM for which none was given."""
        return vm_uuid(name)

    # -- observer ---------------------------------------------------------------------------------------------

    def start_observer(self) -> None:
        """Start the observer, unless it runs."""
        build.start_observer(self.spec)

    def stop_observer(self) -> Summary:
        """End the observer and return its summary. Raises LabError when it does not run."""
        return build.stop_observer(self.spec)

    def observations(self) -> Observations:
        """All that the observer wrote so far."""
        return read_observations(self.paths.observations)

    # -- fencing ----------------------------------------------------------------------------------------------

    def fence(self, host: str, action: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """Run the lab's fence agent as a fencer would: (exit status, output)."""
        text = f"action={action}\nsocket={self.power_socket(host)}\n"
        done = subprocess.run(
            [str(FENCE_AGENT)], input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return done.returncode, done.stdout + done.stderr
