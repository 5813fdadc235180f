"""`EvalReport`: what an evaluation found, and everything needed to repeat it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import DataError
from ..metrics import METRIC_KEYS
from .bootstrap import LEVEL, RESAMPLES
from .writing import WIDTH, aligned, json_safe, number, write_json


if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MEANINGS = {
    "l0": "latents firing on a token",
    "fvu": "variance not explained",
    "explained_variance": "1 - fvu",
    "mse": "squared error per dimension",
    "cosine": "mean cosine with the target",
    "relative_bias": "below 1: norms are shrunk",
    "ce_clean": "host's own loss, nats/token",
    "ce_sae": "loss on the reconstruction",
    "ce_zero": "loss, place set to zero",
    "ce_mean": "loss, place at its mean",
    "ce_recovered": "share of zero's cost saved",
    "ce_recovered_mean": "share of mean's cost saved",
    "kl": "KL(clean||sae), nats/token",
    "delta_ce": "loss added by the sae, nats",
    "dead_fraction": "latents that never fired",
    "density": "mean firing share",
}
FORMAT = 1
_TABLES = ("controls", "places")  # metrics by name


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval; `None` where it is not defined or not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float | None, interval: tuple[float, float] | None = None) -> Metric:
        """A metric whose number may be NaN or infinite, which becomes `None`."""
        if value is None or not math.isfinite(value):
            return cls(None)
        return cls(value) if interval is None else cls(value, *interval)

    def __float__(self) -> float:
        return math.nan if self.value is None else self.value


@dataclass(repr=False)
class EvalReport:
    """The metrics of one autoencoder in one host, with the tokens they were measured on.

    Args:
        metrics (`dict[str, Metric]`): by the keys of [`hf_sae.metrics.METRIC_KEYS`].
        n_tokens (`int`): positions that were scored and replaced.
        n_documents (`int`): documents they come from; intervals resample these.
        counts (`dict[str, int]`): `seen` (not padding), `masked` (seen and left out), `predicted` (next tokens scored),
            `norm_outliers` (kept tokens with an input norm above ten times the median).
        seed (`int`): of the data order, the bootstrap and the random control.
        dataset, host, sae (`dict`): name, revision and what else identifies each.
        sha256 (`str`): of the evaluated inputs.
        context_length (`int`): tokens per row.
        positions: which positions were kept.
        versions (`dict[str, str]`): python, torch, transformers, hf_sae.
        notes (`list[str]`): what a reader has to know about these numbers.
        controls (`dict[str, dict[str, Metric]]`): the same measures of baselines on the same tokens.
        places (`dict[str, dict[str, Metric]]`): of an autoencoder that writes several places, the error at each and what
            replacing it alone costs; `metrics` are those of all places together.
        density (`dict`): distribution over latents of the share of tokens on which they fire.
        feature_stats (`dict[str, Tensor]`): `density`, `maximum` `[d_sae]`, `input_norm`, `tokens`; not in [`to_dict`].
    """

    metrics: dict[str, Metric]
    n_tokens: int
    n_documents: int
    counts: dict[str, int]
    seed: int
    dataset: dict[str, Any]
    host: dict[str, Any]
    sae: dict[str, Any]
    sha256: str
    context_length: int
    positions: Any = "all"
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    controls: dict[str, dict[str, Metric]] = field(default_factory=dict)
    places: dict[str, dict[str, Metric]] = field(default_factory=dict)
    density: dict[str, Any] = field(default_factory=dict)
    feature_stats: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, key: str) -> float | None:
        """The value of one metric."""
        return self.metrics[key].value

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values; a number that is not finite is `None`."""
        plain = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"feature_stats", "metrics", *_TABLES}
        }
        metrics = {key: asdict(metric) for key, metric in self.metrics.items()}
        tables = {
            table: {name: {k: asdict(m) for k, m in values.items()} for name, values in getattr(self, table).items()}
            for table in _TABLES
        }
        interval = {"level": LEVEL, "method": "percentile bootstrap over documents", "resamples": RESAMPLES}
        return json_safe({"format": FORMAT, "metrics": metrics, "interval": interval, **plain, **tables})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvalReport:
        """A report from what [`to_dict`] gave, without `feature_stats`.

        Raises:
            DataError: if `data` is not such a dictionary.
        """
        if data.get("format") != FORMAT:
            raise DataError(f"not an evaluation report of format {FORMAT}: its 'format' is {data.get('format')!r}.")
        known = {f.name for f in fields(cls)} - {"metrics", "feature_stats", *_TABLES}
        try:
            metrics = {key: Metric(**value) for key, value in data["metrics"].items()}
            tables: dict[str, Any] = {
                table: {n: {k: Metric(**m) for k, m in c.items()} for n, c in data.get(table, {}).items()}
                for table in _TABLES
            }
            return cls(metrics=metrics, **tables, **{key: data[key] for key in known if key in data})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"an evaluation report with missing or misshapen parts: {error}.") from error

    def to_json(self, path: str | Path) -> None:
        """Write [`to_dict`] to a file, whole or not at all."""
        write_json(self.to_dict(), path)

    def to_table(self) -> str:
        """The metrics, their intervals and what they mean, as plain text of at most 80 columns; below, controls and places."""
        rows = [("metric", "value", "95% interval", "")]
        for key in METRIC_KEYS:
            metric = self.metrics.get(key, Metric(None))
            rows.append((key, number(metric.value), _interval(metric), MEANINGS[key]))
        lines = aligned(rows, "<>><")
        lines += _beside("same tokens", {"sae": self.metrics, **self.controls} if self.controls else {})
        if self.places:  # a row for each: there may be as many as the host has layers
            table = _by_place(self.places)
            lines += ["", *aligned(table, "<" + ">" * (len(table[0]) - 1))]
        tokens = f"{self.n_tokens:,} tokens, {self.n_documents:,} documents, seed {self.seed}"
        notes = [line for note in self.notes for line in textwrap.wrap(note, WIDTH)]
        return "\n".join([tokens, "", *lines, *([""] if notes else []), *notes])

    def to_model_index(self, model_name: str | None = None) -> list[EvalResult]:
        """The metrics as `huggingface_hub.EvalResult`s for the `model-index` of a card; undefined ones are left out.

        Args:
            model_name (`str`, *optional*): recorded as the evaluated model in `metric_args`; the report's own name of it
                when not given.
        """
        from huggingface_hub import EvalResult

        name = str(self.dataset.get("name") or "unnamed")
        shared = {"sae": model_name or self.sae.get("name"), "seed": self.seed, "n_tokens": self.n_tokens}
        results = []
        for key, metric in self.metrics.items():
            if metric.value is None:
                continue
            interval = {} if metric.low is None else {"ci95_low": metric.low, "ci95_high": metric.high}
            results.append(
                EvalResult(
                    task_type="feature-extraction",
                    task_name="Sparse reconstruction",
                    dataset_type=name,
                    dataset_name=name,
                    dataset_config=self.dataset.get("config"),
                    dataset_split=self.dataset.get("split"),
                    dataset_revision=self.dataset.get("revision"),
                    metric_type=key,
                    metric_name=f"{key} ({MEANINGS[key]})",
                    metric_value=metric.value,
                    metric_args=json_safe({**shared, **interval}),
                )
            )
        return results

    def __repr__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        names = list(self.controls)
        head = "".join(f"<th>{escape(str(cell))}</th>" for cell in ("metric", "value", "95% interval", *names, ""))
        rows = []
        for key in METRIC_KEYS:
            metric = self.metrics.get(key, Metric(None))
            beside = [number(self.controls[name].get(key, Metric(None)).value) for name in names]
            cells = (key, number(metric.value), _interval(metric), *beside, MEANINGS[key])
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
        title = escape(
            f"{self.sae.get('name') or 'SAE'} in {self.host.get('name') or 'host'}, {self.n_tokens:,} tokens"
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        table = f"<table><caption>{title}</caption><tr>{head}</tr>{''.join(rows)}</table>"
        return f"{table}{_places_html(self.places)}<ul>{notes}</ul>"


def _beside(title: str, table: Mapping[str, Mapping[str, Metric]]) -> list[str]:
    """Metrics of several things beside each other, those that all but the first have; nothing for an empty table."""
    if not table:
        return []
    rest = list(table.values())[-1]
    body = [
        (key, *(number(values.get(key, Metric(None)).value) for values in table.values()))
        for key in METRIC_KEYS
        if key in rest
    ]
    return ["", *aligned([(title, *table), *body], "<" + ">" * len(table))]


def _by_place(places: Mapping[str, Mapping[str, Metric]]) -> list[tuple[str, ...]]:
    """A heading and a row for each place, with the metrics that there are of places."""
    keys = [key for key in METRIC_KEYS if any(key in values for values in places.values())]
    rows = [
        (place, *(number(values.get(key, Metric(None)).value) for key in keys)) for place, values in places.items()
    ]
    return [("each place", *keys), *rows]


def _places_html(places: Mapping[str, Mapping[str, Metric]]) -> str:
    if not places:
        return ""
    head, *rows = _by_place(places)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f"{number(metric.low)} to {number(metric.high)}"
