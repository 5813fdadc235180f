"""The comparison as an aligned table and as Markdown."""

from __future__ import annotations

import argparse
import platform
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from .implementations import ROWS


COLUMNS = ("row", "settings", "tokens/s", "best", "best vs ours", "memory MB", "FVU", "L0", "dead", "s to target")


def time_to(results: dict[str, dict[str, Any]]) -> float | None:
    """Adds `seconds_to_target` to every row; the target is the worst final FVU plus 1 % of it, and is returned."""
    finished = [result for result in results.values() if result.get("curve")]
    if not finished:
        return None
    target = 1.01 * max(result["curve"][-1]["fvu"] for result in finished)
    for result in finished:
        result["seconds_to_target"] = _crossing(result["curve"], target)
    return target


def _crossing(curve: list[dict[str, float]], target: float) -> float | None:
    if curve[0]["fvu"] <= target:
        return curve[0]["seconds"]
    for before, after in pairwise(curve):
        if after["fvu"] <= target:
            share = (before["fvu"] - target) / (before["fvu"] - after["fvu"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return None


def cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for every row."""
    # the fastest steps: whatever else runs on the machine only adds
    ours = results.get("hf_sae", {}).get("best_tokens_per_second")
    out = []
    for name, result in results.items():
        if "curve" not in result:
            word = "not installed" if "missing" in result else f"failed: {' '.join(result.get('failed', []))}"
            out.append((name, ROWS[name].note, word, *[""] * (len(COLUMNS) - 3)))
            continue
        best, last, reached = result["best_tokens_per_second"], result["curve"][-1], result.get("seconds_to_target")
        ratio = "" if ours is None else f"{best / ours:.2f}x"
        out.append(
            (
                name,
                ROWS[name].note,
                f"{result['tokens_per_second']:,.0f}",
                f"{best:,.0f}",
                ratio,
                f"{result['peak_memory'] / 2**20:.0f}",
                f"{last['fvu']:.4f}",
                f"{last['l0']:.1f}",
                f"{last['dead']:.1%}",
                "never" if reached is None else f"{reached:.1f}",
            )
        )
    return out


def table(results: dict[str, dict[str, Any]]) -> str:
    """Aligned columns for a terminal."""
    rows = [COLUMNS, *cells(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = []
    for row in rows:
        parts = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def machine(args: argparse.Namespace) -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "threads": str(args.threads),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown(report: dict[str, Any], args: dict[str, Any]) -> str:
    """The report as a page."""
    source = "planted activations" if args["cache"] is None else f"real activations (`{args['train_key']}`)"
    facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    versions = ", ".join(dict.fromkeys(result["version"] for result in report["rows"].values()))
    sizes = f"k={args['k']}, d_sae={args['d_sae']}, {args['batch']} tokens per step, {args['steps']} steps, float32"
    lines = [
        f"# Training step: {source}, {sizes}",
        "",
        f"Machine: {facts}. Versions: {versions}.",
        "All rows in one run, one at a time, on the same activations in the same order; quality on the same",
        f"{args['held_out']} held-out tokens with the same code. Target: FVU {report['target_fvu'] or float('nan'):.4f}, the worst + 1 %.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * 2 + "---:|" * (len(COLUMNS) - 2),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in cells(report["rows"])]
    if report["stages_ms"]:
        lines += ["", "One of our steps:", "", "| stage | ms |", "|---|---:|"]
        lines += [f"| {stage} | {value:.1f} |" for stage, value in report["stages_ms"].items()]
    return "\n".join(lines) + "\n"
