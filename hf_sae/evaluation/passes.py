"""The two passes over the tokens: find the means, then replace and compare."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..activations.columns import is_gradient
from ..activations.gradients import read_columns, require_loss
from ..errors import DataError
from ..hooks import Call, capture, edit, read
from ..hosts import unwrap
from ..hosts.towers import host_device
from ..metrics import next_token_divergence, next_token_losses
from .bootstrap import DocumentSums
from .samples import EvalBatch, Sample, place_positions, trim
from .trial import Trial


@contextmanager
def inference(*modules: nn.Module) -> Generator[None]:
    """Evaluation mode without gradients; every submodule gets its own mode back afterwards."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def why_not_language_model(host: nn.Module) -> str | None:
    """Why next-token losses are not defined for a host (without wrappers); `None` for a causal language model."""
    name = type(host).__name__
    if not isinstance(host, PreTrainedModel) or host.get_output_embeddings() is None:
        return f"{name} has no language-model head."
    if getattr(host.config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder: its next-token loss needs a target text."
    if not host.can_generate():
        return f"{name} is a masked language model: it does not predict the next token."
    return None


def on_device(host: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a host where it is, those that are no ids in its dtype."""
    device, dtype = host_device(host), getattr(unwrap(host), "dtype", torch.float32)
    return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


def first_pass(
    source: Iterable[EvalBatch], host: nn.Module, trials: list[Trial], n_tokens: int, progress: bool
) -> Sample:
    """Draw batches until `n_tokens` are kept and survey them; the host runs only as far as the last hook point.

    Raises:
        DataError: if no token is kept.
    """
    points = points_of(trials)
    if any(map(is_gradient, points)):
        require_loss(host)
    sample = Sample()
    with tqdm(total=n_tokens, desc="activations", unit="tok", disable=not progress) as bar:
        for drawn in source:
            batch = trim(drawn, n_tokens - sample.kept)
            activations = read_columns(host, points, **on_device(host, batch.inputs))
            batch = place_positions(batch, activations[points[0]].shape[:-1])
            before = sample.kept
            sample.add(batch)
            bar.update(min(sample.kept, n_tokens) - before)
            for trial in trials:
                trial.survey(activations, batch.keep_known)
            if sample.kept >= n_tokens:
                break
    if not sample.kept:
        raise DataError("the dataset gave no token to evaluate: it is empty, or positions= leaves nothing in.")
    return sample


def survey(sample: Sample, host: nn.Module, trials: list[Trial], progress: bool) -> None:
    """The first pass on another host, over tokens that are gathered already."""
    points = points_of(trials)
    with tqdm(total=sample.kept, desc="activations", unit="tok", disable=not progress) as bar:
        for batch in sample.batches:
            activations = read_columns(host, points, **on_device(host, batch.inputs))
            for trial in trials:
                trial.survey(activations, batch.keep_known)
            bar.update(int(batch.keep_known.sum()))


def gather(
    source: Iterable[EvalBatch], host: nn.Module, points: list[str], n_tokens: int, progress: bool
) -> dict[str, Tensor]:
    """Activations `[tokens, width]` of some places on the same `n_tokens` kept tokens, on the CPU.

    Raises:
        DataError: if no token is kept.
    """
    kept: dict[str, list[Tensor]] = {point: [] for point in points}
    count = 0
    with tqdm(total=n_tokens, desc="activations", unit="tok", disable=not progress) as bar:
        for drawn in source:
            batch = trim(drawn, n_tokens - count)
            activations = read(host, points, **on_device(host, batch.inputs))
            batch = place_positions(batch, activations[points[0]].shape[:-1])
            for point in points:
                values = activations[point]
                kept[point].append(values[batch.keep_known.to(values.device)].float().cpu())
            count += int(batch.keep_known.sum())
            bar.update(min(count, n_tokens) - bar.n)
            if count >= n_tokens:
                break
    if not count:
        raise DataError("the dataset gave no token: it is empty, or positions= leaves nothing in.")
    return {point: torch.cat(parts) for point, parts in kept.items()}


def second_pass(sample: Sample, host: nn.Module, trials: list[Trial], language: bool, progress: bool) -> None:
    """Reconstruct every kept token and, in a language model, replace it and compare the losses.

    The clean, zero-ablated and mean-ablated runs of a batch are shared by the autoencoders of the same places.
    Several places are replaced together, by the reconstructions of their clean activations; and each by itself.
    """
    points = points_of(trials)
    with tqdm(total=sample.kept, desc="metrics", unit="tok", disable=not progress) as bar:
        for batch in sample.batches:
            activations, clean = clean_run(host, batch, points, language)
            ablated: dict[tuple[str, ...], dict[str, Tensor]] = {}
            for trial in trials:
                keep, documents = batch.keep_known, batch.documents_known
                reconstructions = trial.measure(activations, keep, documents)
                if clean is not None:
                    if (written := tuple(trial.places_out)) not in ablated:
                        ablated[written] = _ablations(host, batch, trial, clean)
                    _compare(host, batch, trial, clean, reconstructions, ablated[written])
            bar.update(int(batch.keep_known.sum()))


def points_of(trials: list[Trial]) -> list[str]:
    """Every place that one of them reads or writes, and what else it needs there, once."""
    return list(dict.fromkeys(point for trial in trials for point in trial.columns))


def clean_run(
    host: nn.Module, batch: EvalBatch, points: list[str], language: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """What was asked for, `{place: [batch, length, d]}`, and the logits where `language`."""
    inputs = on_device(host, batch.inputs)
    if not language:
        return read_columns(host, points, **inputs), None
    if any(map(is_gradient, points)):
        return read_columns(host, points, **inputs), host(**inputs, use_cache=False).logits
    with capture(host, *points) as activations:
        logits = host(**inputs, use_cache=False).logits
        return {point: activations[point] for point in points}, logits


def _edited_logits(host: nn.Module, batch: EvalBatch, values: Mapping[str, Tensor]) -> Tensor:
    """Logits with the kept positions of some places replaced by values that broadcast to `[batch, length, d]`."""
    keep = batch.keep_known.unsqueeze(-1)

    def replacing(new: Tensor) -> Callable[[Tensor, Call], Tensor]:
        return lambda activations, _: torch.where(keep.to(activations.device), new.to(activations), activations)

    with ExitStack() as stack:
        for point, new in values.items():
            stack.enter_context(edit(host, point, replacing(new)))
        return host(**on_device(host, batch.inputs), use_cache=False).logits


def _ablations(host: nn.Module, batch: EvalBatch, trial: Trial, clean: Tensor) -> dict[str, Tensor]:
    zero, mean = dict.fromkeys(trial.places_out, torch.zeros(())), trial.by_place(trial.mean)
    ids = batch.inputs["input_ids"]
    return {
        "ce_clean": next_token_losses(clean, ids),
        "ce_zero": next_token_losses(_edited_logits(host, batch, zero), ids),
        "ce_mean": next_token_losses(_edited_logits(host, batch, mean), ids),
    }


def _compare(
    host: nn.Module,
    batch: EvalBatch,
    trial: Trial,
    clean: Tensor,
    reconstructions: dict[str, Tensor],
    ablated: dict[str, Tensor],
) -> None:
    keep = batch.keep_known
    for name, reconstruction in reconstructions.items():
        values = reconstruction.new_zeros(*keep.shape, reconstruction.shape[-1])
        values[keep.to(values.device)] = reconstruction
        replaced = trial.by_place(values)
        _add_losses(trial.sums[name], host, batch, clean, replaced, ablated)
        if name == "sae" and len(replaced) > 1:
            for place, part in replaced.items():
                alone = {"ce_clean": ablated["ce_clean"]}
                _add_losses(trial.place_sums[place], host, batch, clean, {place: part}, alone)


def _add_losses(
    sums: DocumentSums,
    host: nn.Module,
    batch: EvalBatch,
    clean: Tensor,
    replaced: dict[str, Tensor],
    known: dict[str, Tensor],
) -> None:
    """Runs the host with some places replaced, and adds what that costs to what is known of the batch."""
    predicted, documents = predictions(batch)
    edited = _edited_logits(host, batch, replaced)
    losses = {
        **known,
        "ce_sae": next_token_losses(edited, batch.inputs["input_ids"]),
        "kl": next_token_divergence(clean, edited),
    }
    flat = {key: value.cpu()[predicted] for key, value in losses.items()}
    sums.add(documents, {"predictions": torch.ones(len(documents)), **flat})


def predictions(batch: EvalBatch) -> tuple[Tensor, Tensor]:
    """Where a next token is predicted that is not padding, `[batch, length - 1]`, and the documents of these tokens."""
    keep, mask = batch.keep_known, batch.attention_mask
    real = torch.ones_like(keep) if mask is None else mask.bool().cpu()
    predicted = real[:, 1:] & real[:, :-1]
    return predicted, batch.documents_known[:, 1:][predicted]
