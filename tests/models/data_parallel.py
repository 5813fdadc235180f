"""What the battery starts as two processes: under DistributedDataParallel the gradients are those of one process."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.models.battery import CASES, Case


def compare(case: Case, rank: int) -> None:
    sae, (x, target) = case.build(), case.batch()
    if sae.couples_tokens:
        return
    state, given, expected = case.whole_gradients(sae, x, target)
    wrapped = DistributedDataParallel(sae, find_unused_parameters=any(g is None for g in expected))
    half = slice(20 * rank, 20 * rank + 20)
    state.given = {name: rows[half] for name, rows in given.items()}
    wrapped(x[half], target=target[half], state=state).loss.backward()
    for want, parameter in zip(expected, sae.parameters(), strict=True):
        if want is not None:
            torch.testing.assert_close(parameter.grad, want, atol=1e-6, rtol=1e-4, msg=str(case))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in CASES:
        compare(case, dist.get_rank())
    dist.barrier()
    if dist.get_rank() == 0:
        sys.stdout.write(f"DDP {dist.get_world_size()} {len(CASES)}\n")
    dist.destroy_process_group()
