"""k-sparse: a linear autoencoder with tied weights that keeps its k largest hidden units.

Makhzani & Frey 2013, "k-Sparse Autoencoders" (arXiv 1312.5663): `u = W (x - b_dec) + b`, the k largest entries of u are kept
*as they are* (no rectification: of fewer than k positive entries, negative ones are kept too), `x̂ = Wᵀ z + b_dec`. The gradient goes
through the kept units only. With k = d_sae it is the tied linear autoencoder. To keep units alive, training starts with more
of them and k falls linearly. The saved model keeps `k_inference = round(alpha * k)` units, as the paper does at test time.

Deviations: a bias of the input where `pre_bias` is not False (the paper has none), the library's loss normaliser in place of 1/2,
and Adam. Recalled, not re-checked: the schedule over half of the training, and α between 1 and 3.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_sae import SAEConfig, strict_config
from .modeling_sae import SAE, Norm
from .modeling_topk import annealed_k, largest, length_scale, require_annealing
from .outputs import TrainingState
from .sparse_code import SparseCode
from .sparse_ops import select_pre_activations, settle


@strict_config
class KSparseConfig(SAEConfig):
    """[`SAEConfig`] plus the number of active units.

    Args:
        k (`int`): units per token in training.
        k_start (`int`, *optional*): train with so many at first, and fewer with every step down to `k`; `None` is `4 k`
            (at most `d_sae`), `k` switches the schedule off.
        k_anneal_share (`float`): share of the training steps over which `k_start` falls to `k`.
        alpha (`float`): how many times `k` units the saved model keeps.
    """

    model_type = "hf_sae_k_sparse"
    tied = True

    k: int = 32
    k_start: int | None = None
    k_anneal_share: float | int = 0.5
    alpha: float | int = 1.0

    def __post_init__(self, **kwargs: object) -> None:
        """`k_start` is `4 k` where none is given."""
        if self.k_start is None and isinstance(self.k, int) and isinstance(self.d_sae, int):
            self.k_start = min(4 * self.k, self.d_sae)
        super().__post_init__(**kwargs)

    @property
    def k_inference(self) -> int:
        """Units per token of the saved model: `round(alpha * k)`, at most `d_sae`."""
        return min(self.d_sae, max(1, round(self.alpha * self.k)))

    def validate_k(self) -> None:
        """Every count of units lies between 1 and `d_sae`, and inference keeps as many as training at least."""
        require_annealing(self)
        if not 1 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha} must be a finite number, 1 or more: alpha * k units at inference.")


class KSparseSAE(SAE):
    """An autoencoder that reads with the rows it writes, and keeps its largest pre-activations unrectified."""

    config: KSparseConfig
    paper: ClassVar[str] = "Makhzani & Frey 2013, k-Sparse autoencoders, arXiv:1312.5663"
    per_latent: ClassVar[tuple[str, ...]] = ("decoder.weight", "unit_bias")
    unit_norm_decoder = False  # the length of a row is the gain of its unit, which a tied model has nowhere else

    def __init__(self, config: KSparseConfig) -> None:
        super().__init__(config)
        self.unit_bias = nn.Parameter(torch.empty(config.d_sae))
        self.post_init()

    @staticmethod
    def make_encoder(config: SAEConfig) -> None:
        """None: the decoder's rows are the encoder's."""

    @torch.no_grad()
    def init_encoder(self) -> None:
        """A bias of zero."""
        init.zeros_(self.unit_bias)

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[..., d_sae]`: `W (x - b_dec) + b`."""
        shift = self._shift()
        return F.linear(x if shift is None else x - shift, self.decoder.weight, self.unit_bias)

    def _shift(self) -> Tensor | None:
        return self.dictionary.copy(self.decoder()) if self.config.subtracts_bias else None

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k_inference` largest pre-activations."""
        return largest(self, pre_activations, self.config.k_inference, None, rectify=False).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A code of `k` (in training, `state.k` while a schedule changes it) or `k_inference` units."""
        k = self.config.k if state is not None or self.training else self.config.k_inference
        k = k if state is None or state.k is None else state.k
        if not torch.is_grad_enabled():
            pre = self.pre_activations(x)
            return largest(self, pre, k, norm, rectify=False), pre
        rows, encoder = x.reshape(-1, x.shape[-1]), (self.decoder.weight, self.unit_bias)
        values, indices, transposed = select_pre_activations(rows, encoder, self._shift(), k, self.dictionary)
        shape, d_sae = (*x.shape[:-1], indices.shape[-1]), transposed.d_sae
        values = settle(values, rectify=False).view(shape)
        return SparseCode(values, indices.view(shape), None, d_sae, norm, transposed=transposed), None

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then rows are scaled until the first reconstructions have the right length.

        A reconstruction is of second order in the rows, so that they take the square root.
        """
        super().initialize_from(x, target, state)
        self.decoder.weight.mul_(length_scale(self, x).sqrt())

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """`state.k`: linear from `k_start` to `k` over the first `k_anneal_share` of the steps."""
        state.k = annealed_k(self.config, state)

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, d_sae]`, read-only: the transpose of `W_dec`."""
        return self.decoder.weight.detach().T

    @property
    def b_enc(self) -> Tensor:
        """`[d_sae]`, read-only."""
        return self.unit_bias.detach()
