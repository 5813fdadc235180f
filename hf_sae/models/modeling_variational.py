"""Variational SAE (vSAE): TopK whose pre-activations are means of a Gaussian that is sampled in training. A baseline that loses.

Baker & Li 2025, "Analysis of variational sparse autoencoders" (arXiv 2509.22994): `μ = W_enc (x - b_dec) + b_enc`,
`z = ReLU(top_k(μ + σ ε))` with ε standard normal; loss `‖x - x̂‖² + β s(t) KL` and AuxK, where `KL = ½ Σ (μ² + σ² - 1 -
log σ²)` over all latents and s(t) rises from 0 to 1. σ is fixed (then `KL = ½ Σ μ²` up to a constant) or learnt, `log σ² = V
(x - b_dec) + c`. The saved model is deterministic: z of the mean, as TopK.

The authors report that it does worse than TopK on the core metrics and that more of its latents are dead; it is here
to be compared with. σ is in the units of the activations, whose scale therefore decides everything (`input_norm="scalar"`).

* At σ = 0 and β = 0 it is TopK.
* Deviations: the versions of the authors' code differ in what is ranked and in where KL is summed; here samples are
  ranked by value and rectified, and KL is over all latents and of the mean itself. Their default, β = 500, is not ours.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, largest, shorten_encoder_rows
from .outputs import Pass, TrainingState
from .sparse_code import SparseCode


@strict_config
class VariationalConfig(SAEConfig):
    """[`SAEConfig`] plus the number of active latents and what is sampled.

    Args:
        k (`int`): latents per token.
        sigma (`float`): standard deviation of the samples, in the units of normalised activations; the first one where it is
            learnt.
        learns_sigma (`bool`): a deviation of its own for every latent and token, by a second linear map.
        kl_coefficient (`float`): β, relative to the squared error.
        kl_warmup_share (`float`): share of the training steps over which it rises from 0.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_variational"

    k: int = 32
    sigma: float | int = 1.0
    learns_sigma: bool = False
    kl_coefficient: float | int = 0.05
    kl_warmup_share: float | int = 0.05
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_sampling(self) -> None:
        """Counts lie between 1 and `d_sae`, shares in [0, 1], amounts are not negative; a learnt σ starts above 0."""
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_between(self, 0, 1, "kl_warmup_share")
        require_amounts(self, "sigma", "kl_coefficient", "aux_coefficient")
        if self.learns_sigma and self.sigma == 0:
            raise ValueError("sigma=0 with learns_sigma=True: its logarithm is learnt, which has to start above 0.")


class VariationalSAE(SAE):
    """An autoencoder that selects among samples in training and among means at inference."""

    config: VariationalConfig
    paper: ClassVar[str] = "Baker & Li 2025, Analysis of variational sparse autoencoders, arXiv:2509.22994"

    def __init__(self, config: VariationalConfig) -> None:
        super().__init__(config)
        self.log_variance: Any = nn.Linear(config.d_in, config.d_sae) if config.learns_sigma else None
        self.post_init()

    @torch.no_grad()
    def init_encoder(self) -> None:
        """As in [`SAE`]; a learnt deviation is `sigma` everywhere."""
        super().init_encoder()
        if self.log_variance is not None:
            init.zeros_(self.log_variance.weight)
            init.constant_(self.log_variance.bias, 2 * math.log(self.config.sigma))

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k` largest pre-activations."""
        return largest(self, pre_activations, self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code: of samples in training, of their means else. And the means, `[..., d_sae]`."""
        mean = self.pre_activations(x)
        sample = mean
        if state is not None or self.training:
            sample = mean + self._deviation(x) * torch.randn_like(mean)
        return largest(self, sample, self.config.k, norm), mean

    def _deviation(self, x: Tensor) -> Tensor | float:
        return self.config.sigma if self.log_variance is None else (self._log_variance(x) / 2).exp()

    def _log_variance(self, x: Tensor) -> Tensor:
        centred = x - self.decoder() if self.config.subtracts_bias else x
        return self.log_variance(centred)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`β s(t) KL` in the units of the squared error, and AuxK."""
        state, config = result.state, self.config
        means = self.pre_activations(result.x) if result.pre_activations is None else result.pre_activations
        log_variance = None if self.log_variance is None else self._log_variance(result.x)
        kl = kl_divergence(means, log_variance).mean()
        warm_up = config.kl_warmup_share * state.total_steps
        risen = min(1.0, state.step / warm_up) if warm_up >= 1 else 1.0
        return {"kl": config.kl_coefficient * risen / state.normaliser * kl} | auxk(self, result)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then encoder rows are shortened until the first reconstructions have the right length."""
        super().initialize_from(x, target, state)
        mode = self.training
        shorten_encoder_rows(self.eval(), x)  # of the means: the right length of samples depends on the noise
        self.train(mode)


def kl_divergence(mean: Tensor, log_variance: Tensor | None = None) -> Tensor:
    """`[...]`: of `N(mean, exp(log_variance))` from the standard normal, summed over latents `[..., d_sae]`.

    Without `log_variance` it is that of a fixed one up to a constant, `½ Σ μ²`.
    """
    squares = _in_full_precision(mean).square()
    if log_variance is not None:
        log_variance = _in_full_precision(log_variance)
        squares = squares + log_variance.exp() - 1 - log_variance
    return squares.sum(-1) / 2


def _in_full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
