"""The comparison as aligned tables and as Markdown: one table for each group of rows, and the goals beside what was measured."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from .rows import GROUPS, PEERS, ROWS


COLUMNS = (
    "row",
    "settings",
    "tokens/s",
    "best",
    "with buffer",
    "step / floor",
    "memory MB",
    "FVU",
    "L0",
    "dead",
    "s to target",
)
TITLES = {"same": "One mathematics", "best": "Best settings", "default": "Defaults"}
SPEED_GOALS = {"same": 4.0, "best": 8.0}  # times the peers with Adam in float32
TIME_GOALS = {"same": 2 / 3, "best": 1 / 3}
FLOOR_GOAL = 1.5


def time_to(results: dict[str, dict[str, Any]]) -> float | None:
    """Adds `seconds_to_target` to every row; the target is the worst final FVU of a peer (of any row, where no peer ran)."""
    finished = {name: result for name, result in results.items() if result.get("curve")}
    if not finished:
        return None
    peers = [result for name, result in finished.items() if _is_peer(name)] or list(finished.values())
    target = max(result["curve"][-1]["fvu"] for result in peers)
    for result in finished.values():
        result["seconds_to_target"] = crossing(result["curve"], target)
    return target


def _is_peer(name: str) -> bool:
    return name in ROWS and ROWS[name].library in PEERS


def crossing(curve: list[dict[str, float]], target: float) -> float | None:
    """Seconds until a curve reaches the target, on a straight line between its points."""
    if curve[0]["fvu"] <= target:
        return curve[0]["seconds"]
    for before, after in pairwise(curve):
        if after["fvu"] <= target:
            share = (before["fvu"] - target) / (before["fvu"] - after["fvu"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return None


def cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for every row."""
    out = []
    for name, result in results.items():
        note = ROWS[name].note + (f", rate {result['rate']:g}" if "rate" in result else "")
        note += f"; betas {', '.join(map(str, result['betas']))} given to all" if "betas" in result else ""
        if "curve" not in result:
            word = "not installed" if "missing" in result else f"failed: {' '.join(result.get('failed', []))}"
            out.append((name, note, word, *[""] * (len(COLUMNS) - 3)))
            continue
        last = result["curve"][-1]
        out.append(
            (
                name,
                note,
                f"{result['tokens_per_second']:,.0f}",
                f"{result['best_tokens_per_second']:,.0f}",
                f"{result.get('with_buffer', result['tokens_per_second']):,.0f}",
                f"{result['best_step_ms'] / result['floor_ms']:.2f}" if "floor_ms" in result else "",
                f"{result['peak_memory'] / 2**20:.0f}",
                f"{last['fvu']:.4f}",
                f"{last['l0']:.1f}",
                f"{last['dead']:.1%}",
                seconds_cell(result),
            )
        )
    return out


def seconds_cell(result: dict[str, Any]) -> str:
    """Seconds to the target, and the steps of the schedule, where another than the whole one arrived soonest."""
    reached, steps = result.get("seconds_to_target"), result.get("target_steps")
    if reached is None:
        return "never"
    return f"{reached:.1f}" if steps is None else f"{reached:.1f} ({steps} steps)"


def goals(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(figure, goal, measured) for every goal whose rows ran."""
    out = []
    for group in ("same", "best"):
        ran = {n: r for n, r in results.items() if r.get("curve") and ROWS[n].group == group}
        ours = ran.get(f"hf_sae-{group}")
        peers = {n: r for n, r in ran.items() if _is_peer(n)}
        if ours is None:
            continue
        title = TITLES[group].lower()
        out.append((f"{title}: step / floor", f"<= {FLOOR_GOAL}", f"{ours['best_step_ms'] / ours['floor_ms']:.2f}"))
        if not peers:
            continue
        least = min(r["peak_memory"] for r in peers.values())
        out.append((f"{title}: memory / best peer's", "<= 1", f"{ours['peak_memory'] / max(least, 1):.2f}"))
        out += _times(title, group, ran, [r.get("seconds_to_target") for r in peers.values()])
        for name, result in results.items():
            if result.get("curve") and _is_peer(name) and ROWS[name].group in ("same", "default"):
                ratio = ours["best_tokens_per_second"] / result["best_tokens_per_second"]
                out.append((f"{title}: speed / {name}", _speed_goal(group, name), f"{ratio:.2f}"))
    return out


def _times(title: str, group: str, ran: dict[str, Any], peers: list[float | None]) -> list[tuple[str, str, str]]:
    reached, out = [seconds for seconds in peers if seconds is not None], []
    for name, goal in ((f"hf_sae-{group}", TIME_GOALS[group]), (f"hf_sae-{group}-fp32", TIME_GOALS["same"])):
        own = ran.get(name, {})
        if reached and own.get("seconds_to_target") is not None and len(own["curve"]) > 1:
            share = own["seconds_to_target"] / min(reached)
            out.append((f"{title}: seconds to target, {name} / best peer", f"<= {goal:.2f}", f"{share:.2f}"))
    return out


def _speed_goal(group: str, name: str) -> str:
    row = ROWS[name]
    if group == "best":
        return f">= {SPEED_GOALS['best']:g}" if row.group == "same" else ""
    if row.library == "sparsify":
        return ">= 1.7" if row.group == "default" else ">= 4"
    return ">= 5" if row.group == "same" else ""


def table(report: dict[str, Any]) -> str:
    """Aligned columns for a terminal."""
    parts = []
    for group in GROUPS:
        rows = cells(_of(report, group))
        if rows:
            target = report["targets"].get(group)
            parts.append(f"{TITLES[group]}{'' if target is None else f' (target: FVU {target:.4f})'}")
            parts.append(align([COLUMNS, *rows]))
    reached = goals(report["rows"])
    if reached:
        parts.append(align([("goal", "wanted", "measured"), *reached]))
    for name, stages in report["stages_ms"].items():
        parts.append("\n".join(f"{name}: {stage:50s} {value:8.1f} ms" for stage, value in stages.items()))
    return "\n\n".join(parts)


def lengths_note(steps: int, shares: Iterable[float]) -> str:
    """What the seconds to the target are where shorter schedules were tried."""
    tried = ", ".join(str(round(share * steps)) for share in sorted(shares, reverse=True))
    return (
        f"Seconds to the target: of the whole run, or of a whole schedule of fewer steps ({tried}; each row from the longest on, "
        "until one does not arrive), whichever is there first."
    )


def _of(report: dict[str, Any], group: str) -> dict[str, dict[str, Any]]:
    return {name: result for name, result in report["rows"].items() if ROWS[name].group == group}


def align(rows: list[tuple[str, ...]]) -> str:
    """Columns of text: two of words, then numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
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


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]], left: int = 2) -> list[str]:
    """Lines of a Markdown table; the first `left` columns are words."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * left + "---:|" * (len(header) - left)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def markdown(report: dict[str, Any], args: dict[str, Any]) -> str:
    """The report as a page."""
    source = "planted activations" if args["cache"] is None else f"real activations (`{args['train_key']}`)"
    facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    versions = ", ".join(dict.fromkeys(result["version"] for result in report["rows"].values()))
    sizes = f"k={args['k']}, d_sae={args['d_sae']}, {args['batch']} tokens per step, {args['steps']} steps"
    lines = [
        f"# Training step: {source}, {sizes}",
        "",
        f"Machine: {facts}. Versions: {versions}.",
        "All rows in one run, one at a time, on the same activations in the same order; quality on the same",
        f"{args['held_out']} held-out tokens with the same code. Every buffer holds {args['buffer_tokens']:,} tokens.",
    ]
    for group in GROUPS:
        rows = cells(_of(report, group))
        if rows:
            target = report["targets"].get(group)
            lines += ["", f"## {TITLES[group]}", ""]
            lines += [] if target is None else [f"Target: FVU {target:.4f}, the worst final one of a peer.", ""]
            if group == "best" and args["lengths"]:
                lines += [lengths_note(args["steps"], args["lengths"]), ""]
            lines += markdown_table(COLUMNS, rows)
    reached = goals(report["rows"])
    if reached:
        lines += ["", "## Goals", "", *markdown_table(("figure", "goal", "measured"), reached, left=1)]
    for name, stages in report["stages_ms"].items():
        rows = [(stage, f"{value:.1f}") for stage, value in stages.items()]
        lines += ["", f"One step of {name}:", "", *markdown_table(("stage", "ms"), rows, left=1)]
    return "\n".join(lines) + "\n"
