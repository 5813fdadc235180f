"""KronSAE: each latent is the soft conjunction of a base and an extension pre-latent of its head.

Kurochkin et al. 2025, "Kronecker factorization improves efficiency and interpretability of sparse autoencoders"
(arXiv 2505.22255): with h heads, m base and n' extension pre-latents per head, `p = ReLU(P x)` `[h, m]`, `q = ReLU(Q x)`
`[h, n']`, latent (k, i, j) is mAND, `√(p_ki q_kj)` where both are positive and 0 elsewhere; the k largest of all
`h m n' = d_sae` remain. The encoder has `h (m + n')` rows instead of `d_sae`; the decoder is dense. Dead latents are
revived by AuxK, as in TopK. What the saved model does at inference is the same.

* Training never has a gradient of `[tokens, d_sae]`: pairs are ranked outside the graph, and only the chosen ones
  (in AuxK, the dead ones) have one.
* Deviations: inactive pairs are exactly 0 (the paper's listing adds 1e-5 inside the root of every pair, which makes them
  fire at 3.2e-3); the root's slope, infinite at 0, is bounded by `MAX_SLOPE`; `b_dec` is subtracted from the input, as
  for every autoencoder here (`pre_bias=False` is the paper's way); the rows of P and Q are scaled to the data before training.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, largest, length_scale
from .outputs import Pass, TrainingState
from .sparse_code import SparseCode
from .sparse_ops import top_k


MAX_SLOPE = 100.0  # of a latent by a pre-latent; reached where one is 40,000 times smaller than its partner
TYPICAL = {"base": 2, "extension": 4}  # sizes that are left open, as far as they divide d_sae


@strict_config
class KronConfig(SAEConfig):
    """[`SAEConfig`] plus the factors of `d_sae` and the number of active latents.

    Args:
        heads (`int`, *optional*): h. Sizes that are `None` follow from `d_sae`: `base` 2 and `extension` 4 where they
            divide it, `heads` the rest; see `shape`.
        base (`int`, *optional*): m, base pre-latents of a head.
        extension (`int`, *optional*): n', extension pre-latents of a head.
        k (`int`): latents per token.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_kron"

    heads: int | None = None
    base: int | None = None
    extension: int | None = None
    k: int = 32
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(heads, base, extension)`, whose product is `d_sae`."""
        sizes = {"base": self.base, "extension": self.extension, "heads": self.heads}
        left_open = [name for name, size in sizes.items() if size is None]
        rest = self.d_sae
        for size in sizes.values():
            rest //= size or 1
        for name in left_open[:-1]:
            sizes[name] = max(size for size in range(1, TYPICAL[name] + 1) if rest % size == 0)
            rest //= sizes[name]
        if left_open:
            sizes[left_open[-1]] = rest
        return int(sizes["heads"] or 1), int(sizes["base"] or 1), int(sizes["extension"] or 1)

    def validate_factors(self) -> None:
        """The sizes that are given divide `d_sae`; all three multiply to it."""
        given = {
            name: getattr(self, name) for name in ("heads", "base", "extension") if getattr(self, name) is not None
        }
        require_between(self, 1, self.d_sae, *given)
        heads, base, extension = self.shape
        if heads * base * extension != self.d_sae:
            said = ", ".join(f"{name}={size}" for name, size in given.items())
            raise ValueError(
                f"{said} do not multiply to d_sae={self.d_sae}: heads * base * extension must. Leave one of them out, and it "
                "follows from the others where they divide d_sae."
            )

    def validate_k(self) -> None:
        """Counts of latents lie between 1 and `d_sae`."""
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_amounts(self, "aux_coefficient")


class _Conjunction(torch.autograd.Function):
    """`√(p q)` where both are positive, else 0; its slope by the smaller one is bounded."""

    @staticmethod
    def forward(ctx, p, q):
        ctx.save_for_backward(p, q)
        return p.clamp_min(0).sqrt() * q.clamp_min(0).sqrt()  # the product itself could underflow in half precision

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        p, q = ctx.saved_tensors
        grad = torch.where((p > 0) & (q > 0), grad, 0)
        ratio = torch.where(grad != 0, q / p, 1).sqrt()
        by_p, by_q = (ratio / 2).clamp_max(MAX_SLOPE), (1 / (2 * ratio)).clamp_max(MAX_SLOPE)
        return (grad * by_p).sum_to_size(p.shape), (grad * by_q).sum_to_size(q.shape)


class KronEncoder(nn.Module):
    """Two linear maps, `p` and `q`, and the conjunctions of their outputs, head by head."""

    def __init__(self, d_in: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.heads, self.base, self.extension = shape
        self.p = nn.Linear(d_in, self.heads * self.base)
        self.q = nn.Linear(d_in, self.heads * self.extension)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_sae]`: every latent before the selection; (head, base, extension) in row-major order."""
        return self.conjunctions(self.p(x), self.q(x))

    def conjunctions(self, p: Tensor, q: Tensor) -> Tensor:
        """`[..., d_sae]` from `[..., h m]` and `[..., h n']`."""
        p, q = p.unflatten(-1, (self.heads, self.base, 1)), q.unflatten(-1, (self.heads, 1, self.extension))
        return _Conjunction.apply(p, q).flatten(-3)

    def parents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `p` and of `q` that latents are conjunctions of."""
        head = latents // (self.base * self.extension)
        return latents // self.extension, head * self.extension + latents % self.extension


class KronSAE(SAE):
    """An autoencoder whose `config.k` latents per token are conjunctions of pre-latents."""

    config: KronConfig
    paper: ClassVar[str] = (
        "Kurochkin et al. 2025, Kronecker factorization improves efficiency and interpretability of sparse autoencoders, "
        "arXiv:2505.22255"
    )

    def __init__(self, config: KronConfig) -> None:
        super().__init__(config)
        self.post_init()

    @staticmethod
    def make_encoder(config: Any) -> nn.Module:
        """[`KronEncoder`]: `encoder.p` `[h m, d_in]` and `encoder.q` `[h n', d_in]`."""
        return KronEncoder(config.d_in, config.shape)

    @torch.no_grad()
    def init_encoder(self) -> None:
        """Gaussian rows of variance `1 / (2 d_sae)`; an autoencoder's decoder rows are the directions `P_ki + Q_kj`."""
        for layer in (self.encoder.p, self.encoder.q):
            init.normal_(layer.weight, std=(2 * self.config.d_sae) ** -0.5)
            init.zeros_(layer.bias)
        if not self.config.is_transcoder:
            p, q = self.encoder.parents(torch.arange(self.config.d_sae, device=self.decoder.weight.device))
            init.copy_(self.decoder.weight, F.normalize(self.encoder.p.weight[p] + self.encoder.q.weight[q], dim=-1))

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k` largest conjunctions."""
        return largest(self, pre_activations, self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code; entries beyond the positive conjunctions are 0."""
        if not torch.is_grad_enabled():
            pre = self.pre_activations(x)
            return largest(self, pre, self.config.k, norm), pre
        p, q = self._pre_latents(x)
        with torch.no_grad():
            indices = top_k(self.encoder.conjunctions(p, q), self.config.k)
        rows_p, rows_q = self.encoder.parents(indices)
        values = _Conjunction.apply(p.gather(-1, rows_p), q.gather(-1, rows_q)).to(self.dtype)
        return SparseCode(values, indices, None, self.config.d_sae, norm), None

    def pre_activations_of(self, x: Tensor, latents: Tensor) -> Tensor:
        """`[..., len(latents)]`: some latents before the selection; others are not computed."""
        p, q = self._pre_latents(x)
        rows_p, rows_q = self.encoder.parents(latents)
        return _Conjunction.apply(p[..., rows_p], q[..., rows_q])

    def _pre_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x - self.decoder() if self.config.subtracts_bias else x
        return self.encoder.p(x), self.encoder.q(x)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK."""
        return auxk(self, result)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then the rows of P and Q are scaled until the first reconstructions have the right length."""
        super().initialize_from(x, target, state)
        scale = length_scale(self, x)  # latents grow as the rows of both do together
        self.encoder.p.weight.mul_(scale)
        self.encoder.q.weight.mul_(scale)
