"""TopK: the k largest pre-activations of each token, rectified.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093): `z = ReLU(top_k(W_enc (x - b_dec) +
b_enc))`. What the saved model does at inference is the same. Dead latents are revived by AuxK: the k_aux largest of
the dead latents' pre-activations reconstruct what the live ones left over.

* Where the encoder is a plain `nn.Linear`, only the selected rows get a gradient product (`sparse_ops`).
* AuxK is a compact dense product over the dead rows: its gradient reaches encoder and decoder of dead latents only.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_sae import SAE, Norm
from .outputs import Pass, TrainingState
from .screening import can_screen
from .sparse_code import SparseCode
from .sparse_ops import select_pre_activations, select_rows, settle, top_k


SCALE_TOKENS = 4096  # activations that the length of the encoder rows is fitted to


@strict_config
class TopKConfig(SAEConfig):
    """[`SAEConfig`] plus the number of active latents.

    Args:
        k (`int`): latents per token.
        k_start (`int`, *optional*): train with so many at first, and fewer with every step down to `k`.
        k_anneal_share (`float`): share of the training steps over which `k_start` falls to `k`.
        aux_coefficient (`float`): weight of the AuxK loss; the paper's 1/32. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is the paper's rule of thumb, `d_out / 2`.
    """

    model_type = "hf_sae_topk"

    k: int = 32
    k_start: int | None = None
    k_anneal_share: float | int = 0.1
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Every count of latents lies between 1 and `d_sae`."""
        require_annealing(self)
        require_auxk(self)


class TopKSAE(SAE):
    """An autoencoder with exactly `config.k` selected latents per token."""

    config: TopKConfig
    paper: ClassVar[str] = "Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093"
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")

    def __init__(self, config: TopKConfig) -> None:
        super().__init__(config)
        self.post_init()

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k` largest pre-activations."""
        return largest(self, pre_activations, self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code; `state.k` is used while a schedule changes it."""
        return select_top_k(self, x, self.config.k if state is None or state.k is None else state.k, norm)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK."""
        return auxk(self, result)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then encoder rows are shortened until the first reconstructions have the right length."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x)

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """`state.k`: linear from `k_start` to `k` over the first `k_anneal_share` of the steps."""
        state.k = annealed_k(self.config, state)


def require_annealing(config: Any) -> None:
    """For `validate_*` methods: `k`, `k_start` and `k_anneal_share` fit each other.

    Raises:
        ValueError: naming what does not.
    """
    require_between(config, 1, config.d_sae, "k", "k_start")
    if config.k_start is not None and config.k_start < config.k:
        raise ValueError(
            f"k_start={config.k_start} is below k={config.k}: annealing goes downwards. Leave it out or raise it."
        )
    require_between(config, 0, 1, "k_anneal_share")


def require_auxk(config: Any) -> None:
    """For `validate_*` methods: `k_aux` is a count of latents, `aux_coefficient` a weight.

    Raises:
        ValueError: naming what is not.
    """
    require_between(config, 1, config.d_sae, "k_aux")
    require_amounts(config, "aux_coefficient")


def annealed_k(config: Any, state: TrainingState) -> int:
    """Linear from `config.k_start` to `config.k` over the first `config.k_anneal_share` of the steps."""
    if config.k_start is None:
        return config.k
    steps = config.k_anneal_share * state.total_steps
    done = 1.0 if steps < 1 else min(1.0, state.step / steps)
    return round(config.k_start + (config.k - config.k_start) * done)


def largest(
    sae: SAE,
    pre_activations: Tensor,
    k: int,
    norm: Norm | None,
    score: Callable[[Tensor], Tensor] | None = None,
    rectify: bool = True,
) -> SparseCode:
    """The code of the `k` largest of given pre-activations `[..., d_sae]`; see [`select_top_k`]."""
    ranked = pre_activations if score is None else score(pre_activations.detach())
    indices = top_k(ranked, min(k, pre_activations.shape[-1]))
    scores = None if score is None else ranked.gather(-1, indices)
    values, indices = sae.dictionary.choose(pre_activations.gather(-1, indices), indices, k, scores)
    return SparseCode(settle(values, rectify), indices, None, pre_activations.shape[-1], norm)


def select_top_k(
    sae: SAE,
    x: Tensor,
    k: int,
    norm: Norm | None,
    score: Callable[[Tensor], Tensor] | None = None,
    rectify: bool = True,
) -> tuple[SparseCode, Tensor | None]:
    """The `k` largest pre-activations of a normalised input `[..., d_in]`, and all of them if they are at hand.

    With gradients and a plain encoder only the selected rows get a gradient product.

    Args:
        sae ([`SAE`]): with an encoder.
        x (`Tensor`): `[..., d_in]`.
        k (`int`): how many.
        norm (`tuple`, *optional*): of the tokens, for the code.
        score (`Callable`, *optional*): from all pre-activations, what latents are ranked by instead; outside the graph.
        rectify (`bool`): whether negative ones that were chosen become zero.
    """
    if not sae.encoder_is_plain() or not (torch.is_grad_enabled() or can_screen(x, sae.encoder.weight, k)):
        pre = sae.pre_activations(x)
        return largest(sae, pre, k, norm, score, rectify), pre
    rows = x.reshape(-1, x.shape[-1])
    shift = sae.dictionary.copy(sae.decoder()) if sae.config.subtracts_bias else None
    encoder = (sae.encoder.weight, sae.encoder.bias)
    values, indices, transposed = select_pre_activations(rows, encoder, shift, k, sae.dictionary, score)
    shape, d_sae = (*x.shape[:-1], indices.shape[-1]), sae.encoder.weight.shape[0]
    values = settle(values, rectify).view(shape)
    return SparseCode(values, indices.view(shape), None, d_sae, norm, transposed=transposed), None


def auxk(sae: SAE, result: Pass, by_magnitude: bool = False, candidates: Tensor | None = None) -> dict[str, Tensor]:
    """AuxK (section A.2 of the paper, with the loss's one normaliser): the `k_aux` largest of the dead latents'
    pre-activations reconstruct what the live ones left over. Empty without dead latents.

    Args:
        sae ([`SAE`]): whose config has `aux_coefficient` and `k_aux`.
        result ([`Pass`]): with the counters that say which latents are dead.
        by_magnitude (`bool`): the largest by absolute value, signs kept, for architectures with signed latents.
        candidates (`Tensor`, *optional*): `[d_sae]` mask of the latents that are taken for dead.
    """
    dead = result.state.dead() if candidates is None else candidates
    if dead is None or not sae.config.aux_coefficient or not (n_dead := sae.dictionary.count(dead)):
        return {}
    index = dead.nonzero().squeeze(1)
    wanted = sae.config.k_aux or max(sae.decoder.weight.shape[1] // 2, 1)
    k_aux = min(wanted, n_dead)
    pre = _pre_activations_of(sae, result.x.reshape(-1, result.x.shape[-1]), index)
    scores = pre.detach().abs() if by_magnitude else pre.detach()
    scores, chosen = scores.topk(min(k_aux, pre.shape[-1]), dim=-1, sorted=False)
    values, chosen = sae.dictionary.choose(pre.gather(-1, chosen), chosen, k_aux, scores)
    latents = torch.zeros_like(pre).scatter(-1, chosen, settle(values, rectify=not by_magnitude))
    left_over = result.error.detach().reshape(-1, result.error.shape[-1])
    norm = None if result.norm is None else (result.norm[0].reshape(-1, 1), result.norm[1].reshape(-1, 1))
    partial = latents @ select_rows(sae.decoder.rows(), index)
    error = left_over - sae.to_output_units(sae.dictionary.sum(partial), norm)
    # few dead latents must not each be pulled as hard as many would be
    scale = sae.config.aux_coefficient * (k_aux / wanted) / result.state.normaliser
    return {"auxk": scale * sae.in_loss_units(error).square().sum(-1).mean()}


def _pre_activations_of(sae: SAE, x: Tensor, index: Tensor) -> Tensor:
    """`[tokens, len(index)]`, the pre-activations of some latents, with gradients for those alone."""
    x = x.detach()
    if not sae.encoder_is_plain():  # rows of `weight` would be an adapter's base, which gets no gradient
        return sae.pre_activations_of(x, index)
    if sae.config.subtracts_bias:
        x = x - sae.decoder().detach()
    return F.linear(x, select_rows(sae.encoder.weight, index), sae.encoder.bias[index])


@torch.no_grad()
def shorten_encoder_rows(sae: SAE, x: Tensor, encode: Callable[[Tensor], Tensor | SparseCode] | None = None) -> None:
    """Scales the encoder rows by the least-squares factor for a sample `[tokens, d_in]`.

    `encode` gives the latents of normalised inputs where [`SAE.latents_of`] would need more than them.

    The rows of an overcomplete dictionary overlap, so that k projections on unit rows add up to several times the input.
    """
    sae.encoder.weight.mul_(length_scale(sae, x, encode))


@torch.no_grad()
def length_scale(sae: SAE, x: Tensor, encode: Callable[[Tensor], Tensor | SparseCode] | None = None) -> Tensor:
    """The factor that brings the reconstructions of a sample `[tokens, d_in]` closest to it, decoder bias apart; 1 where
    that is not positive, and for a transcoder, whose random rows reconstruct nothing that could be scaled."""
    if sae.config.is_transcoder:
        return x.new_ones(())
    sample, _ = sae.normalize(x[:SCALE_TOKENS])
    centred = sample - sae.decoder.bias
    latents = sae.latents_of(sample, None)[0] if encode is None else encode(sample)
    reconstruction = sae.decoder(latents) - sae.decoder.bias
    scale = (reconstruction * centred).sum() / reconstruction.square().sum().clamp_min(1e-12)
    return torch.where(scale > 0, scale, torch.ones_like(scale))
