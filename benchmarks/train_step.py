"""Trains one TopK autoencoder in every implementation, one after the other, and compares speed, memory and quality.

python -m benchmarks.train_step
python -m benchmarks.train_step --cache activations.safetensors --train-key train --held-out-key test
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .activations import write_from_cache, write_planted
from .breakdown import breakdown
from .implementations import ROWS, Task
from .report import machine, markdown, table, time_to


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--d", type=int, default=512, help="width of the planted activations")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=20, help="steps that are not timed")
    parser.add_argument("--held-out", type=int, default=16384, help="tokens that quality is measured on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="safetensors file with real activations [tokens, d]")
    parser.add_argument("--train-key", default="train")
    parser.add_argument("--held-out-key", default="held_out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--results", type=Path, help="write a report in Markdown to this file")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace, path: Path) -> int:
    """Writes the activations to `path`; returns their width."""
    n_train = args.steps * args.batch
    if args.cache is None:
        write_planted(path, d=args.d, d_sae=args.d_sae, n_train=n_train, n_held_out=args.held_out, seed=args.seed)
    else:
        names = {"train": args.train_key, "held_out": args.held_out_key}
        try:
            write_from_cache(path, args.cache, n_train=n_train, n_held_out=args.held_out, **names)
        except KeyError as error:
            raise SystemExit(error.args[0]) from error
    with safe_open(path, "pt") as file:
        return file.get_slice("train").get_shape()[1]


def run_row(name: str, data: Path, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one row in a process of its own."""
    result = data.with_name(f"{name}.json")
    command = [sys.executable, "-m", "benchmarks.worker", name, str(data), json.dumps(asdict(task))]
    command += ["--threads", str(args.threads), "--warmup", str(args.warmup), "--result", str(result)]
    # threads that wait by spinning slow every implementation down, by a lot, where anything else runs on the machine
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"version": ROWS[name].version(), "failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(result.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison and prints it."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "activations.safetensors"
        width = prepare(args, data)
        results = {}
        for name in args.rows:
            task = Task(width, args.d_sae, args.k, args.batch, args.steps, args.seed, ROWS[name].options)
            print(f"{name} …", file=sys.stderr, flush=True)
            results[name] = run_row(name, data, task, args)
        stages = {}
        if "hf_sae" in args.rows:
            with safe_open(data, "pt") as file:
                x = file.get_slice("train")[: args.batch]
            stages = breakdown(
                Task(width, args.d_sae, args.k, args.batch, args.steps, args.seed, ROWS["hf_sae"].options), x
            )
    target = time_to(results)
    report = {"machine": machine(args), "target_fvu": target, "rows": results, "stages_ms": stages}
    print(json.dumps(report, indent=1) if args.json else table(results))
    if stages and not args.json:
        print("\n" + "\n".join(f"{name:50s} {value:8.1f} ms" for name, value in stages.items()))
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(markdown(report, vars(args)), encoding="utf-8")


if __name__ == "__main__":
    main()
