"""From the sums of a trial to its report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..metrics import METRIC_KEYS, dead_fraction, summarise
from ..versions import versions
from .bootstrap import DocumentSums, intervals
from .report import EvalReport, Metric
from .samples import Sample, public_name
from .trial import Trial


FEW_DOCUMENTS = 20
PLACE_KEYS = ("fvu", "ce_sae", "kl", "delta_ce")
CONTROL_KEYS = ("l0", "fvu", "ce_recovered", "delta_ce")
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SMALLEST_DECADE = -6


def summarise_trial(trial: Trial, sample: Sample, host: dict[str, Any], notes: list[str], seed: int) -> EvalReport:
    """The report of one autoencoder after both passes."""
    table = trial.sums["sae"].table()
    stats = trial.feature_stats()
    values = _metrics(table, seed)
    d_sae, l0 = trial.sae.config.d_sae, values["l0"]
    values["dead_fraction"] = Metric(dead_fraction(stats["density"]))
    values["density"] = Metric(*(None if part is None else part / d_sae for part in (l0.value, l0.low, l0.high)))
    places = {"hook_in": _plain(trial.places_in), "hook_out": _plain(trial.places_out), "d_sae": d_sae}
    baselines = {name: _metrics(sums.table(), seed) for name, sums in trial.sums.items() if name != "sae"}
    counts = {"seen": sample.seen, "masked": sample.seen - sample.kept, "norm_outliers": trial.norm_outliers()}
    return EvalReport(
        metrics={key: values.get(key, Metric(None)) for key in METRIC_KEYS},
        n_tokens=sample.kept,
        n_documents=len(sample.documents()),
        counts=counts | {"predicted": int(table["predictions"].sum()) if "predictions" in table else 0},
        seed=seed,
        dataset=sample.info,
        host=host,
        sae=describe(trial.sae) | places,
        sha256=sample.sha256,
        context_length=sample.context_length,
        positions=_name(sample.info.get("positions")),
        versions=versions(),
        notes=list(notes),
        controls={
            name: {key: metrics[key] for key in CONTROL_KEYS if key in metrics} for name, metrics in baselines.items()
        },
        places={place: _at(sums, seed) for place, sums in trial.place_sums.items()},
        density=_density_summary(stats["density"]),
        feature_stats=stats,
    )


def notes_on(sample: Sample, no_language: str | None, *, flattered: bool) -> list[str]:
    """What a reader has to know about the numbers.

    Args:
        sample ([`Sample`]): the evaluated tokens.
        no_language (`str`, *optional*): why there are no loss metrics.
        flattered (`bool`): whether the linear control was fitted on the evaluated tokens.
    """
    notes = [] if no_language is None else [f"No loss metrics: {no_language}"]
    documents = len(sample.documents())
    if documents < 2:
        notes.append("No intervals: all tokens come from one document.")
    elif documents < FEW_DOCUMENTS:
        notes.append(f"Intervals rest on {documents} documents and are rough: use more tokens or shorter documents.")
    if flattered:
        notes.append("The linear control was fitted on the evaluated tokens, which flatters it.")
    return notes


def describe(model: nn.Module) -> dict[str, Any]:
    """Name, revision and numerics of a model, without paths of this machine."""
    config, weight = getattr(model, "config", None), next(model.parameters())
    return {
        "name": public_name(getattr(config, "_name_or_path", "") or type(model).__name__),
        "revision": getattr(config, "_commit_hash", None),
        "class": type(model).__name__,
        "dtype": str(getattr(model, "dtype", weight.dtype)).removeprefix("torch."),
        "device": weight.device.type,
        "attention": getattr(config, "_attn_implementation", None),
    }


def _plain(places: list[str]) -> str | list[str]:
    return places[0] if len(places) == 1 else places


def _at(sums: DocumentSums, seed: int) -> dict[str, Metric]:
    """What is measured at one place of several."""
    found = _metrics(sums.table(), seed)
    return {key: found[key] for key in PLACE_KEYS if key in found}


def _name(positions: Any) -> str:
    return getattr(positions, "__name__", None) or str(positions)


def _metrics(table: dict[str, Tensor], seed: int) -> dict[str, Metric]:
    values = summarise({key: column.sum() for key, column in table.items()})
    ranges = intervals(table, summarise, seed)
    return {key: Metric.of(value.item(), ranges[key]) for key, value in values.items()}


def _density_summary(density: Tensor) -> dict[str, Any]:
    """Quantiles of the density of all latents, and how many have one in each decade."""
    exact = density.double().sort().values
    quantiles = {f"{level:g}": exact[round(level * (len(exact) - 1))].item() for level in _QUANTILES}
    powers = range(_SMALLEST_DECADE, 1)
    edges = torch.tensor([10.0**power for power in powers], dtype=torch.float64)
    # densities are stored in fp32, where 0.1 lies above the fp64 edge
    bins = torch.bucketize(exact[exact > 0] * (1 - 1e-6), edges)
    counts = torch.bincount(bins, minlength=len(edges)).tolist()
    names = [f"up to 1e{_SMALLEST_DECADE}", *(f"1e{power - 1} to 1e{power}" for power in powers[1:])]
    return {
        "quantiles": quantiles,
        "histogram": {"0": int((exact == 0).sum()), **dict(zip(names, counts, strict=True))},
    }
