"""A process that has imported torch, whose forks have imported the rest under a client's environment, and fork for every command.

What runs a command has seen nothing but imports, which would take most of its time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection, Listener
from typing import Any


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


def _serve(orders: Connection) -> None:
    """A fork: imports what reads variables at import, all but this package where it is bare, and forks for every order."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    first = orders.recv()
    os.environ.update(first["early"])
    import huggingface_hub.utils._http
    import transformers.modeling_utils  # noqa: F401

    if not first["bare"]:
        import hf_sae.cli
        import hf_sae.hub
        import hf_sae.models  # noqa: F401

    huggingface_hub.utils._http.time = _NoWaiting()
    while True:
        try:
            order = orders.recv()
        except EOFError:
            os._exit(0)
        pid = os.fork()
        if not pid:
            _run(order)
        _, status = os.waitpid(pid, 0)
        orders.send(os.waitstatus_to_exitcode(status))


def main() -> None:
    """Has a fork serve everybody who connects to the socket named by the first argument."""
    # half of what takes time, and nothing of it knows of Hugging Face
    import sympy  # noqa: F401
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.tensor

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    with Listener(sys.argv[1], "AF_UNIX") as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            with listener.accept() as orders:
                if not os.fork():
                    _serve(orders)


if __name__ == "__main__":
    main()
