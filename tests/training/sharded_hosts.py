"""What the tests start under torchrun: hosts whose weights are spread over processes give the activations of a plain one."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hf_sae import ActivationStream, SAETrainer, SAETrainingArguments, capture, edit, read
from tests.training.planted import topk
from tests.training.streams import texts, tiny_host, tiny_tokenizer


POINTS = ["resid_post.0", "mlp_in.1", "attn_out.1", "resid_post.1"]


def fsdp():
    host = tiny_host()
    for layer in host.model.layers:
        fully_shard(layer)
    return fully_shard(host)


def tensor_parallel():
    host = tiny_host()
    plan = {"up_proj": ColwiseParallel(), "gate_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in host.model.layers:
        parallelize_module(layer.mlp, init_device_mesh("cpu", (2,)), plan)
    return host


def stream(host, **options) -> ActivationStream:
    given = {"context_length": 32, "batch_size": 4, "ring_bytes": 300_000, "repeat": True}
    return ActivationStream(host, tiny_tokenizer(), texts(), POINTS, **given | options)


def check(host, plain, folder: Path) -> None:
    ids = torch.randint(2, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = read(plain, POINTS, input_ids=ids)
    for _ in range(2):  # stopping early leaves the host able to run again
        found = read(host, POINTS, input_ids=ids)
        for point in POINTS:
            torch.testing.assert_close(found[point], wanted[point])
    with torch.no_grad(), capture(host, *POINTS) as acts:
        logits = host(input_ids=ids).logits
    torch.testing.assert_close(logits, plain(input_ids=ids).logits)
    torch.testing.assert_close(acts[POINTS[0]], wanted[POINTS[0]])
    with torch.no_grad(), edit(host, POINTS[0], lambda x, call: x * 2), edit(plain, POINTS[0], lambda x, call: x * 2):
        torch.testing.assert_close(host(input_ids=ids).logits, plain(input_ids=ids).logits)
    ours, theirs = stream(host), stream(plain)
    assert ours.widths == theirs.widths
    for _, left, right in zip(range(4), ours.batches(128), theirs.batches(128), strict=False):
        for point in POINTS:
            torch.testing.assert_close(left[point], right[point])
    # all read the same, each takes its part: the run of the plain host
    figures = []
    for model in (host, plain):
        sae = topk(hook_in=POINTS[0])
        args = SAETrainingArguments(output_dir=str(folder), total_tokens=1280, tokens_per_batch=128, disable_tqdm=True)
        figures.append(SAETrainer(sae, args, stream(model)).train()["loss"])
    assert abs(figures[0] - figures[1]) < 1e-5, figures


def main(folder: Path) -> None:
    assert Accelerator().num_processes == 2
    for make in (fsdp, tensor_parallel):
        check(make(), tiny_host(), folder)
        sys.stdout.write(f"HOST {make.__name__}\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        raise
