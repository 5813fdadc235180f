"""`DiffReport`: which latents fine-tuning changed, and whether the autoencoder still fits the host."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..features.examples import Example
from ..terminal import Strip, columns, has_colour, shorten, visible
from .bootstrap import LEVEL, RESAMPLES
from .report import Metric
from .writing import WIDTH, aligned, json_safe, number, write_json


FORMAT = 1
MEANINGS = {
    "ce_clean": "host's loss, nats",
    "kl": "from before, nats",
    "fvu": "what the sae misses",
    "l0": "latents per token",
}
_INDENT = 8
_STRONG = 0.5  # smaller changes than this share of the largest are not marked


@dataclass(frozen=True)
class Change:
    """One measure of a latent on the same tokens.

    Args:
        before, after (`float`): per kept token, in the plain and in the fine-tuned host.
        difference ([`Metric`]): after minus before, with its 95 % interval.
        p, q (`float`, *optional*): of no difference; `None` where all tokens come from one document.
    """

    before: float
    after: float
    difference: Metric
    p: float | None
    q: float | None


@dataclass(frozen=True)
class LatentChange:
    """A latent that fine-tuning changed.

    Args:
        latent (`int`): which.
        rate ([`Change`]): share of the tokens on which it fires.
        mean ([`Change`]): mean activation over all kept tokens, 0 where it does not fire.
        effect (`float`, *optional*): change of the mean in standard deviations over tokens; `None` where that is infinite.
        label (`str`): what the tokens in `examples` have in common, as [`describe_latent`] says it.
        examples (`list` of [`Example`]): where its activation changed most in the direction of `effect`; their
            `activations` are differences, after minus before.
    """

    latent: int
    rate: Change
    mean: Change
    effect: float | None
    label: str = ""
    examples: list[Example] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        examples = [
            {
                "tokens": e.tokens,
                "token_ids": e.token_ids,
                "differences": e.activations,
                "peak": e.peak,
                "document": e.document,
            }
            for e in self.examples
        ]
        plain = {"latent": self.latent, "effect": self.effect, "rate": asdict(self.rate), "mean": asdict(self.mean)}
        return json_safe({**plain, "label": self.label, "examples": examples})


@dataclass(repr=False)
class DiffReport:
    """What fine-tuning changed in a host, as one autoencoder sees it.

    Args:
        latents (`list` of [`LatentChange`]): changed ones, by the size of `effect`; as many as were asked for.
        counts (`dict[str, int]`): `changed`, of these `gained` and `lost` (by the sign of the mean's change), `tested`
            (fired before or after), `d_sae`.
        host_metrics (`dict[str, dict[str, Metric]]`): `ce_clean`, `fvu`, `l0` by `before`, `after` and `difference`, `kl` as
            `difference`; of the loss only where the host is a language model.
        false_discovery_rate (`float`): q-values of `mean` below it count as changed.
        degrees_of_freedom (`float`): of the tests; less than the documents where some are long.
        n_tokens (`int`), n_documents (`int`): what was read; kept tokens.
        seed (`int`): of the data order and the bootstrap.
        dataset, host, finetuned, sae (`dict`): name, revision and what else identifies each.
        sha256 (`str`): of the inputs.
        context_length (`int`): tokens per row.
        positions: which positions were kept.
        versions (`dict[str, str]`): python, torch, transformers, hf_sae.
        notes (`list[str]`): what a reader has to know about these numbers.
        statistics (`dict[str, Tensor]`): `[d_sae]` each: `rate_before`, `rate_after`, `rate_se`, `rate_p`, `rate_q`, the same
            of `mean`, and `effect`; p and q are NaN where a latent was not tested. Not in [`to_dict`].
    """

    latents: list[LatentChange]
    counts: dict[str, int]
    host_metrics: dict[str, dict[str, Metric]]
    false_discovery_rate: float
    degrees_of_freedom: float
    n_tokens: int
    n_documents: int
    seed: int
    dataset: dict[str, Any]
    host: dict[str, Any]
    finetuned: dict[str, Any]
    sae: dict[str, Any]
    sha256: str
    context_length: int
    positions: Any = "all"
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values; a number that is not finite is `None`."""
        own = {"latents", "host_metrics", "statistics"}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        metrics = {key: {side: asdict(m) for side, m in sides.items()} for key, sides in self.host_metrics.items()}
        interval = {
            "level": LEVEL,
            "latents": "Student's t, jackknife over documents",
            "host_metrics": f"percentile bootstrap over documents, {RESAMPLES} resamples",
        }
        latents = [latent.to_dict() for latent in self.latents]
        return json_safe(
            {"format": FORMAT, **plain, "interval": interval, "host_metrics": metrics, "latents": latents}
        )

    def to_json(self, path: str | Path) -> None:
        """Write [`to_dict`] to a file, whole or not at all."""
        write_json(self.to_dict(), path)

    def to_table(self, width: int = WIDTH) -> str:
        """The hosts, the changed latents and where they changed most, as text of at most `width` columns."""
        head = f"{self.n_tokens:,} tokens, {self.n_documents:,} documents, seed {self.seed}"
        lines = [head, "", *self._host_lines(), "", *textwrap.wrap(self._verdict(), width)]
        if self.latents:
            lines += [
                "",
                *self._latent_lines(width),
                "",
                *textwrap.wrap(_LEGEND + (_COLOURED if has_colour() else _MARKED), width),
            ]
        notes = [line for note in self.notes for line in textwrap.wrap(note, width)]
        return "\n".join([*lines, *([""] if notes else []), *notes])

    def _host_lines(self) -> list[str]:
        rows = [("host", "before", "after", "change (95% interval)", "")]
        for key, meaning in MEANINGS.items():
            sides: Mapping[str, Metric] = self.host_metrics.get(key, {})
            if sides:
                before, after = (number(sides[side].value) if side in sides else "" for side in ("before", "after"))
                rows.append((key, before, after, _with_interval(sides["difference"]), meaning))
        return aligned(rows, "<>><<")

    def _verdict(self) -> str:
        counts = self.counts
        tested = f"of {counts['tested']:,} latents that fired (d_sae {counts['d_sae']:,})"
        if not counts["changed"]:
            return f"No latent changed, {tested}, at q < {self.false_discovery_rate:g}."
        shown = len(self.latents)
        which = "All of them" if shown == counts["changed"] else f"The {shown} that changed most"
        split = f"{counts['gained']:,} gained, {counts['lost']:,} lost"
        return (
            f"{counts['changed']:,} {tested} changed at q < {self.false_discovery_rate:g}: {split}. {which}, by the size of "
            "the effect:"
        )

    def _latent_lines(self, width: int) -> list[str]:
        rows = [("latent", "effect", "rate", "mean", "its change", "q")]
        for change in self.latents:
            rate, mean = change.rate, change.mean
            rows.append(
                (
                    str(change.latent),
                    "inf" if change.effect is None else f"{change.effect:+.2f}",
                    f"{_percent(rate.before)} → {_percent(rate.after)}",
                    f"{mean.before:.3g} → {mean.after:.3g}",
                    _with_margin(mean.difference),
                    _probability(mean.q),
                )
            )
        table = aligned(rows, ">>>><<")
        lines = [table[0]]
        for row, change in zip(table[1:], self.latents, strict=True):
            lines.append(row)
            if change.examples:
                lines += [" " * _INDENT + shorten(change.label, width - _INDENT), _context(change.examples[0], width)]
        return lines

    def __repr__(self) -> str:
        return self.to_table()


_LEGEND = (
    "effect: change of the mean activation in standard deviations over tokens. rate: share of tokens on which the latent fires. "
    "mean: of its activation over all kept tokens, its change with a 95% interval. Below: what it changed most at, and one such "
    "context, with the tokens of at least half the largest change"
)
_COLOURED, _MARKED = " shaded (blue: a decrease).", " in brackets (9 is the largest, - a decrease)."


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.0e}"


def _probability(q: float | None) -> str:
    if q is None:
        return "-"
    return f"{q:.3f}" if q >= 0.001 else f"{q:.0e}" if q > 0 else "0"


def _with_interval(metric: Metric) -> str:
    if metric.value is None or metric.low is None or metric.high is None:
        return "-" if metric.value is None else f"{metric.value:+.3g}"
    return f"{metric.value:+.3g} ({metric.low:.3g} to {metric.high:.3g})"


def _with_margin(metric: Metric) -> str:
    """For the intervals of latents, which reach as far up as down."""
    if metric.value is None or metric.high is None:
        return "-" if metric.value is None else f"{metric.value:+.3g}"
    return f"{metric.value:+.3g} ± {metric.high - metric.value:.2g}"


def _context(example: Example, width: int) -> str:
    """One line around the peak: as many tokens on each side as fit."""
    best, peak = "", abs(example.activations[example.peak])
    strong = [change if abs(change) >= _STRONG * peak else 0.0 for change in example.activations]
    for window in range(len(example.tokens)):
        strip = Strip(
            example.tokens,
            strong,
            peak=example.peak,
            special=example.special,
            window=window,
            width=10 * width,
        )
        if best and columns(str(strip)) > width - _INDENT:
            break
        best = str(strip)
    if columns(best) > width - _INDENT:
        best = shorten(visible(example.tokens[example.peak]), width - _INDENT)
    return " " * _INDENT + best
