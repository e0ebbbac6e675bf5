#!/bin/sh
# Everything that a bare Debian 12 or Ubuntu machine with Python 3.11 lacks for Rekindle: system packages, and a
# virtual environment in .venv from the locked requirements. Quick when nothing is missing. No other step exists.
set -eu
cd "$(dirname "$0")/.."

python=""
for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
done
if [ -z "$python" ]; then
    echo "rekindle: Python 3.11 or newer is needed" >&2
    exit 1
fi

# Looked for by what is used, not by package names: another way of having it is as good.
missing=$("$python" - <<'PYTHON'
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

sys.path.insert(0, ".")
from infra.lab.needs import missing_packages, missing_store_packages

packages = list(missing_packages())
if os.getuid() == 0:  # only root's labs can have datastores
    packages += missing_store_packages()
# python3-venv is of the distribution's default: beside that, as Ubuntu 22.04's python3.11, each has its own packages
default = os.path.realpath(sys.executable) == os.path.realpath("/usr/bin/python3")
version = "3" if default else f"{sys.version_info[0]}.{sys.version_info[1]}"
if importlib.util.find_spec("ensurepip") is None:
    packages.append(f"python{version}-venv")
if not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists():
    packages.append(f"python{version}-dev")
if shutil.which("gcc") is None:
    packages += ["gcc", "libc6-dev"]
if shutil.which("pkg-config") is None:
    packages += ["pkg-config", "libvirt-dev"]
elif subprocess.run(["pkg-config", "--exists", "libvirt"], check=False).returncode:
    packages.append("libvirt-dev")
print(" ".join(sorted(set(packages))))
PYTHON
)
if [ -n "$missing" ]; then
    install="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing"
    if [ "$(id -u)" = 0 ]; then
        echo "rekindle: installing $missing" >&2
        sh -c "$install" >&2
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        echo "rekindle: installing $missing" >&2
        sudo sh -c "$install" >&2
    else
        echo "rekindle: this machine lacks packages; run this line once, as root, then again what you ran:" >&2
        echo "    sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends $missing'" >&2
        exit 1
    fi
fi

# Two make targets at once must not build the same environment twice.
exec 9>.bootstrap.lock
flock 9
want=$(cat requirements.lock pyproject.toml infra/bootstrap.sh | sha256sum | cut -c1-64)
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/.made-from 2>/dev/null)" != "$want" ]; then
    echo "rekindle: making the virtual environment" >&2
    [ -x .venv/uv/bin/uv ] || { rm -rf .venv && "$python" -m venv .venv && "$python" -m venv .venv/uv; }
    .venv/uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
    VIRTUAL_ENV=$PWD/.venv .venv/uv/bin/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
    VIRTUAL_ENV=$PWD/.venv .venv/uv/bin/uv pip install --quiet --no-deps --editable .
    echo "$want" >.venv/.made-from
fi
