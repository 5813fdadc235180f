"""The tables of a card, from a report or an index of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import facts
from .markdown import code, escape, table


if TYPE_CHECKING:
    from ..evaluation import EvalReport, Metric

# what a reader wants to know first, short enough for a phone
HEADLINE = {
    "l0": "L0, latents per token",
    "fvu": "FVU, variance not explained",
    "delta_ce": "ΔCE, nats per token",
    "ce_recovered": "CE recovered, against zeros",
    "ce_recovered_mean": "CE recovered, against the mean",
    "dead_fraction": "latents that never fired",
}
CONTROLS = {"pca": "PCA", "linear": "linear map", "random": "random"}


def headline(report: EvalReport) -> str:
    """The few metrics that a reader looks for, with intervals, beside baselines on the same tokens."""
    beside = {name: values for name, values in report.controls.items() if values}
    rows = [["", "Value", "95 % interval", *(CONTROLS.get(name, escape(name)) for name in beside)]]
    for key, words in HEADLINE.items():
        metric = report.metrics.get(key)
        if metric is None or metric.value is None:
            continue
        others = [values.get(key) for values in beside.values()]
        cells = ["" if other is None or other.value is None else f"{other.value:.3g}" for other in others]
        value = f"{metric.value:.1%}" if key == "dead_fraction" else f"{metric.value:.3g}"
        span = "" if metric.low is None else f"{metric.low:.3g} to {metric.high:.3g}"
        rows.append([words, f"**{value}**", span, *cells])
    return table(rows, (False, *[True] * (len(rows[0]) - 1)))


def places(report: EvalReport) -> str | None:
    """A row for each of several places that are written: the error there, and what replacing it alone costs."""
    if not report.places:
        return None
    keys = {"fvu": "FVU", "delta_ce": "ΔCE alone"}
    rows = [["Each place", *keys.values()]]
    for place, values in report.places.items():
        found = [values.get(key) for key in keys]
        cells = ["" if metric is None or metric.value is None else f"{metric.value:.3g}" for metric in found]
        rows.append([code(place), *cells])
    return table(rows, (False, True, True))


def metrics(report: EvalReport) -> str:
    """Every metric that is defined, with its interval and what it means."""
    rows = [["Metric", "Value", "95 % interval", "Meaning"]]
    for key, metric in report.metrics.items():
        if metric.value is not None:
            rows.append([f"`{key}`", facts.number(metric.value), interval(metric), escape(facts.meaning(key))])
    return table(rows, (False, True, True, False))


def interval(metric: Metric) -> str:
    """`low to high`, or nothing."""
    return "" if metric.low is None else f"{facts.number(metric.low)} to {facts.number(metric.high)}"


def overview(places: Sequence[str], index: Mapping[str, Mapping[str, Any]]) -> str:
    """The autoencoders of a repo, a row each.

    Args:
        places (`list` of `str`): in the order of the rows.
        index (`Mapping`): what is known of each (`hf_sae.hub.collections`).
    """
    rows = [["Folder", "Kind", "Place", "Latents", "k", "L0", "FVU", "ΔCE"]]
    for place in places:
        entry = index[place]
        figures = entry.get("metrics") or {}
        where = _listed(entry.get("hook_in"))
        if entry.get("hook_out") not in (None, entry.get("hook_in")):
            where += f" → {_listed(entry['hook_out'])}"
        sizes = [entry.get("d_sae"), entry.get("k") or entry.get("target_l0")]
        sizes += map(figures.get, ("l0", "fvu", "delta_ce"))
        numbers = [facts.number(value) if isinstance(value, int | float) else "" for value in sizes]
        rows.append(
            [code(place), escape(str(entry.get("architecture") or "")), code(where) if where else "", *numbers]
        )
    used = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    return table([[row[i] for i in used] for row in rows], [i > 2 for i in used])


def _listed(places: Any) -> str:
    return ", ".join(map(str, places)) if isinstance(places, list) else str(places or "")
