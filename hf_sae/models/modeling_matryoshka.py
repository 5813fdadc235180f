"""Matryoshka: BatchTopK whose first latents reconstruct by themselves, in nested prefixes.

Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (arXiv 2503.17547): one BatchTopK
over all latents gives z; the prefix g of m_g latents reconstructs `x̂_g = b_dec + Σ_{i < m_g} z_i w_i`, and the loss is the
mean over prefixes of `‖x - x̂_g‖²`, with AuxK on what the last one leaves over. General features are learnt by the early
latents, which cannot leave a hole where a later, more special latent fires. The saved model thresholds as BatchTopK does,
and may be cut to any prefix (`truncate`, `decode_prefix`).

Deviations: the authors' code also averages in the bias alone, `‖x - b_dec‖²`; prefixes are fixed, and not sampled at every step.

The sums of all prefixes are one gather of each entry's row, into the bag of its token and group, and a running sum.
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from .configuration_sae import SAEConfig, strict_config
from .entry_ops import decode_entries, row_starts
from .errors import ConfigError
from .modeling_batch_topk import (
    UNSET,
    above,
    estimate_threshold,
    require_mean_l0,
    require_threshold,
    select_batch_top_k,
    smallest_kept,
    update_threshold,
)
from .modeling_jumprelu import JumpReLUSAE
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, shorten_encoder_rows
from .outputs import Pass, SAEOutput, TrainingState
from .rewriting import as_jumprelu
from .row_gradients import Transposed
from .sparse_code import SparseCode


HALVINGS = 4  # of the default prefixes: 1/16, 1/8, 1/4, 1/2 and all of the latents


@strict_config
class MatryoshkaConfig(SAEConfig):
    """[`SAEConfig`] plus the mean number of active latents and the nested prefixes.

    Args:
        k (`float`): latents per token, in the mean over a batch; may be a fraction.
        group_bounds (`list[int]`, *optional*): how many latents each prefix has, rising to `d_sae`; `None` is a 16th, an
            eighth, a quarter, a half and all of them.
        aux_coefficient (`float`): weight of the AuxK loss (see [`TopKConfig`]). 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_matryoshka"

    k: float | int = 32
    group_bounds: list[int] | None = None
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    @property
    def bounds(self) -> list[int]:
        """How many latents each prefix has."""
        if self.group_bounds is not None:
            return list(self.group_bounds)
        return sorted({max(1, self.d_sae >> halvings) for halvings in range(HALVINGS + 1)})

    def validate_k(self) -> None:
        """Every count of latents is above 0 and at most `d_sae`."""
        require_mean_l0(self)

    def validate_groups(self) -> None:
        """Prefixes grow, from at least one latent to all of them."""
        if self.group_bounds is None:
            return
        rising = all(low < high for low, high in pairwise([0, *self.group_bounds]))
        if not rising or not self.group_bounds or self.group_bounds[-1] != self.d_sae:
            raise ValueError(
                f"group_bounds={self.group_bounds} must rise from at least 1 and end at d_sae={self.d_sae}, such as "
                f"{[max(1, self.d_sae // 4), self.d_sae]}: each is the number of latents of one prefix."
            )


class MatryoshkaSAE(SAE):
    """An autoencoder with `config.k` latents per token in the mean, each prefix of which reconstructs."""

    config: MatryoshkaConfig
    paper: ClassVar[str] = "Bussmann et al. 2025, Learning Multi-Level Features with Matryoshka SAEs, arXiv:2503.17547"
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")
    held_by_all: ClassVar[tuple[str, ...]] = (*SAE.held_by_all, "threshold")
    couples_tokens: ClassVar[bool] = True
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold"]
    threshold: Tensor

    def __init__(self, config: MatryoshkaConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.empty(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self.decoder:
            init.constant_(self.threshold, UNSET)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents `u · 1[u > θ]`; a `ConfigError` while θ was never set."""
        return above(self, pre_activations)

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[Tensor | SparseCode, Tensor | None]:
        """In training the code of the batch's largest pre-activations, otherwise dense latents above θ."""
        if state is None and not self.training:
            return super().latents_of(x, norm)
        return select_batch_top_k(self, x, self.config.k, norm)

    def truncate(self, latents: Tensor | SparseCode, group: int) -> Tensor | SparseCode:
        """Latents `[..., d_sae]` of which those outside prefix `group` (counted from 0) are zero.

        Raises:
            ConfigError: if there is no such prefix.
        """
        bounds = self.config.bounds
        if not 0 <= group < len(bounds):
            raise ConfigError(
                f"group={group} is none of the {len(bounds)} prefixes 0 … {len(bounds) - 1}, of {bounds} latents."
            )
        if isinstance(latents, SparseCode):
            values = latents.values * (latents.indices < bounds[group])
            return SparseCode(values, latents.indices, latents.offsets, latents.d_sae, latents.norm, latents.shape)
        return latents * (torch.arange(self.config.d_sae, device=latents.device) < bounds[group])

    def decode_prefix(self, latents: Tensor | SparseCode, group: int, norm: Norm | None = None) -> Tensor:
        """[`SAE.decode`] of the latents of prefix `group` (counted from 0) alone: `[..., d_out]`."""
        return self.decode(self.truncate(latents, group), norm)

    @property
    def reconstruction_weight(self) -> float:
        """One prefix of several is the whole code."""
        return 1 / len(self.config.bounds)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """The shorter prefixes' share of the mean, and AuxK."""
        losses = {}
        if len(self.config.bounds) > 1:
            squares = self._prefix_errors(result).square().sum(-1).mean(0).sum()
            losses["prefixes"] = self.reconstruction_weight * squares / result.state.normaliser
        return losses | auxk(self, result)

    def _prefix_errors(self, result: Pass) -> Tensor:
        """`[tokens, prefixes - 1, d_out]`: what each prefix but the whole code leaves over, in the target's units."""
        target = result.target.reshape(-1, 1, result.target.shape[-1])
        sums = self._group_sums(result.latents).cumsum(1) + self.decoder.bias
        norm = None if result.norm is None else (result.norm[0].reshape(-1, 1, 1), result.norm[1].reshape(-1, 1, 1))
        reconstruction = self.to_output_units(sums, norm)
        if norm is not None and self.config.undoes_norm_per_token:
            reconstruction = reconstruction + norm[0]
        if self.skip is not None:
            reconstruction = reconstruction + self.skip(result.x).reshape(target.shape)
        return target - reconstruction

    def _group_sums(self, latents: Tensor | SparseCode) -> Tensor:
        """`[tokens, groups - 1, d_out]`: what the latents between two bounds add up to; those of the last group are left out."""
        weight = self.decoder.weight
        bounds = [max(0, bound - self.dictionary.first) for bound in self.config.bounds]  # from the first latent here
        if not isinstance(latents, SparseCode):
            rows, ranges = latents.reshape(-1, latents.shape[-1]), pairwise([0, *bounds[:-1]])
            sums = torch.stack([rows[:, low:high] @ weight[low:high] for low, high in ranges], dim=1)
            return self.dictionary.sum(sums)
        n_groups, inner = len(bounds) - 1, latents.indices < bounds[-2]
        indices, values = latents.indices[inner], latents.values[inner]
        groups = torch.bucketize(indices, torch.tensor(bounds[:-1], device=indices.device), right=True)
        bags = latents.row_of_entry()[inner] * n_groups + groups  # ascending: latents are, within a token
        n_bags = latents.n_rows * n_groups
        sums = decode_entries(
            values, indices, row_starts(bags, n_bags), weight, Transposed(indices, weight.shape[0], bags)
        )
        return self.dictionary.sum(sums).view(latents.n_rows, n_groups, -1)

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """The smallest kept entry."""
        return smallest_kept(self, result.latents)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`TopKSAE`]."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x, lambda sample: select_batch_top_k(self, sample, self.config.k, None)[0])

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """One step of θ's running mean."""
        super().after_step(state, output)
        update_threshold(self, state, output)

    def estimate_threshold(self, hidden_states: Tensor) -> float:
        """Sets θ from a sample of activations `[..., d_in]` and returns it: see [`BatchTopKSAE`]."""
        return estimate_threshold(self, hidden_states, self.config.k)

    def to_jumprelu(self) -> JumpReLUSAE:
        """The [`JumpReLUSAE`] of the same outputs; a `ConfigError` while θ was never set."""
        require_threshold(self)
        return as_jumprelu(self, self.threshold, target_l0=self.config.k)
