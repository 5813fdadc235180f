"""One plain TopK autoencoder as four tensors, and the metrics of it: the same code judges every implementation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Weights:
    """`x̂ = top_k(relu((x - b_dec) @ encoder.T + b_enc)) @ decoder + b_dec`, ranked by those very numbers."""

    encoder: Tensor  # [d_sae, d]
    b_enc: Tensor  # [d_sae]
    decoder: Tensor  # [d_sae, d]
    b_dec: Tensor  # [d]


@dataclass
class Quality:
    """Figures on held-out activations: unexplained share of the variance, latents per token, share that never fires."""

    fvu: float
    l0: float
    dead: float


@torch.no_grad()
def judge(weights: Weights, x: Tensor, k: int, chunk: int = 2048) -> Quality:
    """Metrics of `weights` on `x` `[tokens, d]`, in float32."""
    weights = Weights(*(tensor.detach().float() for tensor in vars(weights).values()))
    error, active = 0.0, 0
    fired = torch.zeros(weights.encoder.shape[0], dtype=torch.bool, device=x.device)
    for rows in x.split(chunk):
        pre = F.linear(rows - weights.b_dec, weights.encoder, weights.b_enc)
        values, indices = pre.topk(k, dim=-1, sorted=False)
        values = values.relu()
        out = F.embedding_bag(indices, weights.decoder, per_sample_weights=values, mode="sum") + weights.b_dec
        error += float((rows - out).double().square().sum())
        active += int((values > 0).sum())
        fired[indices[values > 0]] = True
    variance = float((x - x.mean(0)).double().square().sum())
    return Quality(error / variance, active / x.shape[0], 1 - float(fired.float().mean()))
