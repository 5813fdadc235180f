"""`check`: whether a checkpoint is read right, by measuring it beside its near misses.

A wrong reading - a bias subtracted that should not be, a transposed matrix, the neighbouring layer, a dropped norm - still gives
numbers, only worse ones. The right one explains most of the activations, at the L0 that was published.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..hosts import compare_fingerprints, fingerprint, unwrap
from ..metrics import reconstruction_statistics, summarise
from ..models.modeling_sae import SAE
from ..models.modeling_topk import TopKSAE
from .core import DEFAULT_CONTEXT, evaluate
from .passes import gather, inference, why_not_language_model
from .readings import AS_LOADED, Reading, other_places, readings
from .samples import open_source
from .trial import OUTLIER_NORM, Trial, places_of, single_points


TIE = 1.02  # readings this close are equally good: some differ by rounding only
NONE_FITS = 0.9  # share of variance left over above which nothing was read
_ELEMENTS = 1 << 25
_WIDTH = 80


@dataclass(frozen=True)
class Measured:
    """A reading with its figures; `score` is what they are ranked by, lower is better."""

    name: str
    l0: float
    fvu: float
    score: float

    @property
    def fits(self) -> bool:
        """Whether it explains anything: what does not is never the better reading, whatever its L0."""
        return self.fvu <= NONE_FITS


@dataclass
class CheckReport:
    """What was measured, best reading first.

    Args:
        ok (`bool`): whether no other reading fits better than the one that was loaded, and it fits at all.
        verdict (`str`): the same in a sentence.
        readings (`list[Measured]`): every reading that could be measured; those that explain something come first.
        loaded (`dict`): `l0`, `fvu` and, for a language model, `delta_ce`, `ce_recovered` of the autoencoder as loaded.
        n_tokens (`int`): kept tokens, and `outliers` left out of them for the ranking.
        published_l0 (`float`, *optional*): what L0 was compared with.
        notes (`list[str]`): what may explain a difference.
        revision (`str`, *optional*): commit of the repo that the autoencoder came from.
    """

    ok: bool
    verdict: str
    readings: list[Measured]
    loaded: dict[str, float | None]
    n_tokens: int
    outliers: int
    published_l0: float | None = None
    notes: list[str] = field(default_factory=list)
    revision: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite is `None`."""
        rows = [{key: _finite(value) for key, value in vars(row).items()} for row in self.readings]
        return {**vars(self), "readings": rows, "loaded": {k: _finite(v) for k, v in self.loaded.items()}}

    def to_table(self, width: int = _WIDTH) -> str:
        """The readings as plain text of at most `width` columns, with the verdict below."""
        name_width = min(max(len(row.name) for row in self.readings), width - 30)
        lines = [f"{'reading':<{name_width}}  {'L0':>8}  {'FVU':>8}  {'score':>8}"]
        for row in self.readings:
            mark = "→ " if row.name == AS_LOADED else ""
            name = textwrap.shorten(mark + row.name, name_width, placeholder="…")
            lines.append(f"{name:<{name_width}}  {row.l0:>8.4g}  {row.fvu:>8.3g}  {row.score:>8.3g}")
        facts = [f"{self.n_tokens:,} tokens ({self.outliers} of outlying norm left out)"]
        facts += [f"commit {self.revision[:8]}"] if self.revision else []
        facts += [f"published L0 {self.published_l0:g}"] if self.published_l0 else []
        facts += [f"{key} {value:.4g}" for key, value in self.loaded.items() if value is not None]
        text = [", ".join(facts), self.verdict, *self.notes]
        return "\n".join([*lines, "", *(line for part in text for line in textwrap.wrap(part, width))])


def check(
    sae: SAE,
    host: nn.Module,
    tokenizer: Any = None,
    dataset: Any = None,
    *,
    n_tokens: int = 4096,
    published_l0: float | None = None,
    context_length: int | None = None,
    split: str | None = None,
    column: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CheckReport:
    """Measures an autoencoder as loaded and as it would be with one thing read differently.

    Args:
        sae ([`SAE`]): as loaded.
        host (`nn.Module`): the one it was trained on.
        tokenizer: the host's.
        dataset: as in [`evaluate`]; text like that of training tells most.
        n_tokens (`int`): kept tokens.
        published_l0 (`float`, *optional*): L0 to compare with; by default the one in `config.provenance["conversion"]`.
        context_length (`int`, *optional*): tokens per row; that of training where it is recorded.
        split (`str`, *optional*): of a dataset given by name.
        column (`str`, *optional*): text column.
        seed (`int`): of the data order.
        progress (`bool`): show bars.

    Raises:
        ValueError: for `n_tokens` below 1, or a `published_l0` that is not positive.
        HookPointError: for a place that is missing, has another width than the autoencoder, or several of them.
        DataError: for a dataset without tokens, or activations that are not finite.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1.")
    if published_l0 is not None and not 0 < published_l0 < math.inf:
        raise ValueError(f"published_l0={published_l0:g} must be above 0: leave it out where none was published.")
    single_points(sae)
    provenance = sae.config.provenance or {}
    published = published_l0 or ((provenance.get("conversion") or {}).get("published") or {}).get("l0")
    length = context_length or (provenance.get("data") or {}).get("context_length") or DEFAULT_CONTEXT
    options: dict[str, Any] = {"split": split, "column": column, "seed": seed}
    source, _ = open_source(
        dataset, tokenizer, context_length=min(length, 1024), batch_size=8, positions="all", **options
    )
    with inference(host, sae):
        acts = gather(source, host, sorted(other_places(sae, host)), n_tokens, progress)
        n_tokens = len(acts[str(sae.config.hook_in)])  # fewer where the text ends
        Trial(sae, *places_of(sae)).inputs(acts, torch.ones(n_tokens, dtype=torch.bool))  # refuses other widths
        acts, outliers = _without_outliers(acts, str(sae.config.hook_in))
        found = list(readings(sae, host, acts[str(sae.config.hook_in)], published is not None))
        # a TopK has at most k latents in every reading: how many of them are positive says little
        wanted = None if isinstance(sae, TopKSAE) else published
        rows = [_measure(reading, acts, wanted) for reading in tqdm(found, "readings", disable=not progress)]
    rows = sorted(rows, key=lambda row: (not row.fits, row.score, row.name != AS_LOADED))
    mine = next(row for row in rows if row.name == AS_LOADED)
    ok, verdict = _judge(rows, mine)
    loaded: dict[str, float | None] = {"l0": mine.l0, "fvu": mine.fvu}
    if why_not_language_model(unwrap(host)) is None:
        report = evaluate(
            sae,
            host,
            tokenizer,
            dataset,
            n_tokens=n_tokens,
            context_length=min(length, 1024),
            progress=progress,
            **options,
        )
        loaded |= {key: report[key] for key in ("delta_ce", "ce_recovered")}
    notes = _notes(sae, host, tokenizer, dataset, published, mine)
    commit = getattr(sae.config, "_commit_hash", None)
    return CheckReport(ok, verdict, rows, loaded, n_tokens, outliers, published, notes, commit)


def _without_outliers(acts: dict[str, Tensor], point: str) -> tuple[dict[str, Tensor], int]:
    """Without tokens of a huge norm (attention sinks), which would decide every squared error alone."""
    norms = acts[point].norm(dim=-1)
    keep = norms <= OUTLIER_NORM * norms.median()
    return {name: values[keep] for name, values in acts.items()}, int((~keep).sum())


@torch.no_grad()
def _measure(reading: Reading, acts: dict[str, Tensor], published: float | None) -> Measured:
    sae, (source, target) = reading.sae, reading.points
    x, y = acts[source], sae.comparable(acts[target])
    totals: dict[str, Tensor] = {}
    mean = y.double().mean(0)
    for part, wanted in zip(*(t.split(max(1, _ELEMENTS // sae.config.d_sae)) for t in (x, y)), strict=True):
        output = sae(part.to(sae.device, sae.dtype))
        sums = reconstruction_statistics(output.reconstruction.cpu(), wanted, mean)
        sums["l0"] = output.code.counts().cpu().double()
        totals = {key: totals.get(key, 0) + value.sum() for key, value in sums.items()}
    found = summarise(totals)
    l0, fvu = found["l0"].item(), found["fvu"].item()
    score = fvu
    if published:
        score *= max(l0 / published, published / l0) if l0 else math.inf
    return Measured(reading.name, l0, fvu, score if math.isfinite(score) else math.inf)


def _judge(rows: list[Measured], mine: Measured) -> tuple[bool, str]:
    best = rows[0]
    if not best.fits:
        least = min((row.fvu for row in rows if math.isfinite(row.fvu)), default=math.inf)
        return False, (
            f"No reading fits: the best leaves {least:.0%} of the variance. Is this the host it was trained on?"
        )
    if mine.fits and mine.score <= TIE * best.score:
        other = next((row for row in rows if row.score > TIE * mine.score), None)
        clear = (
            "" if other is None else f" The next, {other.name!r}, scores {other.score / mine.score:.3g} times as high."
        )
        return True, f"It is read right: no other reading fits better.{clear}"
    return False, (
        f"It fits better {_in_words(best.name)}: score {best.score:.3g} instead of {mine.score:.3g} as loaded."
    )


def _in_words(name: str) -> str:
    return f"with {name!r}"


def _notes(
    sae: SAE, host: nn.Module, tokenizer: Any, dataset: Any, published: float | None, mine: Measured
) -> list[str]:
    notes = []
    recorded = (sae.config.provenance or {}).get("host")
    if isinstance(recorded, dict) and (found := compare_fingerprints(recorded, fingerprint(host, tokenizer))):
        notes.append(f"Another host than in training: {'; '.join(found)}.")
    if published and not 1 / 1.5 < mine.l0 / published < 1.5:
        notes.append(f"L0 is {mine.l0:.4g}, published was {published:g}.")
    if published and dataset is None:
        notes.append("Measured on source code: L0 on the text of training may differ.")
    return notes


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
