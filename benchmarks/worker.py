"""Trains one implementation in a process of its own and writes what was measured as JSON."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .buffers import BUFFERS, seconds_per_batch
from .floor import floor
from .implementations import Task
from .quality import judge
from .rows import ROWS, Row, changed


class PeakMemory:
    """Bytes of resident memory above those at the start, as a high-water mark of chosen stretches of a run."""

    def __init__(self) -> None:
        gc.collect()
        self.base, self.peak = self._resident("VmRSS"), 0
        self.resume()

    def resume(self) -> None:
        """Begins a stretch that counts."""
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # not Linux: the mark then covers the whole process
            return

    def pause(self) -> None:
        """Ends it."""
        self.peak = max(self.peak, self._resident("VmHWM") - self.base)

    @staticmethod
    def _resident(key: str) -> int:
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def checkpoints(steps: int, warmup: int, count: int = 16) -> set[int]:
    """Steps after which held-out figures are taken: none within the warm-up, closer together at first."""
    return {round(warmup + (steps - warmup) * (i / count) ** 1.5) for i in range(1, count + 1)}


def measure(row: Row, task: Task, data: dict[str, torch.Tensor], warmup: int, points: int = 16) -> dict[str, Any]:
    """Builds and takes every step, timed; `points` times figures on held-out activations in between, which are not."""
    rehearse(row, task)
    memory, seconds, curve = PeakMemory(), [], []
    implementation = row.build(task)
    due = checkpoints(task.steps, warmup, points)
    batches = data["train"].split(task.batch)
    for done, x in enumerate(batches[: task.steps], start=1):
        start = time.perf_counter()
        implementation.step(x)
        seconds.append(time.perf_counter() - start)
        if done in due:
            memory.pause()
            quality = judge(implementation.weights(), data["held_out"], task.k)
            curve.append({"step": done, "tokens": done * task.batch, "seconds": sum(seconds), **asdict(quality)})
            memory.resume()
    timed = seconds[warmup:]
    return {
        "tokens_per_second": task.batch / statistics.median(timed),
        "best_tokens_per_second": task.batch / min(timed),
        "timed_steps": len(timed),
        "best_step_ms": min(timed) * 1e3,
        "peak_memory": memory.peak,
        "curve": curve,
    }


def beside(row: Row, task: Task, x: torch.Tensor, buffer_tokens: int) -> dict[str, Any]:
    """The floor of a step in the row's precision, and the cost of a batch of the library's own buffer, taken right after."""
    bf16 = bool(task.options.get("bf16") or task.options.get("autocast"))
    parts = floor(x[: task.batch], task.d_sae, task.k, torch.bfloat16 if bf16 else torch.float32)
    out: dict[str, Any] = {"bf16": bf16, "floor_ms": sum(parts.values()), "floor": parts}
    buffer = BUFFERS.get(row.library)
    if buffer is not None and buffer_tokens:
        out["buffer_ms"] = seconds_per_batch(buffer, x, buffer_tokens, task.batch) * 1e3
    return out


def with_buffer(result: dict[str, Any], batch: int) -> float:
    """Tokens per second when each batch of the median step also comes out of the library's own buffer."""
    return batch / (batch / result["tokens_per_second"] + result.get("buffer_ms", 0.0) / 1e3)


def rehearse(row: Row, task: Task) -> None:
    """A step of a tiny one, so that imports and their memory are not measured."""
    tiny = replace(task, d=16, d_sae=64, k=4, batch=32, steps=4)
    row.build(tiny).step(torch.randn(tiny.batch, tiny.d))


def main() -> None:
    """The entry of the process that `train_step.py` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("row")
    parser.add_argument("data", type=Path)
    parser.add_argument("task", help="the fields of Task as JSON")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--buffer-tokens", type=int, default=0)
    parser.add_argument("--rate", type=float, help="learning rate, in place of the row's")
    parser.add_argument("--betas", type=float, nargs=2, help="of Adam, in place of the row's")
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row, task = ROWS[args.row], Task(**json.loads(args.task))
    task.options = changed(row, args.rate, args.betas)
    data = {name: tensor.clone() for name, tensor in load_file(args.data).items()}
    result: dict[str, Any] = {"version": row.version()}
    try:
        result |= measure(row, task, data, args.warmup, args.points)
        result |= beside(row, task, data["train"], args.buffer_tokens)
        result["with_buffer"] = with_buffer(result, task.batch)
    except ImportError as error:
        result["missing"] = str(error)
    args.result.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
