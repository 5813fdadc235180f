"""Tokens per second of encoding: `encode_sparse` and the peers' own `encode`, as a share of the encoder product alone.

python -m benchmarks.encode
python -m benchmarks.encode --sizes 768x6144x32 --tokens 2048 --results benchmarks/results/encode.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from .floor import floor, milliseconds
from .implementations import Task
from .report import align, machine, markdown_table
from .rows import LIBRARIES, ROWS
from .worker import PeakMemory


COLUMNS = ("size", "precision", "library", "tokens/s", "share of the product", "memory MB")
GOAL = 0.8


def size(text: str) -> tuple[int, int, int]:
    """`768x6144x32` as (d, d_sae, k)."""
    try:
        d, d_sae, k = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not DxD_SAExK, such as 768x6144x32.") from None
    return d, d_sae, k


def measure(task: Task, library: str, x: torch.Tensor, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One library at one size: tokens per second, share of the product's speed, bytes above weights and input."""
    row = ROWS[f"{library}-same"]
    task = Task(task.d, task.d_sae, task.k, task.batch, 10, options=row.options)
    try:
        implementation = row.build(task)
    except ImportError:
        return {"missing": True}
    implementation.module.eval().to(x.device, dtype)
    try:
        with torch.inference_mode():
            implementation.encode(x[:8])
            memory = PeakMemory()
            implementation.encode(x)
            memory.pause()
            # the product before and after: on a shared machine they drift together
            product = floor(x, task.d_sae, task.k, dtype, repeats)["product"]
            best = milliseconds(lambda: implementation.encode(x), repeats)
            product = min(product, floor(x, task.d_sae, task.k, dtype, repeats)["product"])
    except RuntimeError as error:
        return {"failed": str(error).splitlines()[0]}
    return {"tokens_per_second": x.shape[0] / best * 1e3, "share": product / best, "memory": memory.peak}


def cells(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for each measurement."""
    out = []
    for r in results:
        if "share" in r:
            values = (f"{r['tokens_per_second']:,.0f}", f"{r['share']:.2f}", f"{r['memory'] / 2**20:.0f}")
        else:
            values = ("not installed" if r.get("missing") else f"failed: {r['failed']}", "", "")
        out.append((r["size"], r["precision"], r["library"], *values))
    return out


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["192x3072x32", "768x6144x32", "768x24576x32", "2304x16384x64"]
    parser.add_argument("--sizes", nargs="+", type=size, default=[size(text) for text in sizes])
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = []
    for d, d_sae, k in args.sizes:
        for precision in args.precisions:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            x = torch.randn(args.tokens, d).to(dtype)
            for library in args.libraries:
                found = measure(Task(d, d_sae, k, args.tokens, 10), library, x, dtype, args.repeats)
                label = {"size": f"d={d} F={d_sae} k={k}", "precision": precision, "library": library}
                results.append(label | found)
    rows = cells(results)
    report = {"machine": machine(args), "goal": GOAL, "results": results}
    print(json.dumps(report, indent=1) if args.json else align([COLUMNS, *rows]))
    if args.results:
        facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        lines = ["# Encoding", "", f"Machine: {facts}. {args.tokens} tokens a call, fastest of {args.repeats}.", ""]
        lines += [f"Goal: `encode_sparse` at {GOAL} of the speed of the encoder product alone, or more.", ""]
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text("\n".join(lines + markdown_table(COLUMNS, rows, left=3)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
