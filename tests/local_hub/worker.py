"""A process that has imported the libraries under a client's environment, and forks for every command it is sent.

A fork has seen nothing but imports, which take most of the time of a command.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
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


def main() -> None:
    """Reads orders from stdin, one JSON object a line, and answers with exit codes."""
    import huggingface_hub.utils._http
    import torch
    import transformers.modeling_utils  # noqa: F401

    if "--bare" not in sys.argv:
        import hf_sae.cli
        import hf_sae.hub
        import hf_sae.models  # noqa: F401

    huggingface_hub.utils._http.time = _NoWaiting()
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
