"""Python in processes of its own that know the local Hub only: nothing else can be contacted from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.local_hub import LocalHub
from tests.local_hub.guard.sitecustomize import LOG
from tests.local_hub.workers import GUARD, ROOT, Slot, Worker


Done = subprocess.CompletedProcess[str]


class Client:
    """A user of the Hub: a cache folder of its own, and commands that run apart from each other.

    `with Client(hub, home) as client`. No process may contact anything but this machine, which is asserted after each.
    """

    def __init__(self, hub: LocalHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.log = home.parent / f"{home.name}-outside.txt"
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Client:
        self.slot = Slot.take(self.home)
        return self

    def __exit__(self, *_: object) -> None:
        self.slot.release()

    def environment(self, **variables: str) -> dict[str, str]:
        """Of every process: the Hub, the cache, the guard."""
        guarded = {"PYTHONPATH": f"{GUARD}{os.pathsep}{ROOT}", LOG: str(self.log)}
        return {**os.environ, **guarded, **self.hub.environment(self.slot.path), **variables}

    def python(self, code: str, *arguments: str, bare: bool = False, **variables: str) -> Done:
        """Runs code with `sys.argv[1:]` in a fork of a process that has imported the libraries (all but this one, where it is `bare`),
        and nothing more."""
        environment = self.environment(**variables)
        out = {name: str(self.home / f"{name}.txt") for name in ("stdout", "stderr")}
        status = Worker.of(environment, bare).run(code, [*map(str, arguments)], environment, out)
        text = {name: Path(path).read_text(encoding="utf-8") for name, path in out.items()}
        return self._judged(subprocess.CompletedProcess([], status, text["stdout"], text["stderr"]))

    def fresh(self, code: str, *arguments: str, **variables: str) -> Done:
        """The same in an interpreter of its own, for what happens at import."""
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = self.environment(**variables)
        return self._judged(
            subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        )

    def value(self, code: str, *arguments: str, **variables: str) -> Any:
        """The JSON that code prints as its last line."""
        return last_line(self.python(code, *arguments, **variables))

    def cli(self, *arguments: str, **variables: str) -> Done:
        """`hf-sae` with arguments."""
        return self.python("from hf_sae.cli import main\nmain()", *arguments, **variables)

    def _judged(self, done: Done) -> Done:
        assert not self.log.exists(), f"contacted {self.log.read_text()}: {done.stderr}"
        return done


def last_line(done: Done) -> Any:
    """The JSON that a process printed last."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
