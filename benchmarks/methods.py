"""What each sparsity mechanism is for, on toy data whose answer is known: method against baseline, on several seeds.

python -m benchmarks.methods
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_sae import models
from hf_sae.errors import ConfigError, DataError
from hf_sae.models import SAE, registered

from .contests import CONTESTS, ELSEWHERE, WORDS, Contest
from .docs import put_between
from .planted_methods import Toy
from .report import align, machine, markdown_table
from .sides import Best, Given, Side


COLUMNS = ("method, data", "figure", "method", "baseline", "difference needed", "found", "seeds", "")
ABSENT = "not in this version"


class Runs:
    """Trained sides of the contests, each trained once for a seed although several contests look at it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._toys: dict[tuple[Any, int], Toy] = {}
        self._saes: dict[tuple[Any, str, int], SAE] = {}

    def figure(self, contest: Contest, side: Side | Given | Best, seed: int) -> float:
        """What the contest compares, of one side."""
        if isinstance(side, Best):
            return side.choose(self.figure(contest, one, seed) for one in side.sides)
        key = (contest.toy, seed)
        if key not in self._toys:
            self._toys[key] = contest.toy(seed)
        toy, name = self._toys[key], (contest.toy, repr(side), seed)
        if name not in self._saes:
            self._saes[name] = side.train(toy, self.steps, seed)
        return contest.figure(side, self._saes[name], toy)


def absent(contest: Contest) -> list[str]:
    """Architectures and solvers of a contest that this version does not have."""
    baseline = contest.baseline
    sides = (contest.method, *(baseline.sides if isinstance(baseline, Best) else (baseline,)))
    missing = [side.arch for side in sides if f"hf_sae_{side.arch}" not in registered()]
    solvers = [side.solver for side in sides if isinstance(side, Given) and side.solver]
    return missing + [name for name in solvers if not hasattr(models, name)]


def compete(contest: Contest, runs: Runs, seeds: Sequence[int], bar: tqdm) -> dict[str, Any]:
    """One row: figures of both sides on every seed, and on how many seeds at least half of the difference is there."""
    row: dict[str, Any] = {
        "title": contest.title,
        "figure": WORDS[contest.figure],
        "negative": contest.negative,
        "before": contest.before,
    }
    if missing := absent(contest):
        bar.update(2 * len(seeds))
        return row | {"missing": missing}
    pairs = []
    try:
        for seed in seeds:
            pair = []
            for side in (contest.method, contest.baseline):
                pair.append(runs.figure(contest, side, seed))
                bar.update()
            pairs.append(pair)
    except (ConfigError, DataError) as error:  # a row that says so
        return row | {"failed": str(error)}
    shares = [contest.share(*pair) for pair in pairs]
    return row | {"pairs": pairs, "shares": shares, "passed": [share >= 0.5 for share in shares]}


def run(contests: Sequence[Contest], seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """All rows, with a progress bar."""
    runs = Runs(steps)
    with tqdm(total=2 * len(contests) * len(seeds), unit=" run", delay=2, leave=False) as bar:
        rows = []
        for contest in contests:
            bar.set_description(contest.title)
            rows.append(compete(contest, runs, seeds, bar))
    return rows


def verdict(row: dict[str, Any]) -> str:
    """Whether the row came out as expected, in a word or two."""
    if "missing" in row:
        return f"{ABSENT}: {', '.join(row['missing'])}"
    if "failed" in row:
        return f"failed: {' '.join(row['failed'].split())}"
    return "pass" if all(row["passed"]) else "MISS"


def cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for every row; figures are means over the seeds."""
    out = []
    for row in rows:
        title = row["title"] + (" (expected to lose)" if row["negative"] else "")
        method, baseline = row["before"]
        needed = f"{(method - baseline) / 2:+.3f}"
        if "pairs" not in row:
            out.append((title, row["figure"], "", "", needed, "", "", verdict(row)))
            continue
        ours, theirs = (statistics.fmean(values) for values in zip(*row["pairs"], strict=True))
        count = f"{sum(row['passed'])} of {len(row['passed'])}"
        out.append(
            (
                title,
                row["figure"],
                f"{ours:.3f}",
                f"{theirs:.3f}",
                needed,
                f"{ours - theirs:+.3f}",
                count,
                verdict(row),
            )
        )
    return out


def page(rows: Sequence[dict[str, Any]], facts: dict[str, str], seeds: int, steps: int, seconds: float) -> str:
    """The table as a page of Markdown."""
    passed = sum(all(row["passed"]) for row in rows if "pairs" in row)
    ran = sum("pairs" in row for row in rows)
    lines = [
        "# What each sparsity mechanism is for, on toy data",
        "",
        f"`python -m benchmarks.methods --seeds {seeds} --steps {steps}`, {seconds:.0f} seconds. "
        f"Machine: {', '.join(f'{key} {value}' for key, value in facts.items())}.",
        "",
        "Data with a planted answer (`benchmarks/planted_methods.py`). A row passes where, on every seed, method and baseline differ",
        "by at least half of what an earlier run of other code found on data of the same kind (one seed; its data was made anew here,",
        "so that sizes and noise differ). Rows that are expected to lose are the method's known weakness, and pass if it loses.",
        "",
        f"{passed} of {ran} rows that ran pass.",
        "",
        *markdown_table(COLUMNS, cells(rows), left=2),
        "",
        f"Not in this version: {'; '.join(ELSEWHERE)}.",
    ]
    return "\n".join(lines) + "\n"


def chosen(names: Sequence[str]) -> list[Contest]:
    """The contests in whose title or architecture one of `names` occurs; all without names.

    Raises:
        KeyError: for a name that occurs in none.
    """

    def fits(contest: Contest, name: str) -> bool:
        return name.lower() in contest.title.lower() or name == contest.method.arch

    for name in names:
        if not any(fits(contest, name) for contest in CONTESTS):
            known = ", ".join(dict.fromkeys(contest.method.arch for contest in CONTESTS))
            raise KeyError(f"{name!r} is in no row. Architectures with rows: {known}.")
    return [contest for contest in CONTESTS if not names or any(fits(contest, name) for name in names)]


def main(argv: list[str] | None = None) -> None:
    """Runs the contests and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="architectures, or words of a title")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each run, of 256 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    parser.add_argument("--docs", type=Path, help="put the table into this page, between its marks")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        contests = chosen(args.only)
    except KeyError as error:
        parser.error(str(error.args[0]))
    start = time.perf_counter()
    rows = run(contests, range(args.seeds), args.steps)
    facts = machine(args)
    print(json.dumps({"rows": rows, "machine": facts}, indent=1) if args.json else align([COLUMNS, *cells(rows)]))
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        text = page(rows, facts, args.seeds, args.steps, time.perf_counter() - start)
        args.results.write_text(text, encoding="utf-8")
    if args.docs:
        put_between(args.docs, "toy-table", markdown_table(COLUMNS, cells(rows), left=2))
    if not args.json:
        print("Next: python -m benchmarks.frontier acts.safetensors trains them all on real activations.")


if __name__ == "__main__":
    main()
