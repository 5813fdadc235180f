"""A process that has imported torch, whose forks have imported the rest under a client's environment, and fork for every command.

What runs a command has seen nothing but imports, which would take most of its time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any


MOST = 4  # forks that serve at once


def _run(order: dict[str, Any]) -> None:
    """Runs code as `python -c` would, in this process, and ends it."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["-c", *order["arguments"]]
    code = 0
    try:
        exec(compile(order["code"], "<client>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _NoWaiting:
    """`time` without the pauses between huggingface_hub's attempts, half a minute for a Hub that is not there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Not at all."""


def _serve(orders: Connection, early: dict[str, str], bare: bool) -> None:
    """A fork: imports what reads `early` at import, all but this package where it is `bare`, and forks for every order."""
    os.environ.update(early)
    import huggingface_hub.utils._http
    import transformers.modeling_utils  # noqa: F401

    if not bare:
        import hf_sae.cli
        import hf_sae.hub
        import hf_sae.models  # noqa: F401

    huggingface_hub.utils._http.time = _NoWaiting()
    while (order := orders.recv()) is not None:
        pid = os.fork()
        if not pid:
            _run(order)
        _, status = os.waitpid(pid, 0)
        orders.send(os.waitstatus_to_exitcode(status))
    os._exit(0)


class _Servers:
    """The forks that serve, by the variables that they were made under; the one that has rested longest goes first."""

    def __init__(self) -> None:
        self._alive: OrderedDict[str, tuple[int, Connection]] = OrderedDict()

    def of(self, early: dict[str, str], bare: bool) -> Connection:
        """Where one takes orders and gives exit codes."""
        key = json.dumps([bare, early])
        if key not in self._alive:
            ours, theirs = multiprocessing.Pipe()
            pid = os.fork()
            if not pid:
                ours.close()
                _serve(theirs, early, bare)
            theirs.close()
            self._alive[key] = pid, ours
        self._alive.move_to_end(key)
        while len(self._alive) > MOST:
            self._end(*self._alive.popitem(last=False)[1])
        return self._alive[key][1]

    def end_all(self) -> None:
        while self._alive:
            self._end(*self._alive.popitem()[1])

    @staticmethod
    def _end(pid: int, orders: Connection) -> None:
        orders.send(None)
        os.waitpid(pid, 0)


def main() -> None:
    """Reads orders from stdin, one JSON object a line, and answers with exit codes."""
    # half of what takes time, and nothing of it knows of Hugging Face
    import sympy  # noqa: F401
    import torch._dynamo
    import torch.distributed.tensor

    torch.set_num_threads(1)
    servers = _Servers()
    for line in sys.stdin:
        order = json.loads(line)
        orders = servers.of(order.pop("early"), order.pop("bare"))
        orders.send(order)
        sys.stdout.write(f"{orders.recv()}\n")
        sys.stdout.flush()
    servers.end_all()


if __name__ == "__main__":
    main()
