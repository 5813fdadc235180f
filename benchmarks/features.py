"""How fast a harvest of features is and how much memory it takes: the default host, an autoencoder of random weights.

`python -m benchmarks.features` reads the same text several times, more of it each time, each in a process of its own, and
prints a Markdown page; `--json` prints the figures. Memory is the most that a process had resident, host and imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hf_sae.assets import default_host
from hf_sae.corpus import stdlib_corpus
from hf_sae.features import harvest as harvesting
from hf_sae.features.latent_state import ExampleCounts, kept_bytes
from hf_sae.models import TopKConfig, TopKSAE

from .report import processor


D_SAE, K, PLACE = 16_384, 32, "resid_post.1"
LIMIT, WANTED = 4 << 30, 10_000_000  # bytes, tokens


def measure(n_tokens: int, d_sae: int, save_tokens: int | None) -> dict[str, float]:
    """One harvest in this process."""
    torch.manual_seed(0)
    host, tokenizer = default_host()
    sae = TopKSAE(TopKConfig(d_in=host.config.hidden_size, d_sae=d_sae, k=K, hook_in=PLACE)).eval()
    before, seconds, run = peak(), 0.0, harvesting.CorpusPass.run

    def timed(*args: Any) -> int:
        nonlocal seconds
        start = time.perf_counter()
        read = run(*args)
        seconds = time.perf_counter() - start
        return read

    harvesting.CorpusPass.run = timed
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = harvesting.harvest(
            sae,
            host,
            tokenizer,
            stdlib_corpus("train"),
            Path(folder) / "features",
            n_tokens=n_tokens,
            save_tokens=save_tokens,
        )
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        read = found.data["n_tokens"]
        live = sum(rows.column("n_fired").to_numpy().astype(bool).sum() for rows in found.batches("features"))
    whole = time.perf_counter() - start
    facts = {"tokens": read, "pass_s": seconds, "write_s": whole - seconds, "peak": peak(), "before": before}
    return facts | {"dataset": size, "live": int(live)}


def peak() -> int:
    """Bytes that this process had resident at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def apart(n_tokens: int, d_sae: int, save_tokens: int | None) -> dict[str, float]:
    """One harvest in a process of its own."""
    sizes = ["--one", str(n_tokens), "--d-sae", str(d_sae), "--save-tokens", str(save_tokens or 0)]
    command = [sys.executable, "-m", "benchmarks.features", *sizes, "--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def markdown(runs: list[dict[str, float]], d_sae: int, machine: str) -> str:
    """The page that is kept under `results`."""
    bound = kept_bytes(d_sae, ExampleCounts())
    lines = [
        f"# Harvest: {d_sae:,} latents on the default host",
        "",
        machine,
        f"TopK autoencoder with random weights, k={K}, at {PLACE}; source code of the standard library, default numbers of contexts.",
        f"What is kept by the formula of `kept_bytes`, for any number of tokens: {bound / 2**30:.2f} GiB.",
        "",
        "| tokens | saves | pass, s | tokens/s | writing, s | latents that fired | dataset, MiB | peak memory, GiB | below 4 GiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in runs:
        kept = "yes" if run["peak"] < LIMIT else "no"
        cells = [
            f"{run['tokens']:,}",
            f"{run['saves']}",
            f"{run['pass_s']:.0f}",
            f"{run['tokens'] / run['pass_s']:,.0f}",
        ]
        cells += [f"{run['write_s']:.0f}", f"{run['live']:,}", f"{run['dataset'] / 2**20:.0f}"]
        lines.append("| " + " | ".join([*cells, f"{run['peak'] / 2**30:.2f}", kept]) + " |")
    last = runs[-1]
    hours = (last["pass_s"] / last["tokens"] * WANTED + last["write_s"]) / 3600
    lines += [
        "",
        f"Extrapolated from the last row, not measured: {WANTED:,} tokens in {hours:.1f} hours on this machine, with the same memory.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--d-sae", type=int, default=D_SAE)
    parser.add_argument("--save-tokens", type=int, default=0, help="of the last run; 0 saves nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(measure(args.one, args.d_sae, args.save_tokens or None)) + "\n")
        return
    runs = []
    for n_tokens in args.tokens:
        every = args.save_tokens if n_tokens == args.tokens[-1] else 0
        saves = (n_tokens - 1) // every if every else 0
        runs.append(apart(n_tokens, args.d_sae, every or None) | {"saves": saves})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = (
        f"{processor()}, {cores} cores (shared with other work), {args.threads} thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}; load average {os.getloadavg()[0]:.1f} at the end."
    )
    sys.stdout.write(json.dumps(runs) + "\n" if args.json else markdown(runs, args.d_sae, machine))


if __name__ == "__main__":
    main()
