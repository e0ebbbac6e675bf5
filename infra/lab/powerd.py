"""The power device of one host: a process outside the host that survives its death.

`python -m infra.lab.powerd ROOT HOST …` puts one for each host into the background and returns when all listen. It answers
one JSON line a request on two unix sockets: `power.sock` is the BMC (fence agents, faults), `control.sock` the lab's
own, which also knows `fault`, `crash`, `thaw`, `reboot`, `cut`, `weather`, `stall`, `restore` and `exit` and always
does the true thing.
"""

import functools
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.lab import hostinit, line, namespaces, procs
from infra.lab.cuts import Cuts
from infra.lab.dog import Dog
from infra.lab.machine import Machine
from infra.lab.midwife import Midwife, leave
from infra.lab.paths import MARKER
from infra.lab.spec import LabError, LabSpec, load
from infra.lab.weather import Weather

FAULTS = ("none", "dead", "hang", "refuse", "lie", "no_effect", "shared_power")


class Device:
    """What the sockets answer with. `feeds` are all devices of its level: alone there, it switches the host; else each
    cuts its own feed, and the host goes off with the last of them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.feeds: list[Device] = [self]
        self.others: dict[str, Device] = {}
        """Of the nameless one: those that have a name."""
        self.cut = ""
        """The boot of the host in which its own feed was cut: whoever switches the host on connects all of them."""
        self.fault = "none"
        self.mended = threading.Event()
        self.mended.set()
        self.claimed = "off"

    def _boot(self) -> str:
        return self.machine.host.boot_id.read_text().strip() if self.machine.power == "on" else ""

    def _is_cut(self) -> bool:
        return bool(self.cut) and self.cut == self._boot()

    def _state(self) -> dict[str, Any]:
        if self.machine.power == "off" or self._is_cut():
            return {"ok": True, "power": "off"}
        return {"ok": True, "power": "on", "boot_id": self._boot()}

    def _off(self) -> bool:
        if len(self.feeds) == 1:
            return self.machine.off()
        self.cut = self._boot()
        return self.machine.off() if all(feed._is_cut() for feed in self.feeds) else True

    def _on(self) -> bool:
        self.cut = ""
        return self.machine.on()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do the true thing. Raises LabError, OSError or TimeoutError when that is impossible."""
        what = request["do"]
        machine = self.machine
        changed = None
        if what == "on":
            changed = self._on()
        elif what == "off":
            changed = self._off()
        elif what == "start_agent":
            machine.start_agent()
        elif what == "kill_agent":
            machine.kill_agent()
        elif what == "kill_vm":
            return {**self._state(), "pid": machine.kill_vm(str(request["uuid"]))}
        elif what == "pids":
            return {**self._state(), "pids": [proc.pid for proc in machine.processes()]}
        elif what != "status":
            raise LabError(f"unknown request {what!r}")
        state = self._state()
        return state if changed is None else {**state, "changed": changed}

    def break_by(self, how: str) -> None:
        """From now on; `none` mends it."""
        self.claimed, self.fault = self.machine.power, how
        if how == "hang":
            self.mended.clear()
        else:
            self.mended.set()

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """As `answer`, with the requests that only the lab may make."""
        what = request["do"]
        if what == "fault":
            how = request["how"]
            if how not in FAULTS:
                raise LabError(f"fault how={how!r}: one of {', '.join(FAULTS)}")
            named = request.get("outlet")
            for device in [self.others[named]] if named else [self, *self.others.values()]:
                device.break_by(how)
            return {**self._state(), "fault": how}
        if what == "crash":
            self.machine.crash(str(request.get("how", "kill")))
        elif what == "thaw":
            self.machine.thaw()
        elif what == "reboot":
            self.machine.reboot()
        elif what == "cut":
            self.machine.cut(Cuts(frozenset(request["deaf_to"]), frozenset(request["mute_to"])))
        elif what == "weather":
            self.machine.change_weather(
                Weather(request["loss_percent"], request["delay_s"], request["jitter_s"])
            )
        elif what in ("stall", "restore"):
            self.machine.stall(str(request["datastore"]), what == "stall")
        elif what == "exit":
            self.machine.off()
        else:
            return {**self.answer(request), "fault": self.fault}
        return self._state()

    def bmc(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """What the BMC says; None closes the connection without a word."""
        if self.fault == "hang":
            self.mended.wait()
        if self.fault == "dead" or (self.fault == "shared_power" and self.machine.power == "off"):
            return None
        if self.fault == "refuse":
            return {"ok": False, "error": "access denied"}
        if self.fault == "lie":
            # Says what was asked of it, does nothing: the most dangerous BMC there is.
            if request["do"] in ("on", "off"):
                self.claimed = request["do"]
            return {"ok": True, "power": self.claimed, "changed": True}
        if self.fault == "no_effect" and request["do"] in ("on", "off"):
            return {**self._state(), "changed": True}
        return self.answer(request)


def _log(**fields: Any) -> None:
    line = {"at": datetime.now(UTC).isoformat(timespec="microseconds"), **fields}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


Handler = Callable[[dict[str, Any]], dict[str, Any] | None]


def _converse(connection: socket.socket, name: str, handle: Handler) -> None:
    """Answer all requests of one connection."""
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            request: dict[str, Any] = {}
            answer: dict[str, Any] | None
            try:
                request = json.loads(line)
                answer = handle(request)
            except (LabError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
                answer = {"ok": False, "error": str(error) or type(error).__name__}
            if request.get("do") not in ("status", "pids") or not (answer or {}).get("ok"):
                _log(socket=name, request=request, answer=answer)
            if answer is None:
                return
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError as error:
                _log(socket=name, request=request, unheard=str(error))
                return
            if name == "control" and request.get("do") == "exit" and answer["ok"]:
                os._exit(0)


def _accept(listener: socket.socket, name: str, handle: Handler) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=(connection, name, handle), daemon=True).start()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    return listener


def _serve(spec: LabSpec, host_name: str) -> None:
    """Listen first, then go to the background: when the command returns, the device answers."""
    host = spec.host(host_name)
    outlets = spec.outlets(host_name)
    sockets = {"control": host.control_socket, "power": host.power_socket}
    sockets |= {f"power-{name}": host.outlet_socket(name) for name, _ in outlets}
    listeners = {name: _listen(path) for name, path in sockets.items()}
    watchdog = _listen(host.watchdog_socket)
    procs.go_background(host.power_log, host.power_pid)
    # A host's first process is forked more than once on its way; its death must be ours to collect.
    namespaces.become_subreaper()
    device = Device(Machine(spec, host_name, Midwife(hostinit.begin)))
    dog = Dog(functools.partial(_reset, device.machine))
    device.machine.on_end = dog.stop
    threading.Thread(target=dog.serve, args=(watchdog,), daemon=True).start()
    device.others = {name: Device(device.machine) for name, _ in outlets}
    for name, level in outlets:
        device.others[name].feeds = [device.others[one] for one, of in outlets if of == level]
    for name, one in {
        "power": device,
        **{f"power-{name}": one for name, one in device.others.items()},
    }.items():
        threading.Thread(target=_accept, args=(listeners[name], name, one.bmc), daemon=True).start()
    if spec.network is not None:
        # the management side's end of the line to this host's libvirt
        line.serve_local(spec.paths.line / f"{host_name}.sock", spec, host_name)
    _accept(listeners["control"], "control", device.control)


def _reset(machine: Machine) -> None:
    """The watchdog was not fed in time: the host's processes end at once, and it boots anew."""
    _log(watchdog="reset", host=machine.host.host)
    try:
        machine.reboot()
    except (LabError, OSError) as error:
        _log(watchdog="reset", error=str(error))


def _preload(spec: LabSpec, names: list[str]) -> None:
    """Import what these hosts' agents will, once for all of them."""
    for name in names:
        config = spec.host(name).agent_config
        if config.exists() and (module := json.loads(config.read_text())["preload"]):
            importlib.import_module(module)


def main() -> None:
    """Fork a power device for each host. Exit status 1 where one does not come to listen; it says why."""
    root, *names = sys.argv[1:]
    spec = load(Path(root))
    os.environ[MARKER] = root
    _preload(spec, names)
    devices = []
    for name in names:
        device = os.fork()
        if device == 0:
            leave(functools.partial(_serve, spec, name))
        devices.append(device)
    sys.exit(1 if any(os.waitpid(device, 0)[1] for device in devices) else 0)


if __name__ == "__main__":
    main()
