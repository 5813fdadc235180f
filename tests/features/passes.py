"""What the tests of shared and killed passes start as processes: `FOLDER plain`, `die` in the second one, `wait` between batches."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_sae.features.harvest import harvest
from hf_sae.models import SparseCode
from tests.features.test_harvest import COUNTS, HOST, OPTIONS, TABLE, TEXTS, TOKENIZER, make_sae


def main(folder: Path, mode: str) -> None:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator() if size > 1 else None
    assert accelerator is None or accelerator.num_processes == size, accelerator.num_processes
    first, calls = make_sae(TABLE), 0
    encode = first.encode_sparse

    def watched(hidden: torch.Tensor) -> SparseCode:
        nonlocal calls
        calls += 1
        if mode == "wait":
            time.sleep(0.25)
        if mode == "die" and accelerator.process_index == 1 and calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(hidden)

    first.encode_sparse = watched
    saes = {"a": first, "b": make_sae(TABLE.flip(1))}
    options = OPTIONS | {"n_tokens": 10**6, "examples": COUNTS, "accelerator": accelerator, "save_tokens": 300}
    harvest(saes, HOST, TOKENIZER, TEXTS, folder, **options)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
