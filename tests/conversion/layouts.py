"""What the tests of all formats share: random weights, their plain forward, and how close is equal."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_sae import AutoSAE


def weights(d_in: int, d_sae: int, d_out: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """`W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`, biases and thresholds, none of them near a special value."""
    g = torch.Generator().manual_seed(seed)
    d_out = d_out or d_in
    return {
        "W_enc": torch.randn(d_in, d_sae, generator=g) / d_in**0.5,
        "W_dec": torch.randn(d_sae, d_out, generator=g) * torch.linspace(0.4, 1.7, d_sae)[:, None] / d_out**0.5,
        "b_enc": torch.randn(d_sae, generator=g) / 4,
        "b_dec": torch.randn(d_out, generator=g),
        "threshold": torch.rand(d_sae, generator=g) / 2 + 0.05,
    }


def inputs(d_in: int, seed: int = 1) -> Tensor:
    """Activations `[2, 5, d_in]` with a mean that is not zero."""
    return torch.randn(2, 5, d_in, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.3


def jump(pre: Tensor, threshold: Tensor | float) -> Tensor:
    """`relu(u) · 1[u > θ]`."""
    return torch.relu(pre) * (pre > threshold)


def top(pre: Tensor, k: int) -> Tensor:
    """The k largest, rectified; the rest zero."""
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())


def rms(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without gain."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal to a few millionths of the largest entry (float32 sums a thousand terms), and not trivially."""
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-6 * float(expected.abs().max().clamp_min(1)))


def check(sae: AutoSAE, x: Tensor, latents: Tensor, reconstruction: Tensor) -> None:
    """Encode, decode and forward give what the format's own formula gave; some latents fire and some do not."""
    assert 0 < (latents != 0).float().mean() < 1
    with torch.no_grad():
        close(sae.encode(x), latents)
        code = sae.encode_sparse(x)
        close(code.to_dense(), latents)
        close(sae(x).reconstruction, reconstruction)
        if sae.skip is None:
            close(sae.decode(code), reconstruction)


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def save_pt(path: Path, content: object) -> None:
    """A torch file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def transforms(sae: AutoSAE) -> list[str]:
    """What the conversion did, in words."""
    return sae.config.provenance["conversion"]["transforms"]
