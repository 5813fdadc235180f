"""The frontier as one picture, in a wide and a narrow arrangement of the same panels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_sae.hub.plots import ACCENT, PLACES, QUIET, STYLE

from .frontier_settings import FAMILIES, SETTINGS


if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = dict[str, Any]
REFERENCE = "topk"  # drawn in every panel, in grey
COLOURS = (*PLACES, "#9E9AC8", "#636363", "#FDAE6B")
MARKERS = "osD^vPX"  # colour never speaks alone
GAP = 0.075  # of a panel's height, between two labels
WIDE, NARROW = (13.0, 12.0), (5.4, 30.0)  # inches


def means(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """By architecture, for each L0 that was asked for, the means of the figures over the seeds; sorted by L0."""
    groups: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["arch"], line["target"]), []).append(line)
    out: dict[str, list[Line]] = {}
    for (arch, _), group in groups.items():
        point = {}
        for key in ("l0", "fvu", "dead", "gamma", "seconds", "ce_recovered", "delta_ce"):
            values = [line[key] for line in group if line.get(key) is not None]
            point[key] = statistics.fmean(values) if values else None
        out.setdefault(arch, []).append(point)
    return {arch: sorted(points, key=lambda point: point["l0"]) for arch, points in sorted(out.items())}


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the order given, that move as little as a sweep up and one back make them."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if placed:
        shift = (max(placed) - max(positions)) / 2
        placed = [value - shift for value in placed]
    out = [0.0] * len(positions)
    for value, i in zip(placed, order, strict=True):
        out[i] = value
    return out


def draw(lines: Sequence[Line], wide: Path, narrow: Path) -> None:
    """Writes both pictures.

    Args:
        lines (`list` of `dict`): runs that were made.
        wide (`Path`): PNG with the families side by side, readable from about 700 pixels.
        narrow (`Path`): PNG with one panel below the other, for a phone.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = means(lines)
    families = [f for f in FAMILIES if any(SETTINGS[a].family == f for a in points if a in SETTINGS)]
    panels = [_panel(points, family, figure) for figure in ("fvu", "ce_recovered") for family in families]
    panels += [_bars(points, figure) for figure in ("dead", "seconds")]
    with rc_context(fname=str(STYLE)):
        for path, columns, size in ((wide, max(len(families), 1), WIDE), (narrow, 1, NARROW)):
            figure = Figure(
                figsize=(size[0], size[1] if columns > 1 else 2.9 * (len(panels) - 2) + 2 * _height(points))
            )
            FigureCanvasAgg(figure)
            _arrange(figure, panels, columns, points)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="png", dpi=75 if columns > 1 else 80, metadata={"Software": None})


def _height(points: Mapping[str, Any]) -> float:
    return 1.0 + 0.3 * len(points)


def _arrange(figure: Any, panels: Sequence[Callable[[Axes], None]], columns: int, points: Mapping[str, Any]) -> None:
    lines, bars = panels[:-2], panels[-2:]
    rows = -(-len(lines) // columns)
    if columns == 1:
        heights = [2.9] * len(lines) + [_height(points)] * 2
        grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
        places = [grid[i, 0] for i in range(len(panels))]
    else:
        grid = figure.add_gridspec(rows + 1, 2 * columns, height_ratios=[1.0] * rows + [1.3])
        places = [grid[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2] for i in range(len(lines))]
        places += [grid[rows, :columns], grid[rows, columns:]]
    for place, panel in zip(places, [*lines, *bars], strict=True):
        panel(figure.add_subplot(place))


def _panel(points: Mapping[str, list[Line]], family: str, figure: str) -> Callable[[Axes], None]:
    """FVU or CE recovered of a family against L0, with labels at the ends of the lines."""
    words = {"fvu": "FVU", "ce_recovered": "CE recovered"}[figure]
    mine = [arch for arch in points if arch != REFERENCE and SETTINGS[arch].family == family]
    everything = [p[figure] for ps in points.values() for p in ps if p[figure] is not None and p["l0"] > 0]

    def panel(axes: Axes) -> None:
        axes.set_title(f"{words}: {FAMILIES[family]}", loc="left", fontsize=12)
        axes.set_xscale("log", base=2)
        low, high = _limits(everything)
        axes.set_ylim(low, high)
        ends = []
        for arch, colour, marker in [(REFERENCE, QUIET, "o"), *zip(mine, COLOURS, MARKERS, strict=False)]:
            drawn = [(p["l0"], p[figure]) for p in points.get(arch, []) if p[figure] is not None and p["l0"] > 0]
            if not drawn:
                continue
            style = {"linewidth": 1.2, "zorder": 1} if arch == REFERENCE else {"linewidth": 1.8, "zorder": 3}
            axes.plot(*zip(*drawn, strict=True), color=colour, marker=marker, markersize=6, clip_on=True, **style)
            ends.append((arch, colour, drawn[-1]))
        _label_ends(axes, ends, low, high)
        axes.set_xticks([8, 16, 32, 64, 128], ["8", "16", "32", "64", "128"])
        axes.set_xlim(8, 256)
        axes.set_xlabel("latents per token (L0)", fontsize=11)

    return panel


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Of the middle nine tenths with a margin, so that one architecture that failed does not flatten the rest."""
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    margin = 0.15 * (high - low or 0.1)
    return max(low - margin, min(ordered[0], 0.0)), high + margin


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, tuple[float, float]]], low: float, high: float) -> None:
    heights = [min(max((value - low) / (high - low), 0.0), 1.0) for _, _, (_, value) in ends]
    for (arch, colour, (l0, value)), height in zip(ends, spread(heights, GAP), strict=True):
        axes.annotate(
            arch,
            (l0, min(max(value, low), high)),
            xytext=(0.72, height),
            textcoords="axes fraction",
            va="center",
            fontsize=10,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
            annotation_clip=False,
        )


def _bars(points: Mapping[str, list[Line]], figure: str) -> Callable[[Axes], None]:
    """Dead share or seconds of every architecture, its sparsities as dots on a line."""
    words = {"dead": "latents that never fire, %", "seconds": "seconds of training"}[figure]

    def panel(axes: Axes) -> None:
        names = sorted(points, key=lambda arch: statistics.fmean(p[figure] for p in points[arch]))
        for row, arch in enumerate(names):
            values = [p[figure] * (100 if figure == "dead" else 1) for p in points[arch]]
            colour = QUIET if arch == REFERENCE else ACCENT
            axes.plot([min(values), max(values)], [row, row], color=colour, linewidth=1.5)
            axes.plot(values, [row] * len(values), "o", color=colour, markersize=5)
        axes.set_yticks(range(len(names)), names, fontsize=10)
        axes.set_xlim(left=0)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_title(words, loc="left", fontsize=12)

    return panel
