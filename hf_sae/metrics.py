"""Pure functions on tensors that say how good a reconstruction is; training and evaluation share them.

Every metric is a ratio of sums over tokens, so that it does not depend on how tokens were cut into batches:
[`reconstruction_statistics`], [`next_token_losses`] and [`next_token_divergence`] give one number per token, and
[`summarise`] turns their sums into the metrics. The same call serves one set of sums and a thousand bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


METRIC_KEYS = (
    "l0",
    "fvu",
    "explained_variance",
    "mse",
    "cosine",
    "relative_bias",
    "ce_clean",
    "ce_sae",
    "ce_zero",
    "ce_mean",
    "ce_recovered",
    "ce_recovered_mean",
    "kl",
    "delta_ce",
    "dead_fraction",
    "density",
)
LANGUAGE_KEYS = METRIC_KEYS[6:14]
_CHUNK_ELEMENTS = 1 << 25


def wide(x: Tensor) -> Tensor:
    """`x` in fp64, on the CPU where the device has no fp64 (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def reconstruction_statistics(reconstruction: Tensor, target: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Per-token sums behind the reconstruction metrics, in fp64.

    Args:
        reconstruction (`Tensor`): `[tokens, d_out]`.
        target (`Tensor`): `[tokens, d_out]`; for a transcoder the output of the module, not its input.
        mean (`Tensor`): `[d_out]`, the mean target of the dataset. Centring before squaring is what keeps the variance
            right when the activations have a large common offset.

    Returns:
        `dict[str, Tensor]`: `[tokens]` each: `tokens` (ones), `dimensions` (`d_out`), `error` `||y - ŷ||²`, `variance`
        `||y - mean||²`, `cosine` (0 where either vector is 0), `energy` `||ŷ||²`, `overlap` `<ŷ, y>`.
    """
    y = wide(target)
    y_hat = wide(reconstruction).to(y.device)
    energy, overlap, norm = y_hat.square().sum(-1), (y_hat * y).sum(-1), y.square().sum(-1)
    product = (energy * norm).sqrt()
    return {
        "tokens": torch.ones_like(energy),
        "dimensions": torch.full_like(energy, y.shape[-1]),
        "error": (y - y_hat).square().sum(-1),
        "variance": (y - mean.to(y)).square().sum(-1),
        "cosine": torch.where(product > 0, overlap / product.clamp_min(torch.finfo(product.dtype).tiny), 0.0),
        "energy": energy,
        "overlap": overlap,
    }


def _rows_per_chunk(logits: Tensor) -> int:
    return max(1, _CHUNK_ELEMENTS // logits.shape[-1])


@torch.no_grad()
def next_token_losses(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Cross-entropy in nats of every next token, in fp32 whatever the dtype of the logits.

    The fp32 copy is made for a bounded number of positions at a time.

    Args:
        logits (`Tensor`): `[batch, length, vocabulary]`.
        input_ids (`Tensor`): `[batch, length]`.

    Returns:
        `Tensor`: `[batch, length - 1]`, entry `t` is the loss of token `t + 1`.
    """
    predictions = logits[:, :-1].flatten(0, 1)
    labels = input_ids[:, 1:].to(logits.device).flatten()
    size = _rows_per_chunk(logits)
    chunks = [
        torch.nn.functional.cross_entropy(scores.float(), label, reduction="none")
        for scores, label in zip(predictions.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(chunks).view(logits.shape[0], -1)


@torch.no_grad()
def next_token_divergence(clean: Tensor, edited: Tensor) -> Tensor:
    """`KL(clean || edited)` in nats at every position that predicts a token, in fp32.

    Args:
        clean (`Tensor`): `[batch, length, vocabulary]` logits of the untouched host.
        edited (`Tensor`): the same of the edited host.

    Returns:
        `Tensor`: `[batch, length - 1]`.
    """
    size = _rows_per_chunk(clean)
    pairs = zip(clean[:, :-1].flatten(0, 1).split(size), edited[:, :-1].flatten(0, 1).split(size), strict=True)
    chunks = []
    for p_logits, q_logits in pairs:
        log_p, log_q = p_logits.float().log_softmax(-1), q_logits.float().log_softmax(-1)
        # a vocabulary entry that the host rules out has log p = -inf, and 0 · (-inf - -inf) would be NaN
        terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
        chunks.append(terms.sum(-1))
    return torch.cat(chunks).view(clean.shape[0], -1)


def summarise(totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The metrics from sums over tokens.

    `fvu` is `Σ||y - ŷ||² / Σ||y - mean||²` over the dataset (not the mean of per-token ratios, which explodes on tokens near
    the mean) and `explained_variance` is `1 - fvu`; `mse` is per dimension and token; `cosine` the mean per-token cosine;
    `relative_bias` `Σ||ŷ||² / Σ<ŷ, y>` (Rajamanoharan et al. 2024, arXiv:2404.16014: 1 is unbiased, below 1 is shrinkage);
    `ce_*` and `kl` are nats per predicted token; `ce_recovered` `(ce_zero - ce_sae) / (ce_zero - ce_clean)` and
    `ce_recovered_mean` the same against mean ablation; `delta_ce` `ce_sae - ce_clean`.

    Args:
        totals (`Mapping[str, Tensor]`): sums, of any common shape, of the keys of [`reconstruction_statistics`], of `l0`, and
            of `predictions`, `ce_clean`, `ce_sae`, `ce_zero`, `ce_mean`, `kl` where the host is a language model. A metric whose
            sums are missing is left out.

    Returns:
        `dict[str, Tensor]`: metrics in the shape of the sums. A ratio whose denominator is 0 is NaN or infinite.
    """
    out: dict[str, Tensor] = {}
    if "l0" in totals:
        out["l0"] = totals["l0"] / totals["tokens"]
    out["fvu"] = totals["error"] / totals["variance"]
    out["explained_variance"] = 1 - out["fvu"]
    out["mse"] = totals["error"] / totals["dimensions"]
    out["cosine"] = totals["cosine"] / totals["tokens"]
    out["relative_bias"] = totals["energy"] / totals["overlap"]
    for key in ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl"):
        if key in totals:
            out[key] = totals[key] / totals["predictions"]
    for key, baseline in (("ce_recovered", "ce_zero"), ("ce_recovered_mean", "ce_mean")):
        if {"ce_clean", "ce_sae", baseline} <= totals.keys():
            out[key] = (out[baseline] - out["ce_sae"]) / (out[baseline] - out["ce_clean"])
    if {"ce_clean", "ce_sae"} <= totals.keys():
        out["delta_ce"] = out["ce_sae"] - out["ce_clean"]
    return {key: out[key] for key in METRIC_KEYS if key in out}


def reconstruction_metrics(reconstruction: Tensor, target: Tensor, mean: Tensor | None = None) -> dict[str, Tensor]:
    """`fvu`, `explained_variance`, `mse`, `cosine` and `relative_bias` of one batch, as scalars.

    Args:
        reconstruction (`Tensor`): `[..., d_out]`.
        target (`Tensor`): `[..., d_out]`.
        mean (`Tensor`, *optional*): `[d_out]` mean target; the mean of this batch when it is not given.
    """
    y, y_hat = target.flatten(0, -2), reconstruction.flatten(0, -2)
    centre = wide(y).mean(0) if mean is None else mean
    return summarise({key: value.sum() for key, value in reconstruction_statistics(y_hat, y, centre).items()})


def fvu(reconstruction: Tensor, target: Tensor, mean: Tensor | None = None) -> Tensor:
    """Fraction of the target's variance that is not explained, a scalar; arguments as in [`reconstruction_metrics`]."""
    return reconstruction_metrics(reconstruction, target, mean)["fvu"]


def l0(latents: Tensor) -> Tensor:
    """Mean number of latents that fire (are non-zero) per token, a scalar, from dense latents `[..., d_sae]`."""
    return (latents != 0).sum(-1).float().mean()


def density(firing_counts: Tensor, tokens: int) -> Tensor:
    """Share of tokens on which each latent fires, `[d_sae]`, from the number of tokens on which it did."""
    return wide(firing_counts) / tokens


def dead_fraction(firing_counts: Tensor) -> float:
    """Share of latents that never fired, from the number of tokens on which each did, `[d_sae]`."""
    return (firing_counts == 0).sum().item() / firing_counts.numel()
