"""Every architecture at three sparsities, on the same activations of a real language model.

python -m benchmarks.real_activations acts.safetensors --needs gradient --also resid_post.0 resid_post.2 \\
    mlp_in.0 mlp_in.1 mlp_in.2 mlp_out.0 mlp_out.1 mlp_out.2
python -m benchmarks.frontier acts.safetensors --resume frontier.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from . import frontier_orderings as orderings
from .docs import put_between
from .frontier_plot import draw, means
from .frontier_runs import SIZES, Cache, Line, Log, Sizes, estimate, run
from .frontier_settings import SETTINGS, left_out, names
from .report import align, machine, markdown_table


COLUMNS = (
    "architecture",
    "sparsity by",
    "L0 asked",
    "L0",
    "FVU",
    "γ",
    "dead",
    "CE recovered",
    "delta CE",
    "seconds",
    "seeds",
)


def cells(lines: Sequence[Line], skipped: dict[str, str]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for every architecture and sparsity, and one for each architecture without runs."""
    groups: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["arch"], line["target"]), []).append(line)
    out = []
    for (arch, target), group in sorted(groups.items()):
        asked = "its own" if SETTINGS[arch].free else str(target)
        by = ", ".join(
            f"{key}={value:.3g}" for key, value in group[0]["fields"].items() if not isinstance(value, str | list)
        )
        by += f", {n} places" if (n := len(SETTINGS[arch].reads)) > 1 else ""
        figures = (
            _mean(group, "l0", ".1f"),
            _spread(group, "fvu"),
            _mean(group, "gamma", ".3f"),
            _mean(group, "dead", ".1%"),
        )
        host = (_mean(group, "ce_recovered", ".4f"), _mean(group, "delta_ce", ".4f"), _mean(group, "seconds", ".0f"))
        out.append((arch, by, asked, *figures, *host, str(len(group))))
    return out + [(arch, why, *[""] * (len(COLUMNS) - 2)) for arch, why in sorted(skipped.items())]


def notes(lines: Sequence[Line], d_sae: int, file: str) -> list[str]:
    """What to know of rows of several places and of the files that rows are of, as sentences; `file` is that of lines of none."""
    out = []
    several = [arch for arch in sorted({line["arch"] for line in lines}) if SETTINGS[arch].several]
    for arch in several:
        setting = SETTINGS[arch]
        writes = ", ".join(setting.writes) or "them"
        out.append(
            f"{arch} reads {', '.join(setting.reads)} and writes {writes}, with {setting.latents(d_sae)} latents."
        )
    if several:
        out.append(
            f"FVU and γ of {' and '.join(several)} are over all places together, which are replaced at once for the loss of the host: "
            "another task than that of the other rows."
        )
    files: dict[str, set[str]] = {}
    for line in lines:
        files.setdefault(line.get("cache", file), set()).add(line["arch"])
    if len(files) > 1:
        largest, *others = sorted(files, key=lambda name: -len(files[name]))
        of = "; ".join(f"{', '.join(sorted(files[name]))}: {name}" for name in others)
        out.append(f"Another draw of the corpus than {largest} has: {of}.")
    return out


def _values(group: Sequence[Line], key: str) -> list[float]:
    return [line[key] for line in group if line.get(key) is not None]


def _mean(group: Sequence[Line], key: str, form: str) -> str:
    values = _values(group, key)
    return format(statistics.fmean(values), form) if values else ""


def _spread(group: Sequence[Line], key: str) -> str:
    values = _values(group, key)
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.4f}" + (f" ± {half:.4f}" if len(values) > 1 else "")


def make(chosen: Sequence[str], seeds: int, cache: Cache, sizes: Sizes, log: Log) -> dict[str, str]:
    """Makes the runs that the log does not have, seed by seed, so that a stop leaves whole frontiers; why others failed."""
    plan = [(name, target, seed) for seed in range(seeds) for name in chosen for target in SETTINGS[name].targets]
    failed: dict[str, str] = {}
    with tqdm(plan, unit=" run", delay=2) as bar:
        for name, target, seed in bar:
            bar.set_description(f"{name}, L0 {target}, seed {seed}")
            if name not in failed and "failed" in (line := run(name, target, seed, cache, sizes, log)):
                failed[name] = line["failed"]
    return failed


def page(
    lines: Sequence[Line],
    rows: list[tuple[str, ...]],
    toys: Sequence[Line],
    facts: dict[str, str],
    args: argparse.Namespace,
) -> str:
    """Tables as a page of Markdown."""
    text = [
        "# Every architecture at three sparsities",
        "",
        f"`python -m benchmarks.frontier {args.cache.name} --d-sae {args.d_sae} --steps {args.steps} --seeds {args.seeds}`. "
        f"Machine: {', '.join(f'{key} {value}' for key, value in facts.items())}.",
        "",
        f"Activations of the default host, trained on {args.steps} steps of {args.batch} tokens with d_sae={args.d_sae}, the same tokens for",
        "all, measured on held-out files; means over the seeds, ± half the range. γ below 1 is shrinkage. The loss of the host is that",
        "of the test split with what is written replaced. Seconds are of optimiser steps, and of whatever else ran on the machine.",
        "",
        *markdown_table(COLUMNS, rows, left=2),
        "",
        *(remark + "\n" for remark in notes(lines, args.d_sae, args.cache.name)),
        "## Published orderings",
        "",
        *markdown_table(orderings.COLUMNS, orderings.judged(lines, toys), left=3),
    ]
    return "\n".join(text) + "\n"


def section(lines: Sequence[Line], toys: Sequence[Line], pictures: tuple[str, str]) -> list[str]:
    """What the methods page shows: the picture for both widths, the orderings, and FVU at the three sparsities."""
    points = means(lines)
    of_one_task = {arch: ps for arch, ps in points.items() if not SETTINGS[arch].several} or points
    best = min((p["fvu"], arch) for arch, ps in of_one_task.items() for p in ps)
    alt = f"FVU and CE recovered against L0, dead share and seconds of {len(points)} architectures; least FVU {best[0]:.3f}, {best[1]}."
    picture = [
        "<picture>",
        f'  <source media="(max-width: 640px)" srcset="{pictures[1]}">',
        f'  <img alt="{alt}" src="{pictures[0]}">',
        "</picture>",
    ]
    return [*picture, "", *markdown_table(orderings.COLUMNS, orderings.judged(lines, toys), left=3)]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cache", type=Path, help="file of python -m benchmarks.real_activations, with what --also and --needs add"
    )
    parser.add_argument("--arch", nargs="+", metavar="NAME", help="only these; all that are registered otherwise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSON lines of runs: the first is added to, further ones are read",
    )
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, and stop")
    parser.add_argument("--report", action="store_true", help="make no runs: only show those of --resume")
    parser.add_argument(
        "--toys", type=Path, help="output of python -m benchmarks.methods --json, for claims that need toy data"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    parser.add_argument("--plot", type=Path, help="write a PNG to this file, and a narrow one beside it")
    parser.add_argument("--docs", type=Path, help="put picture and orderings into this page, between its marks")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.arch or () if left_out(name)]:
        parser.error(
            f"{unknown[0]}: {left_out(unknown[0])}. Allowed: {', '.join(n for n in names() if not left_out(n))}."
        )
    if args.docs and not args.plot:
        parser.error("--docs shows the picture: give --plot as well.")
    return args


def main(argv: list[str] | None = None) -> None:
    """Makes the runs and shows them."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    sizes = Sizes(**{name: getattr(args, name) for name in vars(Sizes())})
    log = Log(args.resume)
    skipped = {name: why for name in sorted({*SETTINGS, *names()}) if (why := left_out(name))}
    chosen = args.arch or [name for name in names() if not left_out(name)]
    if not args.report:
        cache = Cache.load(args.cache)
        seconds = estimate(chosen, args.seeds, cache, sizes, log)
        if not args.json:
            print(
                f"about {sum(seconds.values()) / 60:.0f} minutes: "
                + ", ".join(f"{n} {s / 60:.1f}" for n, s in seconds.items())
            )
        if args.estimate:
            print("Next: the same without --estimate, with --resume FILE so that it can be stopped and continued.")
            return
        skipped |= {name: f"failed: {why}" for name, why in make(chosen, args.seeds, cache, sizes, log).items()}
    wanted = {size: getattr(sizes, size) for size in SIZES}
    found = [line for line in log.find(kind="run", **wanted) if line["arch"] in chosen and line["seed"] < args.seeds]
    # a run that stands in several files counts once
    lines = list({(line["arch"], line["target"], line["seed"]): line for line in found}.values())
    show(lines, skipped, args)


def show(lines: list[Line], skipped: dict[str, str], args: argparse.Namespace) -> None:
    """Prints and writes what was asked for."""
    facts: dict[str, str] = machine(args)
    toys: list[Any] = json.loads(args.toys.read_text(encoding="utf-8"))["rows"] if args.toys else []
    rows = cells(lines, skipped)
    if args.json:
        print(json.dumps({"runs": lines, "left_out": skipped, "machine": facts}, indent=1))
    else:
        below = notes(lines, args.d_sae, args.cache.name)
        ordered = align([orderings.COLUMNS, *orderings.judged(lines, toys)])
        print(align([COLUMNS, *rows]), *below, ordered, sep="\n\n")
        print("Next: --results FILE writes the page, --plot FILE the picture; --report shows them without new runs.")
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(page(lines, rows, toys, facts, args), encoding="utf-8")
    if args.plot and lines:
        narrow = args.plot.with_stem(args.plot.stem + "_narrow")
        draw(lines, args.plot, narrow)
        if args.docs:
            beside = tuple(
                os.path.relpath(path, args.docs.parent).replace(os.sep, "/") for path in (args.plot, narrow)
            )
            put_between(args.docs, "frontier", section(lines, toys, beside))


if __name__ == "__main__":
    main()
