"""Keeps a process on this machine. Python imports this file at its start where the folder is on `PYTHONPATH`.

An audit hook sees every address before the system does and cannot be taken out again. Processes that a client starts inherit
the path, and with it the guard.
"""

import os
import sys
from collections.abc import Callable
from typing import Any


OUTSIDE = 97  # exit code, which no library can catch
LOG = "SOCKET_GUARD_LOG"
HERE = ("127.0.0.1", "::1", "localhost", "", "0.0.0.0")
ADDRESSED = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
NAMED = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}


def target(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The host outside this machine that a call would reach, or `None`."""
    if event in ADDRESSED:
        address = arguments[ADDRESSED[event]]
        host = address[0] if isinstance(address, tuple) else ""  # a path is a local socket
    elif event in NAMED:
        host = arguments[NAMED[event]]
    else:
        return None
    host = host.decode() if isinstance(host, bytes) else str(host or "")
    return None if host in HERE else host


def watch(refuse: Callable[[str], None]) -> None:
    """Calls `refuse` with every host outside, before anything is sent to it; for as long as the process lives."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("socket.") and (host := target(event, arguments)) is not None:
            refuse(host)

    sys.addaudithook(hook)


def _end(host: str) -> None:
    with open(os.environ[LOG], "a", encoding="utf-8") as log:
        log.write(f"{host}\n")
    os.write(2, f"SOCKET GUARD: {host}\n".encode())
    os._exit(OUTSIDE)


if LOG in os.environ:
    watch(_end)
