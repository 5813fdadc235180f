"""TopK: the k largest pre-activations of each token, rectified.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093): `z = ReLU(top_k(W_enc (x - b_dec) +
b_enc))`. What the saved model does at inference is the same. Dead latents are revived by AuxK: the k_aux largest of
the dead latents' pre-activations reconstruct what the live ones left over.

* Where the encoder is a plain `nn.Linear`, only the selected rows get a gradient product (`sparse_ops`).
* AuxK is a compact dense product over the dead rows: its gradient reaches encoder and decoder of dead latents only.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_sae import SAEConfig, strict_config
from .modeling_sae import SAE, Norm
from .outputs import Pass, TrainingState
from .sparse_code import SparseCode
from .sparse_ops import select_pre_activations, select_rows, top_k


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
        for name in ("k", "k_start", "k_aux"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.d_sae:
                raise ValueError(f"{name}={value} must be between 1 and d_sae={self.d_sae}.")
        if self.k_start is not None and self.k_start < self.k:
            raise ValueError(
                f"k_start={self.k_start} is below k={self.k}: annealing goes downwards. Leave it out or raise it."
            )
        if not 0 <= self.k_anneal_share <= 1:
            raise ValueError(f"k_anneal_share={self.k_anneal_share} must be between 0 and 1.")
        if not 0 <= self.aux_coefficient < float("inf"):
            raise ValueError(f"aux_coefficient={self.aux_coefficient} must be a finite number, 0 or more.")


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
        return self._select(pre_activations, self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code; `state.k` is used while a schedule changes it."""
        k = self.config.k if state is None or state.k is None else state.k
        if torch.is_grad_enabled() and self._encoder_is_plain():
            return self._select_sparsely(x, k, norm), None
        pre = self.pre_activations(x)
        return self._select(pre, k, norm), pre

    def _select(self, pre: Tensor, k: int, norm: Norm | None) -> SparseCode:
        indices = top_k(pre, min(k, pre.shape[-1]))
        values, indices = self.dictionary.choose(pre.gather(-1, indices), indices, k)
        return SparseCode(torch.relu(values), indices, None, pre.shape[-1], norm)

    def _select_sparsely(self, x: Tensor, k: int, norm: Norm | None) -> SparseCode:
        rows = x.reshape(-1, x.shape[-1])
        shift = self.dictionary.copy(self.decoder()) if self.config.subtracts_bias else None
        encoder = (self.encoder.weight, self.encoder.bias)
        values, indices, transposed = select_pre_activations(rows, encoder, shift, k, self.dictionary)
        shape = (*x.shape[:-1], indices.shape[-1])
        return SparseCode(
            torch.relu(values).view(shape),
            indices.view(shape),
            None,
            self.encoder.weight.shape[0],
            norm,
            transposed=transposed,
        )

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK (eq. in section A.2 of the paper, with the loss's one normaliser): zero without dead latents."""
        dead = result.state.dead()
        if dead is None or not self.config.aux_coefficient:
            return {}
        n_dead = self.dictionary.count(dead)
        if not n_dead:
            return {}
        index = dead.nonzero().squeeze(1)
        wanted = self.config.k_aux or max(self.decoder.weight.shape[1] // 2, 1)
        k_aux = min(wanted, n_dead)
        x = result.x.reshape(-1, result.x.shape[-1])
        if self.config.subtracts_bias:
            x = x - self.decoder().detach()
        if self._encoder_is_plain():
            pre = F.linear(x.detach(), select_rows(self.encoder.weight, index), self.encoder.bias[index])
        else:  # rows of `weight` would be the base's, and the adapter of a dead latent would get no gradient
            pre = self.encoder(x.detach())[..., index]
        values, chosen = pre.topk(min(k_aux, pre.shape[-1]), dim=-1, sorted=False)
        values, chosen = self.dictionary.choose(values, chosen, k_aux)
        latents = torch.zeros_like(pre).scatter(-1, chosen, torch.relu(values))
        left_over = result.error.detach().reshape(-1, result.error.shape[-1])
        norm = None if result.norm is None else (result.norm[0].reshape(-1, 1), result.norm[1].reshape(-1, 1))
        partial = latents @ select_rows(self.decoder.weight, index)
        error = left_over - self.to_output_units(self.dictionary.sum(partial), norm)
        # few dead latents must not each be pulled as hard as many would be
        scale = self.config.aux_coefficient * (k_aux / wanted) / result.state.normaliser
        return {"auxk": scale * error.square().sum(-1).mean()}

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then encoder rows are shortened until the first reconstructions have the right length.

        The rows of an overcomplete dictionary overlap, so that k projections on unit rows add up to several times the
        input. The factor is the least-squares one for a sample.
        """
        super().initialize_from(x, target, state)
        if self.config.is_transcoder:  # random rows reconstruct nothing that could be scaled
            return
        sample, _ = self.normalize(x[:SCALE_TOKENS])
        centred = sample - self.decoder.bias
        reconstruction = self.decoder(self.latents_of(sample, None)[0]) - self.decoder.bias
        scale = (reconstruction * centred).sum() / reconstruction.square().sum().clamp_min(1e-12)
        if scale > 0:
            self.encoder.weight.mul_(scale)

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """`state.k`: linear from `k_start` to `k` over the first `k_anneal_share` of the steps."""
        start, k = self.config.k_start, self.config.k
        steps = self.config.k_anneal_share * state.total_steps
        done = 1.0 if start is None or steps < 1 else min(1.0, state.step / steps)
        state.k = k if start is None else round(start + (k - start) * done)
