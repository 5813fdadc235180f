"""Feature Choice: every latent takes the tokens that it matches best, as many as its budget allows.

Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders" (arXiv 2411.02124): of
the affinities `a = ReLU(W_enc (x - b_dec) + b_enc)` of a batch, latent i keeps the m_i largest of its column, where the
budgets of the ranks r follow Zipf's law and add up to k for each token. No latent can die of never being chosen.

The saved model does not look at other tokens: `z_i = u_i · 1[u_i > θ_i]`, where θ_i is the running mean over batches of the
smallest entry that latent i kept, a vector that is saved in float32.

Reconstructed, since the paper's fit of the budgets and the formula of `aux_zipf` were not found:

* budgets: `p_r = min(1, c (r + shift)^-s)` with c so that they add up to k, and `m_r = round(B p_r)`, at least 1;
* ranks: training starts by Mutual Choice (BatchTopK), and a latent's rank is that of how often it would fire under Mutual
  Choice, a running mean that is measured every `ranking_steps` steps. Its own firing rate could not tell: budgets bound it;
* `aux_zipf`: AuxK (see `modeling_topk`) over under-used latents in place of dead ones: those that fire less than
  `exp(-aux_tolerance)` times as often as their budgets would let them. With the dead latents alone it is AuxK.

Where few tokens are kept per batch, the mean of the smallest lies above the level that keeps as many at inference (for
m = 1 by about half of the firings of an exponential tail): rare latents fire somewhat more rarely than in training.
Parts of an accumulated batch, and processes that share out tokens, choose among their own.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .errors import ConfigError
from .modeling_batch_topk import (
    TOKENS_PER_ESTIMATE,
    UNSET,
    above,
    batch_top_k,
    require_mean_l0,
    require_threshold,
    running_mean_,
    select_batch_top_k,
    select_entries,
    update_threshold,
)
from .modeling_jumprelu import JumpReLUSAE
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, shorten_encoder_rows
from .outputs import Pass, SAEOutput, TrainingState
from .rewriting import as_jumprelu
from .sparse_code import SparseCode


DEMAND_DECAY = 0.9  # of the mean over rankings, which are steps apart already


@strict_config
class FeatureChoiceConfig(SAEConfig):
    """[`SAEConfig`] plus the budgets of the latents.

    Args:
        k (`float`): latents per token, in the mean over a batch, if every latent uses its budget; may be a fraction.
        zipf_exponent (`float`): s of the budgets; 0 gives all latents the same.
        zipf_shift (`float`): added to the ranks, which flattens the head.
        warm_start_share (`float`): share of the training steps in Mutual Choice, at least one step.
        ranking_steps (`int`): steps between two rankings of the latents.
        aux_coefficient (`float`): weight of `aux_zipf`. 0 switches it off.
        aux_tolerance (`float`): how far below its budget a latent may fire, as a logarithm.
        k_aux (`int`, *optional*): latents per token in `aux_zipf`; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_feature_choice"

    k: float | int = 32
    zipf_exponent: float | int = 1.0
    zipf_shift: float | int = 0.0
    warm_start_share: float | int = 0.1
    ranking_steps: int = 20
    aux_coefficient: float | int = 1 / 32
    aux_tolerance: float | int = 1.0
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Every count of latents is above 0 and at most `d_sae`."""
        require_mean_l0(self)

    def validate_budgets(self) -> None:
        """Exponent, shift and tolerance are finite and not negative, the share a share, rankings some steps apart."""
        require_amounts(self, "zipf_exponent", "zipf_shift", "aux_tolerance")
        require_between(self, 0, 1, "warm_start_share")
        if self.ranking_steps < 1:
            raise ValueError(f"ranking_steps={self.ranking_steps} must be at least 1.")


class FeatureChoiceSAE(SAE):
    """An autoencoder whose latents choose tokens in training, and have a threshold each afterwards."""

    config: FeatureChoiceConfig
    paper: ClassVar[str] = "Ayonrinde 2024, Adaptive Sparse Allocation with Feature Choice SAEs, arXiv:2411.02124"
    couples_tokens: ClassVar[bool] = True
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold"]
    threshold: Tensor

    def __init__(self, config: FeatureChoiceConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.empty(config.d_sae))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self.decoder:
            init.constant_(self.threshold, UNSET)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents `u · 1[u > θ]`; a `ConfigError` while no θ was ever set. A latent that never fired does not."""
        return above(self, pre_activations)

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[Tensor | SparseCode, Tensor | None]:
        """In training a code: by the latents' budgets where a state has ranks, by Mutual Choice until then."""
        if state is None and not self.training:
            return super().latents_of(x, norm)
        if state is None or (ranks := self._ranks(state)) is None:
            return select_batch_top_k(self, x, self.config.k, norm)
        shares = self.shares().to(x.device)[ranks]
        return select_entries(self, x, lambda pre: feature_top_k(pre, budgets(shares, pre.shape[0])), norm)

    def _ranks(self, state: TrainingState) -> Tensor | None:
        """`[d_sae]`, once the warm start is over: 0 for the latent with the largest budget."""
        warm = state.step < self.config.warm_start_share * state.total_steps
        return None if warm else state.tensors.get("ranks")

    def shares(self) -> Tensor:
        """`[d_sae]`: of the tokens, that the latent of each rank may take."""
        config = self.config
        return zipf_shares(config.d_sae, config.k, config.zipf_exponent, config.zipf_shift)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`aux_zipf` where there are ranks, AuxK until then."""
        state = result.state
        ranks = self._ranks(state)
        if ranks is None or "density" not in state.tensors:
            return auxk(self, result)
        losses = auxk(self, result, candidates=self.under_used(state, ranks))
        return {"aux_zipf": losses["auxk"]} if losses else {}

    def under_used(self, state: TrainingState, ranks: Tensor) -> Tensor:
        """`[d_sae]` mask: latents whose logarithm of density lies more than `aux_tolerance` below that of their share."""
        shares, density = self.shares().to(ranks.device)[ranks], state.tensors["density"].to(ranks.device)
        return density < shares * math.exp(-self.config.aux_tolerance)

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """Of each latent: the smallest kept entry, how often it fired and, when ranks are due, would by Mutual Choice."""
        code, d_sae = result.latents, self.config.d_sae
        if not isinstance(code, SparseCode):
            return {}
        statistics = smallest_kept_of_each(code)
        statistics["density"] = code.firing_counts().to(self.threshold.dtype) / max(code.n_rows, 1)
        if self._ranks(result.state) is None:
            statistics["demand"] = statistics["density"].clone()
        elif result.state.step % self.config.ranking_steps == 0:
            pre = self.pre_activations(result.x).reshape(-1, d_sae)
            wanted = torch.bincount(batch_top_k(pre, self.config.k) % d_sae, minlength=d_sae)
            statistics["demand"] = wanted.to(self.threshold.dtype) / len(pre)
        return statistics

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`TopKSAE`]."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x, lambda sample: select_batch_top_k(self, sample, self.config.k, None)[0])

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """One step of all running means; new ranks where demand was measured."""
        super().after_step(state, output)
        update_threshold(self, state, output)
        statistics = output.statistics or {}
        for name, decay in (("density", 0.99), ("demand", DEMAND_DECAY)):
            if name in statistics:
                move(state, name, statistics[name], decay)
        if "demand" in statistics:
            state.tensors["ranks"] = state.tensors["demand"].argsort(descending=True, stable=True).argsort()

    def estimate_threshold(self, hidden_states: Tensor) -> Tensor:
        """Sets the thresholds from a sample of activations `[..., d_in]`, with ranks from the same, and returns them.

        Raises:
            ConfigError: if no pre-activation of the sample is positive.
        """
        weight, demand = torch.zeros_like(self.threshold), torch.zeros_like(self.threshold)
        with torch.no_grad():
            batches = hidden_states.reshape(-1, hidden_states.shape[-1]).split(TOKENS_PER_ESTIMATE)
            for rows in batches:
                demand += select_batch_top_k(self, self.normalize(rows)[0], self.config.k, None)[0].firing_counts()
            if not demand.any():
                raise ConfigError(
                    f"no pre-activation of the {hidden_states[..., 0].numel()} activations is positive: there are no "
                    f"thresholds. Give [tokens, {self.config.d_in}] of the place that is read, {self.config.hook_in!r}."
                )
            shares = self.shares().to(demand.device)[demand.argsort(descending=True, stable=True).argsort()]
            for i, rows in enumerate(batches):
                allowed = budgets(shares, len(rows))
                code, _ = select_entries(
                    self, self.normalize(rows)[0], lambda pre, m=allowed: feature_top_k(pre, m), None
                )
                found = smallest_kept_of_each(code)
                weight = running_mean_(self.threshold, weight, found["smallest_kept"], found["kept"], i / (i + 1))
        return self.threshold

    def to_jumprelu(self) -> JumpReLUSAE:
        """The [`JumpReLUSAE`] of the same outputs; a `ConfigError` while no θ was ever set."""
        require_threshold(self)
        never = torch.finfo(self.threshold.dtype).max
        return as_jumprelu(self, self.threshold.where(self.threshold >= 0, never), target_l0=self.config.k)


def zipf_shares(d_sae: int, k: float, exponent: float, shift: float = 0.0) -> Tensor:
    """`[d_sae]`, float64, falling: `min(1, c (rank + shift)^-exponent)`, ranks from 1, with the sum `k`."""
    weights = (torch.arange(1, d_sae + 1, dtype=torch.float64) + shift) ** -exponent
    rest = weights.flip(0).cumsum(0).flip(0)  # of each rank and all later ones
    full = torch.arange(d_sae, dtype=torch.float64)  # how many ranks before it are cut to 1
    factors = (k - full) / rest
    first = int((factors * weights <= 1 + 1e-12).nonzero()[0]) if k < d_sae else d_sae
    if first == d_sae:
        return torch.ones(d_sae, dtype=torch.float64)
    return torch.where(full < first, 1.0, factors[first] * weights)


def budgets(shares: Tensor, n_tokens: int) -> Tensor:
    """`[d_sae]`, whole numbers: how many of `n_tokens` tokens each latent may take; at least one."""
    return (shares * n_tokens).round().long().clamp(1, max(n_tokens, 1))


@torch.no_grad()
def feature_top_k(pre_activations: Tensor, budgets: Tensor) -> Tensor:
    """`[entries]`, ascending: where in the flattened `[tokens, d_sae]` the `budgets[i]` largest positive values of each
    column i are.

    Columns whose budgets are alike (within a factor of 2) are searched together, each at the largest of them.
    """
    n_tokens, d_sae = pre_activations.shape
    order = budgets.argsort(descending=True, stable=True)
    falling = budgets[order].cpu()
    columns, positions, start = pre_activations.T, [], 0
    while start < d_sae and n_tokens:
        most = min(int(falling[start]), n_tokens)
        stop = d_sae if most <= 1 else int((falling > most // 2).sum())
        latents = order[start:stop].unsqueeze(1)
        values, tokens = columns[latents.squeeze(1)].topk(most, dim=1)
        keep = (torch.arange(most, device=values.device) < budgets[latents]) & (values > 0)
        positions.append((tokens * d_sae + latents)[keep])
        start = stop
    return torch.cat(positions).sort().values if positions else order[:0]


def smallest_kept_of_each(code: SparseCode) -> dict[str, Tensor]:
    """Statistics for `update_threshold`, `[d_sae]`: the smallest value of each latent, and whether it had one."""
    values = code.values.detach().float()
    smallest = values.new_full((code.d_sae,), torch.inf).scatter_reduce_(0, code.indices, values, "amin")
    kept = torch.isfinite(smallest)
    return {"smallest_kept": smallest.where(kept, 0.0), "kept": kept.to(values.dtype)}


def move(state: TrainingState, name: str, value: Tensor, decay: float) -> None:
    """One step of a running mean that lives in `state.tensors`."""
    tensors, zeros = state.tensors, torch.zeros_like(value)
    mean = tensors.get(name, zeros.clone()).to(value.device)
    weight = tensors.get(f"{name}_weight", zeros).to(value.device)
    tensors[f"{name}_weight"] = running_mean_(mean, weight, value, torch.ones_like(value), decay)
    tensors[name] = mean
