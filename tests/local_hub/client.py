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


ROOT = Path(__file__).parents[2]
GUARD = ROOT / "tests" / "local_hub" / "guard"
Done = subprocess.CompletedProcess[str]


class Client:
    """A user of the Hub: a cache folder of its own, and commands that run apart from each other.

    `with Client(hub, home) as client`. No process may contact anything but this machine, which is asserted after each.
    """

    def __init__(self, hub: LocalHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.log = home.parent / f"{home.name}-outside.txt"
        self._workers: dict[tuple[tuple[str, str], ...], subprocess.Popen[str]] = {}
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.communicate(timeout=60)  # the end of its orders ends it

    def environment(self, **variables: str) -> dict[str, str]:
        """Of every process: the Hub, the cache, the guard."""
        guarded = {"PYTHONPATH": f"{GUARD}{os.pathsep}{ROOT}", LOG: str(self.log)}
        return {**os.environ, **guarded, **self.hub.environment(self.home), **variables}

    def python(self, code: str, *arguments: str, **variables: str) -> Done:
        """Runs code with `sys.argv[1:]` in a fork of a process that has imported the libraries, and nothing more.

        What Hugging Face's libraries read at import (variables that begin with `HF_`) makes another such process.
        """
        early = {name: value for name, value in variables.items() if name.startswith("HF_") and name != "HF_TOKEN"}
        worker = self._worker(early)
        out = {name: str(self.home / f"{name}.txt") for name in ("stdout", "stderr")}
        order = {"code": code, "arguments": [*map(str, arguments)], "variables": variables, **out}
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(order) + "\n")
        worker.stdin.flush()
        status = int(worker.stdout.readline())
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

    def _worker(self, early: dict[str, str]) -> subprocess.Popen[str]:
        key = tuple(sorted(early.items()))
        if key not in self._workers:
            command = [sys.executable, "-m", "tests.local_hub.worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._workers[key] = subprocess.Popen(command, env=self.environment(**early), cwd=ROOT, **pipes)
        return self._workers[key]

    def _judged(self, done: Done) -> Done:
        assert not self.log.exists(), f"contacted {self.log.read_text()}: {done.stderr}"
        return done


def last_line(done: Done) -> Any:
    """The JSON that a process printed last."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
