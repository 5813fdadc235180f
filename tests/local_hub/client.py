"""Python in a process of its own that knows the local Hub only: nothing else can be contacted from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.local_hub import LocalHub


ROOT = Path(__file__).parents[2]
# what is not on this machine is refused before a byte leaves it, and the process ends with a message no library swallows
GUARD = """
import os, socket, sys
_connect, _resolve = socket.socket.connect, socket.getaddrinfo
def connect(self, address, *rest):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        sys.stderr.write(f"SOCKET GUARD: {address}\\n"); sys.stderr.flush(); os._exit(97)
    return _connect(self, address, *rest)
def resolve(host, *rest, **options):
    if host not in ("127.0.0.1", "::1", "localhost", None, b"127.0.0.1", b"localhost"):
        sys.stderr.write(f"SOCKET GUARD: {host}\\n"); sys.stderr.flush(); os._exit(97)
    return _resolve(host, *rest, **options)
socket.socket.connect, socket.getaddrinfo = connect, resolve
"""
OUTSIDE = 97


class Client:
    """A user of the Hub: a cache folder of its own, and commands that run in fresh processes."""

    def __init__(self, hub: LocalHub, home: Path) -> None:
        self.hub, self.home = hub, home

    def python(self, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs code with `sys.argv[1:]`."""
        command = [sys.executable, "-c", f"{GUARD}\n{code}", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.hub.environment(self.home), **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode != OUTSIDE, done.stderr
        return done

    def value(self, code: str, *arguments: str, **variables: str) -> Any:
        """The JSON that code prints as its last line."""
        done = self.python(code, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def cli(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`hf-sae` with arguments."""
        return self.python("from hf_sae.cli import main\nmain()", *arguments, **variables)
