"""Asks a power device: one JSON line there, one back."""

import json
import socket
from pathlib import Path
from typing import Any

from infra.lab.spec import LabError


def ask(path: Path, request: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
    """The device's answer. Raises LabError when it refuses or cannot be reached, TimeoutError when it is mute."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError as error:
            raise TimeoutError(f"{path}: no answer to {request['do']} after {timeout_s:g} s") from error
        except OSError as error:
            raise LabError(f"{path}: {error}") from error
    if not line:
        raise LabError(f"{path}: closed without an answer to {request['do']}")
    answer: dict[str, Any] = json.loads(line)
    if not answer["ok"]:
        raise LabError(f"{path}: {request['do']}: {answer['error']}")
    return answer
