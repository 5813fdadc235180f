"""`evaluate`: how well an autoencoder reconstructs a place, and what the reconstruction costs the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import DataError
from ..hosts import fingerprint, unwrap
from ..hosts.fingerprints import warn_of_another_host
from ..models.modeling_sae import SAE
from .bootstrap import DocumentSums
from .controls import Moments, low_rank, random_dictionary
from .passes import first_pass, inference, second_pass, why_not_language_model
from .samples import open_source
from .summary import describe, notes_on, summarise_trial
from .trial import Trial, places_of


DEFAULT_CONTEXT = 128


def evaluate(
    sae: SAE | Mapping[str, SAE],
    host: nn.Module,
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
    controls: bool = False,
    control_sample: Tensor | tuple[Tensor, Tensor] | None = None,
    progress: bool = True,
) -> Any:
    """Measure an SAE or transcoder in its host, with 95 % intervals over documents.

    Kept positions (`positions`; by default everything but padding and BOS) are reconstructed and replaced, all others
    pass through; the loss is averaged over every next token that is not padding. The target is the activation at
    `hook_out`. Several places are read in one clean run, encoded once and replaced together by what was stored of that
    run; `report.places` has the error at each place and what it costs by itself. `sae.feature_stats` is set to the densities, maxima and norms that were seen.

    An autoencoder that chooses latents with the gradient of the host's loss (g-SAE with `inference="gradient"`) is given it, as of the clean
    run. Such a gradient looks at later tokens.

    Args:
        sae ([`SAE`] or `dict[str, SAE]`): several share the clean and ablated runs of the host and the tokens.
        host (`PreTrainedModel`): any model the hook points resolve in, in any wrapper. Without a causal language-model head the loss
            metrics are `None`.
        tokenizer: the host's; may be `None` when `dataset` holds batches of host inputs.
        dataset: whatever [`hf_sae.data.TokenDataset`] takes, one of those, or an iterable of `TokenBatch` or of host inputs
            (such as pixel values). `None` is the test split of the standard-library corpus.
        n_tokens (`int`): kept tokens; rows are evaluated whole, so that a few more are used.
        context_length (`int`, *optional*): tokens per row; the one of training where the config records it, else 128.
        batch_size (`int`): rows per host call; the result does not depend on it.
        positions (*optional*): as in `TokenDataset`; those of training where the config records them, else `"all"`.
        column (`str`, *optional*): text column.
        split (`str`, *optional*): of a dataset given by name; `"test"` when not given.
        seed (`int`): of the data order, the resampling and the random control.
        controls (`bool`): also score a low-rank linear map (PCA, for an SAE) and an untrained dictionary of equal L0.
        control_sample (`Tensor`, *optional*): activations `[tokens, d_in]` (for a transcoder a pair with the targets) from
            training data to fit the linear control on; without it, it is fitted on the evaluated tokens, which flatters it.
        progress (`bool`): show a bar, in tokens.

    Returns:
        [`EvalReport`][hf_sae.evaluation.EvalReport], or a `dict` of them by the names given.

    Raises:
        ValueError: for `n_tokens` or `batch_size` below 1.
        HookPointError: for a place that is missing or has another width than the autoencoder.
        DataError: for a dataset without tokens, or activations that are not finite.
    """
    for name, value in (("n_tokens", n_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    saes = dict(sae) if isinstance(sae, Mapping) else {"sae": sae}
    trials = {name: Trial(model, *places_of(model), wants_controls=controls) for name, model in saes.items()}
    identity = fingerprint(host, tokenizer)
    for model in saes.values():
        warn_of_another_host(model, host, tokenizer)
    context_length = context_length or recorded(saes, "context_length", DEFAULT_CONTEXT)
    positions = positions if positions is not None else recorded(saes, "positions", "all")
    options = {"batch_size": batch_size, "positions": positions, "column": column, "split": split, "seed": seed}
    source, info = open_source(dataset, tokenizer, context_length=context_length, **options)
    no_language = why_not_language_model(unwrap(host))
    with inference(host, *saes.values()):
        sample = first_pass(source, host, list(trials.values()), n_tokens, progress)
        for trial in trials.values():
            _fit_controls(trial, control_sample, seed)
        second_pass(sample, host, list(trials.values()), no_language is None and sample.has_text, progress)
    sample.info = {"positions": positions, **info}
    notes = notes_on(sample, no_language, flattered=controls and control_sample is None)
    described = describe(unwrap(host)) | {"fingerprint": identity}
    reports = {name: summarise_trial(trial, sample, described, notes, seed) for name, trial in trials.items()}
    for name, model in saes.items():
        model.feature_stats = reports[name].feature_stats
    return reports if isinstance(sae, Mapping) else reports["sae"]


def recorded(saes: Mapping[str, SAE], key: str, default: Any) -> Any:
    """What the configs say about the data of training, or `default` where they say nothing."""
    all_data = [(model.config.provenance or {}).get("data") or {} for model in saes.values()]
    found = [data[key] for data in all_data if data.get(key)]
    if any(value != found[0] for value in found):
        raise ValueError(f"these autoencoders were trained with different {key} ({found}): pass {key}=.")
    return found[0] if found else default


def _fit_controls(trial: Trial, given: Tensor | tuple[Tensor, Tensor] | None, seed: int) -> None:
    if not trial.wants_controls:
        return
    moments = trial.moments
    if given is not None:
        x, y = given if isinstance(given, tuple) else (given, given)
        widths = (trial.sae.config.d_in, trial.sae.config.d_out)
        if (x.shape[-1], y.shape[-1]) != widths or (
            trial.places_in != trial.places_out and not isinstance(given, tuple)
        ):
            raise DataError(
                f"control_sample is {x.shape[-1]} wide ({y.shape[-1]} for the target); the autoencoder maps {widths[0]} to "
                f"{widths[1]}. Give [tokens, d_in], or a pair (inputs, targets) for a transcoder."
            )
        moments = Moments()
        moments.add(x.flatten(0, -2), y.flatten(0, -2))
    rank = round(trial.l0_total / trial.tokens)
    linear = "linear" if trial.sae.config.is_transcoder else "pca"
    trial.controls = {
        linear: low_rank(moments, rank),
        "random": random_dictionary(trial.sae, trial.bias_total / trial.tokens, rank, seed),
    }
    for name in trial.controls:
        trial.sums[name] = DocumentSums()
