"""The frontier as one picture, in a wide and a narrow arrangement of the same panels."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_sae.hub.plots import ACCENT, PLACES, QUIET, STYLE

from .frontier_settings import FAMILIES, SETTINGS


if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = dict[str, Any]
REFERENCE = "topk"  # drawn in grey in every panel of its task
COLOURS = (*PLACES, "#756BB1", "#A16207", "#2B2B2B")
MARKERS = "osD^vPX"  # colour never speaks alone
GAP = 0.085  # of a panel's height, between two labels
WIDE, NARROW = 13.0, 5.0  # inches
PANEL = 3.0  # inches that a panel is high
PIXELS = 75  # to the inch: the picture is shown at half its width at least
INKS = 64  # colours of the file, which keeps it small


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
    """Positions from 0 to 1 that are at least `gap` apart, in the order given, as long as there is room for all."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    gap = min(gap, 1 / max(len(positions) - 1, 1))
    placed: list[float] = []
    for i in order:
        placed.append(max(positions[i], placed[-1] + gap) if placed else positions[i])
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
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
    style = {"font.size": 10, "figure.constrained_layout.use": True}
    with rc_context(style, fname=str(STYLE)), rc_context(style):
        for path, columns in ((wide, max(len(families), 1)), (narrow, 1)):
            rows = -(-(len(panels) - 2) // columns)
            height = PANEL * rows + _height(points) * (1 if columns > 1 else 2)
            figure = Figure(figsize=(WIDE if columns > 1 else NARROW, height))
            FigureCanvasAgg(figure)
            _arrange(figure, panels, columns, _height(points))
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS, metadata={"Software": None})
    Image.open(buffer).convert("RGB").quantize(INKS, dither=Image.Dither.NONE).save(path, optimize=True)


def _height(points: Mapping[str, Any]) -> float:
    return 1.0 + 0.22 * len(points)


def _arrange(figure: Any, panels: Sequence[Callable[[Axes], None]], columns: int, bars: float) -> None:
    """Lines in `columns` columns; below them the two bar panels, `bars` inches high, side by side where there is room."""
    across = min(columns, 2)
    rows = -(-(len(panels) - 2) // columns)
    outer = figure.add_gridspec(2, 1, height_ratios=[PANEL * rows, bars * 2 / across])
    lines, below = outer[0].subgridspec(rows, columns), outer[1].subgridspec(2 // across, across)
    places = [lines[i // columns, i % columns] for i in range(len(panels) - 2)]
    places += [below[i // across, i % across] for i in range(2)]
    for place, panel in zip(places, panels, strict=True):
        panel(figure.add_subplot(place))


def _panel(points: Mapping[str, list[Line]], family: str, figure: str) -> Callable[[Axes], None]:
    """FVU or CE recovered of a family against L0, with labels at the ends of the lines."""
    words = {"fvu": "FVU", "ce_recovered": "CE rec."}[figure]
    mine = [arch for arch in points if arch != REFERENCE and SETTINGS[arch].family == family]
    # several places are another task: neither the reference nor the scale of the other panels says anything there
    several = any(SETTINGS[arch].several for arch in mine)
    comparable = [ps for arch, ps in points.items() if SETTINGS[arch].several == several]
    everything = [p[figure] for ps in comparable for p in ps if p[figure] is not None and p["l0"] > 0]
    grey = [] if several else [(REFERENCE, QUIET, "o")]

    def panel(axes: Axes) -> None:
        axes.set_title(f"{words}: {FAMILIES[family]}", loc="left", fontsize=10, pad=9)
        axes.set_xscale("log", base=2)
        low, high = _limits(everything)
        axes.set_ylim(low, high)
        ends = []
        for arch, colour, marker in [*grey, *zip(mine, COLOURS, MARKERS, strict=False)]:
            drawn = [(p["l0"], p[figure]) for p in points.get(arch, []) if p[figure] is not None and p["l0"] > 0]
            if not drawn:
                continue
            style = {"linewidth": 1.2, "zorder": 1} if arch == REFERENCE else {"linewidth": 1.8, "zorder": 3}
            axes.plot(*zip(*drawn, strict=True), color=colour, marker=marker, markersize=6, clip_on=True, **style)
            ends.append((arch, colour, drawn[-1]))
        _label_ends(axes, ends, low, high)
        axes.set_xticks([16, 32, 64], ["16", "32", "64"])
        axes.set_xlim(11, 420)  # the right half is the labels'
        axes.set_xlabel("latents per token (L0)", loc="left")

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
            xytext=(0.62, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
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
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(left=0)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_title(words, loc="left", fontsize=10, pad=9)

    return panel
