"""A stand-in for a relative of RHEL: real dnf and rpm, a repository of packages by the names that the installer asks for.

There is no RHEL here. The files are Debian's; /etc/os-release says Rocky, apt-get is taken away, and libvirt is there as RHEL 9 has it
since: no libvirtd, but a daemon by the name and the socket of virtqemud, reloaded and activated by these (it is Debian's libvirtd
inside, told so by its units; clients are told by libvirt.conf to look for virtqemud, as RHEL's are built to).
"""

from __future__ import annotations

from tests.systemd.machine import Machine

PYTHON = ("python3", "python3-libvirt", "acl")
OLD = ("python3.11", "python3.11-devel", "gcc", "pkgconf-pkg-config", "libvirt-devel")
SPEC = """\
Name: @NAME@
Version: 1
Release: 1
Summary: stands for the package of that name
License: none
BuildArch: noarch
%description
Its files are Debian's.
%files
"""
OS_RELEASE = """\
NAME="Rocky Linux"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="{version}"
PLATFORM_ID="platform:el{version}"
"""
DAEMON = """\
[Unit]
Description=Virtualization qemu daemon
Wants=virtqemud.socket virtlogd.socket
After=virtqemud.socket virtlogd.socket dbus.service local-fs.target

[Service]
Type=notify
ExecStart=/usr/sbin/libvirtd --timeout 120
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
SOCKET = """\
[Unit]
Description=libvirt QEMU daemon socket
Before=virtqemud.service

[Socket]
ListenStream=/run/libvirt/virtqemud-sock
ListenStream=/srv/shared/{name}.sock
FileDescriptorName=libvirtd.socket
SocketMode=0666

[Install]
WantedBy=sockets.target
"""
OLD_PYTHON = """\
#!/bin/sh
# RHEL 9's: it is too old for Rekindle. dnf, which is written in Python, uses what lies beside it.
case $* in *version_info*) exit 1 ;; esac
exec /usr/bin/python3.11 "$@"
"""


RECIPE = f"""\
set -eu
export DEBIAN_FRONTEND=noninteractive HOME=/root
apt-get update -q
apt-get install -y -q --no-install-recommends dnf rpm createrepo-c python3 python3-venv python3-libvirt acl
cat >/root/spec <<'END'
{SPEC}END
build() {{
	for name in $2; do
		sed "s/@NAME@/$name/" /root/spec >/root/one.spec
		rpmbuild -bb --quiet --define "_rpmdir /srv/$1" /root/one.spec
	done
	createrepo_c -q /srv/$1
}}
build baseos '{" ".join(PYTHON)}'
build crb '{" ".join(OLD)}'
mkdir -p /etc/yum.repos.d
printf '[baseos]\\nname=BaseOS\\nbaseurl=file:///srv/baseos\\ngpgcheck=0\\n' >/etc/yum.repos.d/base.repo
cat >/etc/systemd/system/virtqemud.service <<'END'
{DAEMON}END
for unit in libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket; do ln -sf /dev/null /etc/systemd/system/$unit; done
systemctl enable -q virtqemud.service
printf 'remote_mode = "direct"\\nuri_default = "qemu:///system"\\n' >/etc/libvirt/libvirt.conf
mv /usr/bin/apt-get /usr/bin/apt-get.away
"""
"""Makes such a machine out of the tests' Debian host."""


def make(host: Machine, version: int, crb: str) -> None:
    """What differs from one relative to another. `crb`: what the repository with libvirt-devel is called."""
    host.put("/etc/os-release", OS_RELEASE.format(version=version))
    repository = f"[{crb}]\nname=CRB\nbaseurl=file:///srv/crb\ngpgcheck=0\nenabled=0\n"
    host.put("/etc/yum.repos.d/crb.repo", repository)
    host.put("/etc/systemd/system/virtqemud.socket", SOCKET.format(name=host.name))
    if version < 10:
        host.put("/usr/bin/python3", OLD_PYTHON, mode=0o755)
