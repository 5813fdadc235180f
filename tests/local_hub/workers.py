"""Processes that have imported the libraries and outlive a test: starting one takes longer than most of what a test does.

What the libraries read at import has to be the same in the next test, so it is made the same: Hubs take the ports of those that have
ended, and `HF_HOME` is a link to one client's folder after another.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from multiprocessing.connection import Client as Connect
from pathlib import Path

from tests.local_hub.guard.sitecustomize import LOG


ROOT = Path(__file__).parents[2]
GUARD = ROOT / "tests" / "local_hub" / "guard"
AT_RUN_TIME = ("HF_TOKEN", "HF_SAE_")  # variables of Hugging Face's that nothing reads at import
MOST = 4  # that live at once; half a gigabyte each


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
    """A process that has imported what a client does, and forks for every command it is sent; see `worker.py`."""

    _parent: subprocess.Popen[str] | None = None
    _folder = tempfile.TemporaryDirectory(prefix="hub-workers-")
    _alive: OrderedDict[tuple[object, ...], Worker] = OrderedDict()  # noqa: RUF012

    def __init__(self, early: Mapping[str, str], bare: bool) -> None:
        address = str(Path(self._folder.name, "socket"))
        if Worker._parent is None:
            environment = {**os.environ, "PYTHONPATH": f"{GUARD}{os.pathsep}{ROOT}", LOG: os.devnull}
            command = [sys.executable, "-m", "tests.local_hub.worker", address]
            Worker._parent = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert Worker._parent.stdout is not None
            assert Worker._parent.stdout.readline() == "ready\n"
        self._orders = Connect(address, "AF_UNIX")
        self._orders.send({"early": early, "bare": bare})

    @classmethod
    def of(cls, environment: Mapping[str, str], bare: bool) -> Worker:
        """One that has imported what it has under such variables; without this package where it is `bare`."""
        early = {n: v for n, v in environment.items() if n.startswith("HF_") and not n.startswith(AT_RUN_TIME)}
        key = (bare, *sorted(early.items()))
        if key not in cls._alive:
            cls._alive[key] = cls(early, bare)
        cls._alive.move_to_end(key)
        while len(cls._alive) > MOST:
            cls._alive.popitem(last=False)[1].end()
        return cls._alive[key]

    def run(self, code: str, arguments: list[str], environment: Mapping[str, str], out: Mapping[str, str]) -> int:
        """The exit code of a command whose output goes into the files `stdout` and `stderr`."""
        self._orders.send({"code": code, "arguments": arguments, "environment": dict(environment), **out})
        return self._orders.recv()

    def end(self) -> None:
        """The end of its orders ends it."""
        self._orders.close()

    @classmethod
    def end_all(cls) -> None:
        """Those of this process."""
        while cls._alive:
            cls._alive.popitem()[1].end()
        if cls._parent is not None:
            cls._parent.terminate()
            cls._parent.wait(60)


atexit.register(Worker.end_all)
