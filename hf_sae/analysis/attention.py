"""Which heads, and which source tokens, a latent of an attention-output SAE comes from.

Kissane et al. 2024, "Interpreting attention layer outputs with sparse autoencoders" (arXiv 2406.17759). The SAE reads `attn_z.N`:
the heads' outputs side by side, `[..., n_heads · d_head]`, which is the input of the output projection (with grouped keys and
values too: a head is a query head). A pre-activation is linear in that, so it is a sum over heads, and given the attention
pattern each head's part is a sum over source positions: direct feature attribution (DFA).

* `u_i = Σ_h scale · z_h · W_enc[h, i] + bias_i`, and `z_h[dst] = Σ_src pattern[h, dst, src] v_h[src]`: both sums are exact.
* The pattern comes from the host's own eager attention, for the length of one forward: fused kernels do not give it out.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..errors import ConfigError, HookPointError
from ..hooks import capture
from ..hosts import resolve, unwrap
from ..models import SAE


OBSERVED = "hf_sae_observed"


@dataclass
class Attention:
    """What one attention module did in one forward.

    Args:
        pattern (`Tensor`): `[batch, n_heads, dst, src]`.
        values (`Tensor`): `[batch, n_heads, src, d_head]`, those of a group repeated for each of its heads.
    """

    pattern: Tensor
    values: Tensor


@dataclass
class HeadAttribution:
    """What a latent's pre-activation is made of.

    Args:
        heads (`Tensor`): `[batch, dst, n_heads, latents]`, each head's part.
        sources (`Tensor`): `[batch, dst, n_heads, src, latents]`, of it each source position's.
        bias (`Tensor`): `[latents]`; with the sum over heads, the pre-activation.
        latents (`Tensor`): which ones.
    """

    heads: Tensor
    sources: Tensor
    bias: Tensor
    latents: Tensor = field(repr=False)


_OBSERVED: dict[nn.Module, list[Attention]] = {}


def head_shares(sae: SAE, n_heads: int) -> Tensor:
    """`[d_sae, n_heads]`: the length of a latent's decoder row in each head over the sum of them, `‖W_dec[i, h]‖ / Σ_h`.

    Args:
        sae ([`SAE`]): that writes `attn_z`.
        n_heads (`int`): query heads of the host.

    Raises:
        ConfigError: if its width is no multiple of that.
    """
    norms = torch.linalg.vector_norm(_by_head(sae.W_dec, n_heads, sae), dim=-1)
    return norms / norms.sum(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


@torch.no_grad()
def head_attribution(sae: SAE, host: nn.Module, latents: Tensor | list[int], **inputs: Any) -> HeadAttribution:
    """Direct feature attribution of some latents by head and by source position.

    Args:
        sae ([`SAE`]): reads `attn_z.N` of the host, with `input_norm` `"none"` or `"scalar"`.
        host (`PreTrainedModel`): whose attention goes through transformers' attention interface.
        latents (`Tensor` or `list`): which ones, a few: the sources of each take `[batch, dst, n_heads, src]`.
        inputs: of the host's forward, `[batch, length]`.

    Raises:
        ConfigError: for an SAE that is not linear in its input up to the pre-activation.
        HookPointError: if it reads several places or another one than heads, or the host does not give its pattern out.
    """
    point = sae.config.hook_in
    if not isinstance(point, str):
        raise HookPointError(f"hook_in={point!r}: attribution to heads needs one place, such as 'attn_z.8'.")
    scale = _scale(sae)
    with observe_attention(host, point) as seen, capture(host, point) as activations:
        host(**inputs)
    if not seen:
        raise HookPointError(
            f"no attention was seen before {point!r}: it has to be the input of an output projection, such as 'attn_z.8', of a "
            "host whose attention goes through transformers' AttentionInterface."
        )
    z, attention = activations[point], seen[0]
    n_heads, chosen = attention.pattern.shape[1], torch.as_tensor(latents, device=sae.device)
    readers = _by_head(sae.W_enc.T[chosen] * scale, n_heads, sae).to(z.device)  # [latents, n_heads, d_head]
    heads = torch.einsum("bthd,lhd->bthl", z.unflatten(-1, (n_heads, -1)).to(readers.dtype), readers)
    carried = torch.einsum("bhsd,lhd->bhsl", attention.values.to(readers.dtype), readers)
    sources = torch.einsum("bhts,bhsl->bthsl", attention.pattern.to(readers.dtype), carried)
    return HeadAttribution(heads, sources, _bias(sae)[chosen].to(z.device), chosen)


@contextmanager
def observe_attention(host: nn.Module, point: str) -> Generator[list[Attention]]:
    """Runs the host with its own eager attention, and keeps what the module before a place `attn_z.N` did, call by call.

    Yields:
        `list` of [`Attention`], filled while the host runs; empty for another place, or a host whose attention does not go
        through transformers' interface.
    """
    model: Any = unwrap(host)
    site = resolve(host, point)
    module = site.owner.get_submodule(_path_in(site.owner, site.module).rpartition(".")[0])
    seen: list[Attention] = []
    AttentionInterface.register(OBSERVED, _attend)
    AttentionMaskInterface.register(OBSERVED, eager_mask)
    before, outer = model.config._attn_implementation, _OBSERVED.get(module)
    try:
        _OBSERVED[module] = seen
        model.set_attn_implementation(OBSERVED)
        yield seen
    finally:
        model.set_attn_implementation(before)
        if outer is None:
            del _OBSERVED[module]
        else:
            _OBSERVED[module] = outer


def _attend(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The layer's own eager attention; what an observed layer did is kept."""
    own: Any = getattr(sys.modules[type(layer).__module__], "eager_attention_forward", None)
    if own is None:
        raise HookPointError(f"{type(layer).__name__} has no eager attention of its own, so its pattern is not known.")
    out, pattern = own(layer, query, key, value, *args, **kwargs)
    if layer in _OBSERVED:
        _OBSERVED[layer].append(Attention(pattern, value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)))
    return out, pattern


def _path_in(owner: nn.Module, module: nn.Module) -> str:
    return next(name for name, part in owner.named_modules() if part is module)


def _by_head(rows: Tensor, n_heads: int, sae: SAE) -> Tensor:
    """`[..., n_heads, d_head]` of `[..., width]`."""
    if rows.shape[-1] % n_heads:
        raise ConfigError(
            f"{type(sae).__name__} is {rows.shape[-1]} wide, which {n_heads} heads do not share equally."
        )
    return rows.unflatten(-1, (n_heads, -1))


def _scale(sae: SAE) -> float:
    """Of the input before the encoder."""
    config, linear = sae.config, sae.encoder_is_plain()
    if not linear or config.input_norm not in ("none", "scalar"):
        raise ConfigError(
            f"{type(sae).__name__} with input_norm={config.input_norm!r}: its pre-activations are no sum over heads. Train with "
            "'none' or 'scalar' and a linear encoder."
        )
    return float(config.input_scale) if config.input_norm == "scalar" else 1.0


def _bias(sae: SAE) -> Tensor:
    """`[d_sae]`: the pre-activations of an input of zeros."""
    shift = sae.b_dec @ sae.W_enc if sae.config.subtracts_bias else 0.0
    return sae.b_enc - shift
