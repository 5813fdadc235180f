"""`compare_hosts`: what fine-tuning did to a host, latent by latent of an autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..features import Example, TopContexts, describe_latent
from ..hosts import unwrap
from ..hosts.fingerprints import warn_of_another_host
from ..metrics import summarise
from ..models.modeling_sae import SAE
from ..versions import versions
from .bootstrap import intervals
from .comparison import Comparison, Run, change_stores, compare_runs, plain_host
from .core import DEFAULT_CONTEXT, recorded
from .diff_report import Change, DiffReport, LatentChange
from .paired import MEASURES, PairedSums
from .passes import first_pass, inference, survey, why_not_language_model
from .report import Metric
from .samples import Sample, open_source
from .significance import benjamini_hochberg, critical_t, two_sided_p
from .summary import describe, notes_on
from .trial import places_of, single_points


HOST_KEYS = ("ce_clean", "kl", "fvu", "l0")
_FEW = 10  # degrees of freedom
_WORSE = 1.25  # times the share of variance missed before: then the autoencoder does not tell all


def compare_hosts(
    sae: SAE,
    host: nn.Module,
    finetuned: nn.Module,
    tokenizer: Any = None,
    dataset: Any = None,
    *,
    n_tokens: int = 100_000,
    context_length: int | None = None,
    batch_size: int = 16,
    positions: Any = None,
    column: str | None = None,
    split: str | None = None,
    seed: int = 0,
    top: int = 10,
    false_discovery_rate: float = 0.05,
    progress: bool = True,
) -> DiffReport:
    """Which latents fire more, less, stronger or weaker in a fine-tuned host than in the plain one, on the same tokens.

    For each latent: the share of tokens on which it fires and its mean activation over all kept tokens (0 where it does
    not fire), before and after, with 95 % intervals of the change and p-values with documents as the unit
    ([`hf_sae.evaluation.significance`]), and q-values (Benjamini and Hochberg) over all latents that fired at all. A latent
    counts as changed where the q-value of its mean is below `false_discovery_rate`. Changed latents are ranked by the size
    of the change of their mean in standard deviations over tokens (Cohen's d), whichever way it went: a p-value ranks by
    how sure a change is, and every latent changes a little; a raw difference ranks by the unit of the latent.

    The activations are of one autoencoder, trained on the plain host: where `fvu` is much larger after, it misses part of
    what is new there.

    Args:
        sae ([`SAE`]): trained on `host`.
        host (`nn.Module`): any model in which its place exists.
        finetuned (`nn.Module`): the host with a PEFT adapter on it - the same modules, so that the adapter is switched off
            for the plain runs - or another model with the same tokenizer.
        tokenizer: of both; may be `None` when `dataset` holds batches of host inputs (then there are no examples).
        dataset: as in [`evaluate`]: text of the kind that matters, plain or in the style of fine-tuning.
        n_tokens (`int`): kept tokens; many documents tell more than long ones.
        context_length, batch_size, positions, column, split, seed: as in [`evaluate`].
        top (`int`): changed latents that the report lists.
        false_discovery_rate (`float`): expected share of latents among the changed ones that are not.
        progress (`bool`): show bars, in tokens.

    Raises:
        ValueError: for `n_tokens`, `batch_size` or `top` below 1.
        ConfigError: if `finetuned` is `host` and has no adapter that can be switched off.
        HookPointError: for a place that is missing or has another width than the autoencoder.
        DataError: for a dataset without tokens, or activations that are not finite.
    """
    for name, value in (("n_tokens", n_tokens), ("batch_size", batch_size), ("top", top)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    single_points(sae)
    before, after = Run(sae, *places_of(sae)), Run(sae, *places_of(sae))
    warn_of_another_host(sae, host, tokenizer)
    data: dict[str, Any] = {
        "context_length": context_length or recorded({"sae": sae}, "context_length", DEFAULT_CONTEXT),
        "positions": positions if positions is not None else recorded({"sae": sae}, "positions", "all"),
    }
    options: dict[str, Any] = {"batch_size": batch_size, "column": column, "split": split, "seed": seed}
    source, info = open_source(dataset, tokenizer, **data, **options)
    with inference(host, finetuned, sae):
        with plain_host(host, finetuned) as plain:
            sample = first_pass(source, plain, [before], n_tokens, progress)
        sample.info = {"positions": data["positions"], **info}
        survey(sample, finetuned, [after], progress)
        found = Comparison(before, after, PairedSums(sample, sae.config.d_sae), change_stores(sae, sample))
        no_language = why_not_language_model(unwrap(host))
        compare_runs(found, sample, host, finetuned, no_language is None and sample.has_text, progress)
    identity = {"host": describe(unwrap(host)), "finetuned": _describe(host, finetuned), "sae": _describe_sae(sae)}
    return _summarise(found, sample, identity, tokenizer, (seed, top, false_discovery_rate), no_language)


def _describe(host: nn.Module, finetuned: nn.Module) -> dict[str, Any]:
    """A whole model as any other; of an adapter its kind, rank and where it acts."""
    if unwrap(host) is not unwrap(finetuned):
        return describe(unwrap(finetuned))
    configs = getattr(finetuned, "peft_config", None) or {}
    return {
        "adapters": {
            name: {
                "type": getattr(config.peft_type, "value", config.peft_type),
                "rank": getattr(config, "r", None),
                "target_modules": sorted(modules)
                if isinstance(modules := config.target_modules, set | list)
                else modules,
            }
            for name, config in configs.items()
        }
    }


def _describe_sae(sae: SAE) -> dict[str, Any]:
    return describe(sae) | dict(zip(("hook_in", "hook_out"), single_points(sae), strict=True))


def _summarise(
    found: Comparison,
    sample: Sample,
    identity: dict[str, Any],
    tokenizer: Any,
    choice: tuple[int, int, float],
    no_language: str | None,
) -> DiffReport:
    seed, top, rate = choice
    statistics = _statistics(found.latents)
    changed = statistics["mean_q"].nan_to_num(1) < rate
    effect = statistics["effect"]
    order = torch.where(changed, effect.abs(), -1.0).sort(descending=True, stable=True).indices
    gained, counted = changed & (effect > 0), int(changed.sum())
    metrics = _host_metrics(found, seed)
    clusters = found.latents.clusters
    return DiffReport(
        latents=_latents(found, statistics, order[: min(top, counted)].tolist(), tokenizer),
        counts={
            "changed": counted,
            "gained": int(gained.sum()),
            "lost": counted - int(gained.sum()),
            "tested": int(found.latents.fired.sum()),
            "d_sae": found.latents.d_sae,
        },
        host_metrics=metrics,
        false_discovery_rate=rate,
        degrees_of_freedom=clusters.degrees_of_freedom,
        n_tokens=sample.kept,
        n_documents=len(clusters.sizes),
        seed=seed,
        dataset=sample.info,
        **identity,
        sha256=sample.sha256,
        context_length=sample.context_length,
        positions=sample.info.get("positions"),
        versions=versions(),
        notes=notes_on(sample, no_language, flattered=False) + _notes(metrics, clusters.degrees_of_freedom),
        statistics=statistics,
    )


def _statistics(sums: PairedSums) -> dict[str, Tensor]:
    """`[d_sae]` columns: what the report calls `statistics`."""
    out: dict[str, Tensor] = {"effect": sums.effect()}
    tokens, df, fired = sums.clusters.tokens, sums.clusters.degrees_of_freedom, sums.fired
    for number, (name, error) in enumerate(zip(MEASURES, sums.standard_errors(), strict=True)):
        before, after = sums.totals[:, number] / tokens
        p, q = torch.full((2, sums.d_sae), torch.nan, dtype=torch.float64)
        if df > 0:
            # where nothing changed in any document there is no doubt either: 0 / 0
            p[fired] = two_sided_p(((after - before) / error).nan_to_num(0, posinf=torch.inf, neginf=-torch.inf), df)[
                fired
            ]
            q[fired] = benjamini_hochberg(p[fired])
        columns = {"before": before, "after": after, "se": error, "p": p, "q": q}
        out |= {f"{name}_{key}": value for key, value in columns.items()}
    return out


def _latents(
    found: Comparison, statistics: dict[str, Tensor], latents: list[int], tokenizer: Any
) -> list[LatentChange]:
    df = found.latents.clusters.degrees_of_freedom
    reach = critical_t(df) if df > 0 else None
    changes = []
    for latent in latents:
        rate, mean = (_change(statistics, name, latent, reach) for name in MEASURES)
        effect = statistics["effect"][latent].item()
        label, examples = _examples(found, latent, effect > 0, tokenizer)
        changes.append(LatentChange(latent, rate, mean, Metric.of(effect).value, label, examples))
    return changes


def _change(statistics: dict[str, Tensor], name: str, latent: int, reach: float | None) -> Change:
    before, after, error, p, q = (
        statistics[f"{name}_{key}"][latent].item() for key in ("before", "after", "se", "p", "q")
    )
    difference = after - before
    interval = None if reach is None else (difference - reach * error, difference + reach * error)
    tested = reach is not None
    return Change(before, after, Metric.of(difference, interval), p if tested else None, q if tested else None)


def _examples(found: Comparison, latent: int, gained: bool, tokenizer: Any) -> tuple[str, list[Example]]:
    """A label of the contexts in which a latent changed most in one direction, and these contexts."""
    if found.stores is None or tokenizer is None:
        return "", []
    contexts = TopContexts(found.stores[0 if gained else 1], tokenizer)[latent]
    return describe_latent(contexts), contexts.examples


def _host_metrics(found: Comparison, seed: int) -> dict[str, dict[str, Metric]]:
    """The metrics of the hosts by `before`, `after`, `difference`; documents are drawn together for both."""
    table = {
        f"{side} {key}": column
        for side, run in (("before", found.before), ("after", found.after))
        for key, column in run.sums["sae"].table().items()
    }
    values = _both({key: column.sum() for key, column in table.items()})
    ranges = intervals(table, _both, seed)
    metrics: dict[str, dict[str, Metric]] = {}
    for name, value in values.items():
        side, _, key = name.partition(" ")
        metrics.setdefault(key, {})[side] = Metric.of(value.item(), ranges[name])
    return {key: metrics[key] for key in HOST_KEYS if key in metrics}


def _both(totals: Any) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    sides = {}
    for side in ("before", "after"):
        own = {key.removeprefix(f"{side} "): value for key, value in totals.items() if key.startswith(f"{side} ")}
        sides[side] = {key: value for key, value in summarise(own).items() if key in HOST_KEYS}
        out |= {f"{side} {key}": value for key, value in sides[side].items() if key != "kl"}
    for key, value in sides["after"].items():
        # the divergence is one number of both hosts
        out[f"difference {key}"] = value if key == "kl" else value - sides["before"][key]
    return out


def _notes(metrics: dict[str, dict[str, Metric]], df: float) -> list[str]:
    notes = []
    before, after = (metrics["fvu"][side].value for side in ("before", "after"))
    if before is not None and after is not None and after > _WORSE * before:
        notes.append(
            f"The autoencoder misses {after:.0%} of the variance of the fine-tuned host, {before:.0%} of the plain one: part of "
            "what is new has no latent here."
        )
    if 0 < df < _FEW:
        notes.append(
            f"Few or a few very long documents carry these tests ({df:.1f} degrees of freedom): only large changes are found. "
            "More documents help, more tokens of the same do not."
        )
    return notes
