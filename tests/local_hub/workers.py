"""Processes that have imported the libraries and outlive a test: starting one takes longer than most of what a test does.

What the libraries read at import has to be the same in the next test, so it is made the same: Hubs take the ports of those that have
ended, and `HF_HOME` is a link to one client's folder after another.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


ROOT = Path(__file__).parents[2]
AT_RUN_TIME = ("HF_TOKEN", "HF_SAE_")  # variables of Hugging Face's that nothing reads at import


class Slot:
    """A path that stands for the folder of one client after another."""

    _free: list[Slot] = []  # noqa: RUF012

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hub-client-")
        self.path = Path(self._folder.name, "home")

    @classmethod
    def take(cls, home: Path) -> Slot:
        """One that leads to `home`."""
        slot = cls._free.pop() if cls._free else cls()
        slot.path.unlink(missing_ok=True)
        slot.path.symlink_to(home.resolve(), target_is_directory=True)
        return slot

    def release(self) -> None:
        """The next client may have it."""
        self._free.append(self)


class Worker:
    """A process that has forks run what it is sent; see `worker.py`."""

    _alive: Worker | None = None

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.local_hub.worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=dict(environment), cwd=ROOT, **pipes)

    @classmethod
    def run(
        cls, code: str, arguments: list[str], environment: Mapping[str, str], out: Mapping[str, str], bare: bool
    ) -> int:
        """The exit code of a command whose output goes into the files `stdout` and `stderr`.

        It runs in a process that has imported what it has under such variables; without this package where it is `bare`.
        """
        if cls._alive is None:
            cls._alive = cls(environment)
        early = {n: v for n, v in sorted(environment.items()) if n.startswith("HF_") and not n.startswith(AT_RUN_TIME)}
        order = {"code": code, "arguments": arguments, "environment": dict(environment), **out}
        process = cls._alive.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order | {"early": early, "bare": bare}) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    @classmethod
    def end(cls) -> None:
        """The end of its orders ends it."""
        if cls._alive is not None:
            cls._alive.process.communicate(timeout=60)


atexit.register(Worker.end)
