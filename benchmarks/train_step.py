"""Trains one TopK autoencoder in every implementation, one after the other, and compares speed, memory and quality.

python -m benchmarks.real_activations activations.safetensors
python -m benchmarks.train_step --preset small --cache activations.safetensors --tune 1e-3 2e-3 4e-3
python -m benchmarks.train_step --preset wide
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .activations import write_from_cache, write_planted
from .breakdown import breakdown
from .implementations import Task
from .report import machine, markdown, table, time_to
from .rows import GROUPS, ROWS, chosen
from .schedules import soonest


# small: time to quality on real activations; wide: speed only
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"d": 192, "d_sae": 3072, "batch": 2048, "steps": 300, "held_out": 16384, "points": 24},
    "wide": {"d": 768, "d_sae": 6144, "batch": 1024, "steps": 24, "warmup": 6, "held_out": 2048, "points": 1},
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["same", "best"], metavar="ROW", help="rows, libraries or groups")
    parser.add_argument("--preset", choices=list(PRESETS), help="sizes of the goals; flags given besides win")
    parser.add_argument("--d", type=int, default=512, help="width of the planted activations")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=20, help="steps that are not timed")
    parser.add_argument("--held-out", type=int, default=16384, help="tokens that quality is measured on")
    parser.add_argument("--points", type=int, default=16, help="times that quality is measured in a run")
    parser.add_argument(
        "--tune",
        nargs="+",
        type=float,
        default=[],
        metavar="RATE",
        help="learning rates that each row of `best` may try",
    )
    parser.add_argument(
        "--betas",
        nargs=2,
        type=float,
        metavar="BETA",
        help="of Adam in every row of `best`, by hand where a library has no setting for them",
    )
    parser.add_argument(
        "--lengths",
        nargs="*",
        type=float,
        default=[],
        metavar="SHARE",
        help="shares of the steps that rows of `best` may take to the target, in schedules of their own",
    )
    parser.add_argument(
        "--buffer-tokens", type=int, default=131_072, help="size of every library's buffer; 0 measures none"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="safetensors file with real activations [tokens, d]")
    parser.add_argument("--train-key", default="train")
    parser.add_argument("--held-out-key", default="held_out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--results", type=Path, help="write a report in Markdown to this file")
    parser.set_defaults(**PRESETS.get(parser.parse_known_args(argv)[0].preset or "", {}))
    args = parser.parse_args(argv)
    try:
        args.rows = chosen(args.rows)
    except KeyError as error:
        parser.error(error.args[0])
    return args


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


def run_once(name: str, rate: float | None, data: Path, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one row in a process of its own."""
    result = data.with_name(f"{name}.json")
    command = [sys.executable, "-m", "benchmarks.worker", name, str(data), json.dumps(asdict(task))]
    command += ["--threads", str(args.threads), "--warmup", str(args.warmup), "--points", str(args.points)]
    command += ["--buffer-tokens", str(args.buffer_tokens), "--result", str(result)]
    command += [] if rate is None else ["--rate", str(rate)]
    command += ["--betas", *map(str, args.betas)] if args.betas and ROWS[name].tunable else []
    # threads that wait by spinning slow every implementation down, by a lot, where anything else runs on the machine
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"version": ROWS[name].version(), "failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(result.read_text(encoding="utf-8"))


def run_shorter(
    name: str, rate: float | None, data: Path, task: Task, args: argparse.Namespace, steps: int
) -> dict[str, Any]:
    """Trains one row over a schedule of fewer steps."""
    print(f"{name} in {steps} steps …", file=sys.stderr, flush=True)
    return run_once(name, rate, data, replace(task, steps=steps), args)


def run_row(name: str, data: Path, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one row; of several learning rates the run with the lowest final FVU stands."""
    rates = args.tune if ROWS[name].tunable and args.tune else [None]
    given = {"betas": args.betas} if ROWS[name].tunable and args.betas else {}
    runs = []
    for rate in rates:
        print(f"{name}{'' if rate is None else f' at {rate:g}'} …", file=sys.stderr, flush=True)
        runs.append(run_once(name, rate, data, task, args) | given | ({} if rate is None else {"rate": rate}))
        if "curve" not in runs[-1]:
            return runs[-1]
    return min(runs, key=lambda run: run["curve"][-1]["fvu"])


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison and prints it."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "activations.safetensors"
        width = prepare(args, data)
        task = Task(width, args.d_sae, args.k, args.batch, args.steps, args.seed)
        results = {name: run_row(name, data, task, args) for name in args.rows}
        targets = {group: time_to({n: r for n, r in results.items() if ROWS[n].group == group}) for group in GROUPS}
        for name in [name for name in args.rows if ROWS[name].group == "best"]:
            rate = results[name].get("rate")
            shorter = partial(run_shorter, name, rate, data, task, args)
            soonest(results[name], targets["best"] or 0.0, args.steps, args.lengths, shorter)
        with safe_open(data, "pt") as file:
            x = file.get_slice("train")[: args.batch]
        ours = [name for name in args.rows if ROWS[name].library == "hf_sae" and "curve" in results[name]]
        stages = {}
        for name in ours:
            own = Task(width, args.d_sae, args.k, args.batch, args.steps, args.seed, ROWS[name].options)
            stages[name] = breakdown(own, x)
    report = {"machine": machine(args), "targets": targets, "rows": results, "stages_ms": stages}
    print(json.dumps(report, indent=1) if args.json else table(report))
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(markdown(report, vars(args)), encoding="utf-8")


if __name__ == "__main__":
    main()
