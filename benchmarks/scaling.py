"""Tokens per second on 1, 2 and 4 processes under each scheme, against one process on as many threads.

`python -m benchmarks.scaling` prints a table; `--write` also puts it into `benchmarks/results/scaling.md`. Processes get one thread
each; on a machine with fewer cores than processes the row says what sharing costs, not what it gains.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "scaling.md"
# d, F, SAEs, tokens per batch
SIZES = {
    "data": (192, 1024, 1, 2048),
    "saes": (192, 3072, 4, 2048),
    "latents": (512, 8192, 1, 2048),
}
K = 32


def measure(scheme: str, steps: int, tokens: int, shrink: int) -> float | None:
    """Tokens per second in this process's run, from the fastest step; `None` where another process reports."""
    from accelerate import Accelerator

    from hf_sae import SAETrainer, SAETrainingArguments, TopKConfig, TopKSAE

    process = Accelerator()
    d, d_sae, count, _ = SIZES[scheme]
    torch.manual_seed(0)
    saes = {
        f"sae{i}": TopKSAE(TopKConfig(d_in=d, d_sae=d_sae // shrink, k=K, hook_in="resid_post.0"))
        for i in range(count)
    }
    with tempfile.TemporaryDirectory() as folder:
        args = SAETrainingArguments(
            output_dir=folder,
            total_tokens=steps * tokens,
            tokens_per_batch=tokens,
            parallelism=scheme,
            disable_tqdm=True,
        )
        trainer = SAETrainer(saes, args)
        generator = torch.Generator().manual_seed(process.process_index)
        x = torch.randn(tokens // process.num_processes, d, generator=generator)
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            trainer.training_step(x)
            times.append(time.perf_counter() - start)
    return tokens / min(times) if process.is_main_process else None


def launched(scheme: str, processes: int, threads: int, options: argparse.Namespace) -> float:
    """[`measure`] in a run of its own."""
    worker = ["-m", "benchmarks.scaling", "--worker", scheme, "--steps", str(options.steps)]
    worker += ["--tokens", str(options.tokens or SIZES[scheme][3]), "--shrink", str(options.shrink)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *worker],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["tokens_per_second"]


def table(options: argparse.Namespace) -> str:
    """Rows of scheme and processes, with the ratio to one process on two threads."""
    lines = [
        f"{os.cpu_count()} CPU cores, torch {torch.__version__}, one thread per process.",
        "",
        "| scheme | d, F, SAEs | processes | tokens/s | of one process on 2 threads |",
        "|---|---|---|---|---|",
    ]
    for scheme, (d, d_sae, count, _) in SIZES.items():
        alone = launched(scheme, 1, 2, options)
        size = f"{d}, {d_sae // options.shrink}, {count}"
        lines.append(f"| {scheme} | {size} | 1 (2 threads) | {alone:,.0f} | 1.00 |")
        for processes in options.processes:
            rate = launched(scheme, processes, 1, options)
            lines.append(f"| {scheme} | {size} | {processes} | {rate:,.0f} | {rate / alone:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the workers one after the other, or is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, help="per batch")
    parser.add_argument("--shrink", type=int, default=1, help="divide F by this, to try the script")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--write", action="store_true", help=f"also to {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--worker", choices=SIZES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rate = measure(options.worker, options.steps, options.tokens, options.shrink)
        if rate is not None:
            print(json.dumps({"tokens_per_second": rate}), flush=True)
        return
    text = table(options)
    print(text)
    if options.write:
        RESULTS.write_text("# Scaling\n\n" + text, encoding="utf-8")


if __name__ == "__main__":
    main()
