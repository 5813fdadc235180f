"""The plots of cards: training, sparsity against error, how often latents fire; and of the lengths of codes. Each also says in
words what it shows.

Figures are drawn without pyplot, which would keep them and choose a window system.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import facts
from .markdown import escape


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from ..evaluation import CodeNorms, EvalReport
    from ..models import SAE

PLOTS = {"training.png", "l0_fvu.png", "density.png"}
STYLE = Path(__file__).parents[1] / "assets" / "plots.mplstyle"
ACCENT, QUIET = "#E6550D", "#777777"
PLACES = (ACCENT, "#3182BD", "#7F2704", "#08306B")  # more are not told apart
MOST_POINTS = 500  # of a line; more are not seen at this size
MOST_TOKENS = 2000  # of a cloud
LOWEST_DECADE = -7
NAMES = {"pca": "PCA", "linear": "linear map", "random": "random weights"}


@dataclass(frozen=True)
class Plot:
    """A picture of a card.

    Args:
        file (`str`): its name in `assets/`.
        alt (`str`): what it shows, in words, for those who do not see it.
        png (`bytes`): the picture, 960 by 480 pixels.
    """

    file: str
    alt: str
    png: bytes


def card_plots(sae: SAE, report: EvalReport | None = None, history: Sequence[Mapping[str, float]] = ()) -> list[Plot]:
    """The plots for which there are figures.

    Args:
        sae ([`SAE`]): its `feature_stats`, or the report's, say how often latents fire.
        report ([`EvalReport`], *optional*): of an evaluation.
        history (`list` of `dict`): figures of training (`SAETrainer.log_history`).
    """
    stats = sae.feature_stats or (report.feature_stats if report is not None else None) or {}
    drawn = [
        training_curve(history),
        None if report is None else error_against_l0(report),
        None if "density" not in stats else density_histogram(stats["density"]),
    ]
    return [plot for plot in drawn if plot is not None]


def training_curve(history: Sequence[Mapping[str, float]]) -> Plot | None:
    """Loss and variance not explained over the tokens of training; `None` for fewer than two points."""
    rows = [row for row in history if _finite(row, "tokens", "loss", "fvu") and row["loss"] > 0 and row["fvu"] > 0]
    if len(rows) < 2:
        return None
    rows = rows[:: math.ceil(len(rows) / MOST_POINTS)] + rows[-1:]
    tokens = [row["tokens"] / 1e6 for row in rows]

    def draw(axes: Axes) -> None:
        last = rows[-1]
        for key, words, colour in (("loss", "loss", QUIET), ("fvu", "FVU", ACCENT)):
            axes.plot(tokens, [row[key] for row in rows], color=colour)
            up = (key == "loss") == (last["loss"] >= last["fvu"])  # the labels of two ends that meet
            _label(axes, tokens[-1], last[key], words, colour, dy=9 if up else -9)
        # the first figures are those of an untrained model and may be of any size
        axes.set_ylim(0, 1.15 * max(max(row["loss"], row["fvu"]) for row in rows[1:]))
        axes.set_xlim(0, tokens[-1] * 1.12)
        axes.set_xlabel("million tokens")

    last = rows[-1]
    alt = (
        f"Training: over {facts.number(last['tokens'])} tokens the loss falls from {facts.number(rows[0]['loss'])} to "
        f"{facts.number(last['loss'])} and the variance not explained on training batches to {facts.number(last['fvu'])}."
    )
    return Plot("training.png", alt, _png(draw))


def error_against_l0(report: EvalReport) -> Plot | None:
    """Variance not explained against active latents: this one and its baselines; `None` for a lone point."""
    sae = _point(report.metrics)
    others = {name: point for name, values in report.controls.items() if (point := _point(values))}
    if sae is None or not others:
        return None

    def draw(axes: Axes) -> None:
        points = [sae, *others.values()]
        axes.set_xlim(0, 2.2 * max(l0 for l0, _ in points))
        axes.set_ylim(0, 1.15 * max(fvu for _, fvu in points))
        for name, point in {"this autoencoder": sae, **others}.items():
            mine = point is sae
            axes.plot(*point, "o", color=ACCENT if mine else QUIET, zorder=4, clip_on=False)
            words = f"{NAMES.get(name, name)}, FVU {point[1]:.3g}"
            _label(axes, *point, words, ACCENT if mine else QUIET, bold=mine)
        axes.set_xlabel("active latents per token (L0)")
        axes.set_ylabel("FVU")

    beside = "; ".join(
        f"{NAMES.get(n, escape(n))} {facts.number(fvu)} at L0 {facts.number(l0)}" for n, (l0, fvu) in others.items()
    )
    alt = (
        f"Variance not explained against active latents: this autoencoder {facts.number(sae[1])} at L0 "
        f"{facts.number(sae[0])}{f'; {beside}' if beside else ''}."
    )
    return Plot("l0_fvu.png", alt, _png(draw))


def density_histogram(density: Tensor) -> Plot | None:
    """How many latents fire on which share of the tokens, in quarter decades; `None` where none ever fired.

    Args:
        density (`Tensor`): `[d_sae]`, share of the tokens on which each latent fires.
    """
    fired = density[density > 0].double().log10()
    dead = 1 - len(fired) / max(len(density), 1)
    if not len(fired):
        return None
    low = max(math.floor(fired.min().item()), LOWEST_DECADE)
    bins = -low * 4
    counts = torch.histc(fired.clamp(min=low, max=0), bins=bins, min=low, max=0).tolist()
    median = 10 ** fired.median().item()

    def draw(axes: Axes) -> None:
        edges = [low + i / 4 for i in range(bins)]
        axes.bar(edges, counts, width=0.235, align="edge", color=ACCENT)
        axes.set_xticks(range(low, 1), [_share(power) for power in range(low, 1)])
        axes.set_xlim(low, 0)
        axes.set_xlabel("share of the tokens on which a latent fires")
        axes.set_ylabel("latents")
        never = "every latent fired" if dead == 0 else f"{dead:.1%} never fired"
        axes.text(0.02, 0.97, never, transform=axes.transAxes, va="top", color="#333333")

    alt = (
        f"Histogram of how often latents fire: half of those that fired do so on fewer than 1 in "
        f"{round(1 / median):,} tokens; {dead:.1%} of {len(density):,} never fired."
    )
    return Plot("density.png", alt, _png(draw))


def frontier(index: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    """Variance not explained against active latents of all autoencoders of a repo; `None` for fewer than two.

    Args:
        index (`Mapping`): what is known of each, by its place (`hf_sae.hub.collections`).
    """
    points = {place: entry.get("metrics") or {} for place, entry in index.items()}
    points = {place: figures for place, figures in points.items() if _finite(figures, "l0", "fvu")}
    if len(points) < 2:
        return None

    def draw(axes: Axes) -> None:
        groups = sorted({str(index[place].get("hook_in")) for place in points})
        for group, colour in zip(groups, [*PLACES, *[QUIET] * len(groups)]):  # noqa: B905
            mine = sorted(
                (p["l0"], p["fvu"]) for name, p in points.items() if str(index[name].get("hook_in")) == group
            )
            axes.plot(*zip(*mine, strict=True), "o-", color=colour, linewidth=1.2, clip_on=False)
            if len(groups) <= len(PLACES):
                _label(axes, *mine[-1], group, colour)
        axes.set_xlim(0, 1.35 * max(p["l0"] for p in points.values()))
        axes.set_ylim(0, 1.15 * max(p["fvu"] for p in points.values()))
        axes.set_xlabel("active latents per token (L0)")
        axes.set_ylabel("FVU")

    listed = "; ".join(
        f"{escape(place)} {facts.number(figures['fvu'])} at L0 {facts.number(figures['l0'])}"
        for place, figures in list(points.items())[:12]
    )
    return Plot("l0_fvu.png", f"Variance not explained against active latents: {listed}.", _png(draw))


def zf_plot(norms: CodeNorms | Mapping[str, CodeNorms]) -> Plot | None:
    """Length of the code against that of the activation, a point for a token (the ZF plot of Lee et al. 2025, arXiv 2503.24277).

    On the diagonal a code is as long as what it codes for; below it is under-activated, above over-activated. Both axes are
    logarithmic. `None` where there is no token of a length above 0.

    Args:
        norms ([`CodeNorms`][hf_sae.evaluation.CodeNorms] or `dict` of them): several by name, such as their places.
    """
    several = dict(norms) if isinstance(norms, Mapping) else {"": norms}
    clouds = {
        name: (part.dense[kept], part.code[kept]) for name, part in several.items() if (kept := _long(part)).any()
    }
    if not clouds:
        return None
    ends = torch.cat([torch.cat(cloud) for cloud in clouds.values()])
    low, high = float(ends.min()) / 1.25, float(ends.max()) * 1.25

    def draw(axes: Axes) -> None:
        _plain_decades(axes)
        axes.plot((low, high), (low, high), color=QUIET, linewidth=1.2)
        for place, (name, (dense, code)) in enumerate(clouds.items()):
            few, step = len(clouds) <= len(PLACES), math.ceil(len(dense) / MOST_TOKENS)
            colour = PLACES[place] if few else QUIET
            x, y = dense[::step].tolist(), code[::step].tolist()
            axes.plot(x, y, "o", color=colour, markersize=3, alpha=0.35, markeredgewidth=0)
            if few:  # where no point comes to lie but over-activated ones
                where = (0.02, 0.85 - 0.1 * place)
                axes.text(*where, name, transform=axes.transAxes, va="top", color=colour, parse_math=False)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("length of the activation")
        axes.set_ylabel("length of the code")
        axes.text(0.02, 0.97, "over-activated", transform=axes.transAxes, va="top", color="#333333")
        axes.text(0.98, 0.04, "under-activated", transform=axes.transAxes, ha="right", color="#333333")

    listed = "; ".join(_lengths(name, part) for name, part in list(several.items())[:12])
    return Plot("zf.png", f"Length of the code against that of the activation, by token: {listed}.", _png(draw))


def _plain_decades(axes: Axes) -> None:
    """Logarithmic axes with 1, 2 and 5 of every decade, written out."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def _long(norms: CodeNorms) -> Tensor:
    return (norms.dense > 0) & (norms.code > 0) & norms.dense.isfinite() & norms.code.isfinite()


def _lengths(name: str, norms: CodeNorms) -> str:
    found = norms.to_dict()
    means = f"{facts.number(found['mean_code_norm'])} against {facts.number(found['mean_dense_norm'])} on average"
    return f"{escape(name)}{': ' if name else ''}{means}, {found['under_activated']:.0%} of the tokens under-activated"


def _point(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    pair = [metrics[key].value for key in ("l0", "fvu") if key in metrics and metrics[key].value is not None]
    return (pair[0], pair[1]) if len(pair) == 2 else None


def _finite(row: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(row.get(key), int | float) and math.isfinite(row[key]) for key in keys)


def _label(axes: Axes, x: float, y: float, words: str, colour: str, dy: float = 0, bold: bool = False) -> None:
    axes.annotate(
        words,
        (x, y),
        (9, dy),
        textcoords="offset points",
        va="center",
        color=colour,
        weight="bold" if bold else "normal",
        annotation_clip=False,
        parse_math=False,  # names come from elsewhere
    )


def _share(power: int) -> str:
    return "all" if power == 0 else f"{10.0 ** (power + 2):g} %"


def _png(draw: Callable[[Axes], None]) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(fname=STYLE):
        figure = Figure()
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
