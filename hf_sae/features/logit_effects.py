"""What a latent does to the logits by itself: its decoder row through the final norm's gain and the unembedding.

The direct path only: later layers that read the latent are left out, which matters most for early layers.

How the final norm is handled: a norm centres its input (LayerNorm; not RMSNorm), divides it by its size, and multiplies by a
gain. Centring and gain are linear and are applied; the division, a positive factor that is the same for all latents of a
token, is left out. So the effect is exact for a residual stream of size 1 (of standard deviation 1, or root mean square 1)
whose size the latent does not change, and its ranking holds for any size. Biases and soft caps are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import HookPointError
from ..evaluation.passes import why_not_language_model
from ..hosts import resolve, unwrap
from ..hosts.hook_points import HookPoint
from ..hosts.resolution import places
from ..hosts.towers import choose_tower


if TYPE_CHECKING:
    from ..models.modeling_sae import SAE

LOGIT_BINS = 50
_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "final")  # itself, or added to it
_BYTES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Effects:
    """Of some latents, each `[m, …]` on the CPU.

    Args:
        promoted (`tuple[Tensor, Tensor]`): ids and effects `[m, n]` of the tokens that are raised most, strongest first.
        suppressed (`tuple[Tensor, Tensor]`): of those that are lowered most.
        counts (`Tensor`): `[m, 50]`, histogram over the vocabulary.
        ends (`Tensor`): `[m, 2]`, float64, least and largest effect, the ends of the histogram.
    """

    promoted: tuple[Tensor, Tensor]
    suppressed: tuple[Tensor, Tensor]
    counts: Tensor
    ends: Tensor


class LogitEffects:
    """Direct effects of the latents of one autoencoder, per unit of activation.

    For a transcoder, the rows of what it writes. An autoencoder that normalises each token's input has activations in units
    of that size.

    Args:
        sae ([`SAE`]): its decoder.
        host (`nn.Module`): a language model, in any wrapper.
        vocabulary (`int`): tokens that the tokenizer knows; a head may be padded beyond.

    Attributes:
        note (`str`): how the effects were made, or why there are none.
        rows (`Tensor`, *optional*): `[d_sae, d_model]`, the decoder after centring and gain; `None` where there are none.
    """

    def __init__(self, sae: SAE, host: nn.Module, vocabulary: int) -> None:
        self.vocabulary, self.rows, self.head = vocabulary, None, None
        model, place = unwrap(host), sae.config.hook_out or sae.config.hook_in
        if (why := why_not_language_model(model)) is not None:
            self.note = f"none: {why}"
            return
        rows = sae.W_dec.float()
        rows = rows if sae.config.undoes_norm_per_token else sae.to_output_units(rows)
        if not isinstance(place, str) or not _in_stream(model, place, rows.shape[-1]):
            self.note = f"none: {place!r} is not in the basis of the text model's residual stream"
            return
        self.head = _head(model)
        self.rows, self.note = _through_norm(model, place, rows)

    @torch.no_grad()
    def of(self, latents: Tensor, n: int) -> Effects | None:
        """Effects of some latents `[m]` with `n` tokens on each side, `_BYTES_AT_ONCE` of logits at a time."""
        if self.rows is None or self.head is None:
            return None
        like = _input_of(self.head, self.rows)
        found = []
        for part in latents.split(max(1, _BYTES_AT_ONCE // (4 * self.vocabulary))):
            rows = self.rows[part.to(self.rows.device)].to(like.device, like.dtype)
            # through the module, whatever holds its weights; without its bias
            logits = (self.head(rows) - self.head(torch.zeros_like(rows[:1]))).float()[:, : self.vocabulary]
            found.append(_describe(logits, min(n, logits.shape[1])))
        return Effects(
            _joined([effects.promoted for effects in found]),
            _joined([effects.suppressed for effects in found]),
            torch.cat([effects.counts for effects in found]),
            torch.cat([effects.ends for effects in found]),
        )


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    ids, values = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(values)


def _describe(logits: Tensor, n: int) -> Effects:
    high, low = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
    ends = torch.stack([logits.amin(1), logits.amax(1)], dim=1).double()
    span = (ends[:, 1:] - ends[:, :1]).clamp(min=torch.finfo(torch.float32).tiny)
    bins = ((logits - ends[:, :1]) / span * LOGIT_BINS).long().clamp(max=LOGIT_BINS - 1)
    counts = torch.zeros(len(logits), LOGIT_BINS, dtype=torch.long, device=logits.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    return Effects(
        (high.indices.cpu(), high.values.cpu()), (low.indices.cpu(), low.values.cpu()), counts.cpu(), ends.cpu()
    )


def _head(model: nn.Module) -> Any:
    return model.get_output_embeddings()  # ty: ignore[not-callable]


def _in_stream(model: nn.Module, place: str, width: int) -> bool:
    """Whether vectors at a place are in the residual stream's basis; a module path counts as what it is by meaning."""
    if getattr(_head(model), "in_features", width) != width:
        return False
    try:
        point = _by_meaning(model, place)
        return point.name in _STREAM and choose_tower(model, point).modality == "text"
    except HookPointError:  # no such meaning in this host
        return False


def _by_meaning(model: nn.Module, place: str) -> HookPoint:
    here = resolve(model, place).place
    if HookPoint.of(place).path is None:
        return HookPoint.of(place)
    same = (p.name for p in places(model) if (p.path, p.side) == (here.path, here.side))
    return HookPoint.of(next(same, place))


def _through_norm(model: nn.Module, place: str, rows: Tensor) -> tuple[Tensor, str]:
    """The rows after the linear part of the final norm, and what was done in words."""
    point = _by_meaning(model, place)
    if point.name == "final":
        return rows, "decoder row times unembedding; the place is behind the final norm"
    tower = choose_tower(model, point).prefix
    try:
        norm = resolve(model, f"{tower}:final" if tower else "final").module
    except HookPointError:
        return rows, "decoder row times unembedding; the host has no single final norm, and none is applied"
    gain, centred = norm_gain(norm, rows.shape[-1])
    if centred:
        rows = rows - rows.mean(-1, keepdim=True)
    how = "its centring and gain are applied" if centred else "its gain is applied"
    return (
        rows * gain.to(rows.device),
        f"decoder row through the final norm, times unembedding; {how}, its division by the size of its input is not",
    )


def _input_of(module: nn.Module, otherwise: Tensor) -> Tensor:
    """A tensor where a module takes its input: weights that accelerate put away are on `meta`, and it moves the input."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), otherwise)
    return parameter if parameter.device.type != "meta" else torch.empty(0, dtype=parameter.dtype)


@torch.no_grad()
def norm_gain(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """The gain `[width]` of a LayerNorm or RMSNorm of whatever class, and whether it centres, by what it does.

    Args:
        norm (`nn.Module`): maps `[..., width]` to the same shape.
        width (`int`): at least 2.
    """
    like = _input_of(norm, torch.empty(0))
    probe = torch.ones(width, dtype=like.dtype, device=like.device)
    probe[1::2] = -1
    if width % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])  # the mean of all stays 0
    probe = probe * 64  # beside which epsilon is small
    size = probe.double().square().mean().sqrt()
    half = (norm(probe[None]) - norm(-probe[None]))[0].double() / 2  # a bias is gone
    shifted = (norm(probe[None] + 64) - norm(-probe[None] + 64))[0].double() / 2
    centred = torch.allclose(shifted, half, rtol=1e-2, atol=1e-6)
    return (half * size / probe.double()).float(), centred
