"""Modules run as processes that are forks of one which has imported the libraries: a new interpreter takes seven seconds for that.

A fork has seen nothing but imports. What is about a launcher or about what happens at import starts an interpreter of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "accelerate",
        "datasets",
        "hf_sae.features.harvest",
        "hf_sae.training",
        "tokenizers",
        "torch.distributed.run",
        "transformers.models.llama.modeling_llama",
    ]
)


def _run(module: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """What `python -m module arguments` does, from the folder and with the variables of the process that asked for it."""
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # an interpreter ends by the signal then
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


class Fork:
    """`python -m module arguments` as a process, with as much of `subprocess.Popen` as the tests use.

    `output` is the file that stdout and stderr go to: a pipe that nobody reads would block the process when it is full.
    """

    def __init__(self, module: str, *arguments: str, output: Path, **variables: str) -> None:
        self._output = output
        output.unlink(missing_ok=True)
        asked = (module, list(arguments), dict(os.environ) | variables, str(output))
        self._process = _SERVER.Process(target=_run, args=asked, daemon=True)
        self._process.start()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text() if self._output.exists() else ""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Its exit code when it has ended, which it has to within `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def ranks(count: int, module: str, *arguments: str, output: Path, **variables: str) -> list[Fork]:
    """Processes of one group as a launcher starts them, without a launcher that would end the others when one ends.

    Rank r writes to `output` with the suffix `.r`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | variables
    return [
        Fork(module, *arguments, output=Path(f"{output}.{r}"), **shared | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(count)
    ]


def together(count: int, module: str, *arguments: str, output: Path, timeout: float = 500) -> str:
    """What the ranks of a group wrote, all of which have ended well."""
    running = ranks(count, module, *arguments, output=output)
    for process in running:
        assert process.wait(timeout) == 0, "".join(rank.output[-6000:] for rank in running)
    return "".join(rank.output for rank in running)
