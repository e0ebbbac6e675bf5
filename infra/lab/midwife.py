"""Hosts' first processes as forks of their power device: what that has imported they, and their agents, need not.

An agent spends most of a CPU second at its start, nearly all of it on imports, and those of all a lab's hosts start at once.
A power device has threads by the time that a host begins, and to fork a process with threads is no good: so it keeps a
fork of itself from before, that has one thread and does nothing else. Standard library only.
"""

import functools
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

DESCRIPTORS_MOST = 65536


class Midwife:
    """The power device's end of the line. `begin` is what a child does with its arguments and one descriptor."""

    def __init__(self, begin: Callable[[list[str], int], None]) -> None:
        self._line, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            close_all_but(theirs.fileno())
            _attend(theirs, begin)
        theirs.close()

    def launch(self, arguments: list[str], descriptor: int) -> int:
        """Fork a child and wait until it has ended: its exit status. Raises OSError where the midwife is gone."""
        socket.send_fds(self._line, [json.dumps(arguments).encode()], [descriptor])
        answer = self._line.recv(64)
        if not answer:
            raise OSError("the process that forks hosts is gone")
        return int(answer)


def close_all_but(*kept: int) -> None:
    """Close every descriptor but the standard ones and these: what is inherited and not meant keeps sockets open."""
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, DESCRIPTORS_MOST)


def leave(work: Callable[[], None]) -> NoReturn:
    """In a forked child: do this, and end. Nothing may return into the code that it was forked from."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  told where its output goes
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _attend(line: socket.socket, begin: Callable[[list[str], int], None]) -> NoReturn:
    """The midwife itself, until the power device is gone. A Ctrl-C is not for it: it is in a session of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        request, descriptors, _, _ = socket.recv_fds(line, 65536, 1)
        if not request:
            os._exit(0)
        arguments, (descriptor,) = json.loads(request), descriptors
        child = os.fork()
        if child == 0:
            line.close()
            os.setsid()
            leave(functools.partial(begin, arguments, descriptor))
        os.close(descriptor)
        _, status = os.waitpid(child, 0)
        line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
