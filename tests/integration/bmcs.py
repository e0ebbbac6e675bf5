"""BMC emulators, each before a machine that really dies: a process, whose end a test can see.

ipmi_sim (Debian and Ubuntu: openipmi) and sushy-emulator (PyPI: sushy-tools) as their own projects ship them; the
agents are those of the fence-agents package. Traffic goes to 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from libs.config.entries import FenceDevice, HostEntry, Secret
from libs.config.settings import FencingSettings
from libs.power.devices import FenceDevices, agent_devices

PASSWORD = "s3cret-of-h1"
HASH = "$2b$04$4WU0kTvYKqruXiBztJDs8ukBz9usHlwnunDhOy0TmnBdJzBCuBWNi"
"""The same, as bcrypt has it."""
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", str(Path(sys.executable).parent)])


def lacking(*programs: str) -> str:
    """Why the tests cannot run here; "" where everything is there."""
    missing = [name for name in programs if shutil.which(name, path=PLACES) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def found(name: str) -> str:
    path = shutil.which(name, path=PLACES)
    assert path is not None
    return path


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Machine:
    """What the power is for."""

    def __init__(self, directory: Path, name: str) -> None:
        self.pid_file = directory / f"{name}.pid"
        self._process = subprocess.Popen(["sleep", "600"])
        self.pid_file.write_text(f"{self._process.pid}\n")

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An emulator, until the end of the block, in whatever state it is left."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            arguments, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def device(
    host: str, agent: str, timeout_s: float, secret: Path, **options: str | int | bool
) -> FenceDevices:
    """The only fence device of a host, driven as the services do."""
    one = FenceDevice(
        agent=agent, timeout_s=timeout_s, options=options, secrets={"password": Secret(file=secret)}
    )
    settings = FencingSettings(status_spacing_s=0.5)
    entry = HostEntry(name=host, uri="test:///default", fencing=(one,))
    return FenceDevices(agent_devices([entry], settings), settings)


# -- IPMI

LAN = """\
name "bmc1"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{directory}/chassis 0x20"
  user 2 true "admin" "{password}" admin 10 none md2 md5 straight
"""
BMC = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
# Called by ipmi_sim for each reading and each command, which is acknowledged when this ends.
CHASSIS = """\
#!/bin/sh
cd "$(dirname "$0")"
shift
echo "$@" >> asked
pid=$(cat h1.pid)
case "$1 $2" in
  "get power") if grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status"; then echo power:1; else echo power:0; fi;;
  "set power") if [ "$3" = 0 ]; then
    {off}
  fi;;
esac
"""
AT_ONCE = 'kill -9 "$pid"'
NEVER = ":"
"""Acknowledged all the same."""


def late(seconds: float) -> str:
    """The power goes so long after the command was acknowledged."""
    return f'(sleep {seconds}; kill -9 "$pid") >/dev/null 2>&1 </dev/null &'


class IpmiBmc:
    """A BMC that speaks IPMI, before the machine h1."""

    def __init__(self, directory: Path, off: str = AT_ONCE) -> None:
        self.directory, self.port = directory, free_port(socket.SOCK_DGRAM)
        (directory / "state").mkdir()
        (directory / "lan.conf").write_text(
            LAN.format(port=self.port, directory=directory, password=PASSWORD)
        )
        (directory / "bmc.emu").write_text(BMC)
        chassis = directory / "chassis"
        chassis.write_text(CHASSIS.format(off=off))
        chassis.chmod(0o755)

    def arguments(self) -> list[str]:
        files = ["-c", "lan.conf", "-f", "bmc.emu", "-s", "state"]
        return [found("ipmi_sim"), *files, "-n"]

    def device(
        self, password: str = PASSWORD, timeout_s: float = 20.0, **options: str | int | bool
    ) -> FenceDevices:
        secret = self.directory / "secret"
        secret.write_text(password + "\n")
        given: dict[str, str | int | bool] = {"ip": "127.0.0.1", "ipport": self.port, "username": "admin"}
        return device(
            "h1", "fence_ipmilan", timeout_s, secret, **given, lanplus=True, cipher=3, **options
        )  # fmt: skip

    def asked(self) -> list[str]:
        """Commands that changed something, in their order."""
        asked = self.directory / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [line for line in lines if not line.startswith("get")]


# -- Redfish

# The emulator's own driver of made-up systems, with machines in their place, or a host of the lab in that of h1. Its
# configuration is a Python file.
REDFISH = """\
import json
import os
import signal
import socket

from sushy_tools import error
from sushy_tools.emulator.resources.systems import fakedriver

SUSHY_EMULATOR_LISTEN_IP = "127.0.0.1"
SUSHY_EMULATOR_LISTEN_PORT = {port}
SUSHY_EMULATOR_FAKE_DRIVER = True
SUSHY_EMULATOR_STATE_DIR = {directory!r}
SUSHY_EMULATOR_SSL_CERT = {directory!r} + "/cert.pem"
SUSHY_EMULATOR_SSL_KEY = {directory!r} + "/key.pem"
SUSHY_EMULATOR_AUTH_FILE = {directory!r} + "/users"
SUSHY_EMULATOR_FAKE_SYSTEMS = [
    {{"uuid": name, "name": name, "power_state": "On", "nics": []}} for name in ("h1", "h2")
]


def lab(what):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect({control!r})
        connection.sendall(json.dumps({{"do": what}}).encode() + b"\\n")
        return json.loads(connection.makefile().readline())["power"]


def pid_of(name):
    with open({directory!r} + "/" + name + ".pid") as file:
        return int(file.read())


def state(self, name):
    if {control!r} and name == "h1":
        return "Off" if lab("status") == "off" else "On"
    try:
        with open("/proc/%d/stat" % pid_of(name)) as file:
            return "Off" if file.read().rsplit(")", 1)[1].split()[0] in "ZX" else "On"
    except FileNotFoundError:
        return "Off"


def switch(self, name, wanted):
    with open({directory!r} + "/asked", "a") as file:
        file.write(name + " " + wanted + "\\n")
    if {control!r} and name == "h1":
        if state(self, name) == "Off":  # answered with 409, as many BMCs do
            raise error.Conflict("the system is off already")
        lab("off")
    elif wanted == "ForceOff" and {obeys}:
        os.kill(pid_of(name), signal.SIGKILL)


fakedriver.FakeDriver.get_power_state = state
fakedriver.FakeDriver.set_power_state = switch
"""


class RedfishBmc:
    """A BMC that speaks Redfish over TLS, before two machines, h1 and h2: as in a chassis of blades. One that does not
    obey acknowledges all the same."""

    def __init__(self, directory: Path, obeys: bool = True, control: Path | None = None) -> None:
        """`control`: where a host of the lab is switched, which is h1 then."""
        self.directory, self.port = directory, free_port(socket.SOCK_STREAM)
        self.certificate = directory / "cert.pem"
        names = "subjectAltName=IP:127.0.0.1"
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(directory / "key.pem")]
        made = [
            "-x509",
            *key,
            "-out",
            str(self.certificate),
            "-days",
            "2",
            "-subj",
            "/CN=bmc",
            "-addext",
            names,
        ]
        subprocess.run([found("openssl"), "req", *made], check=True, capture_output=True)
        (directory / "users").write_text(f"admin:{HASH}\n")
        text = REDFISH.format(
            port=self.port, directory=str(directory), obeys=obeys, control=str(control or "")
        )
        (directory / "redfish.conf").write_text(text)

    def arguments(self) -> list[str]:
        return [found("sushy-emulator"), "--config", "redfish.conf"]

    def device(
        self, password: str = PASSWORD, timeout_s: float = 30.0, **options: str | int | bool
    ) -> FenceDevices:
        """Of h1. The certificate is believed where REQUESTS_CA_BUNDLE names it, as agents inherit it."""
        secret = self.directory / "secret"
        secret.write_text(password + "\n")
        given: dict[str, str | int | bool] = {"ip": "127.0.0.1", "ipport": self.port, "username": "admin"}
        where = "/redfish/v1/Systems/h1"
        return device("h1", "fence_redfish", timeout_s, secret, **given, systems_uri=where, **options)

    def asked(self) -> list[str]:
        """Commands that changed something, in their order."""
        asked = self.directory / "asked"
        return asked.read_text().splitlines() if asked.exists() else []
