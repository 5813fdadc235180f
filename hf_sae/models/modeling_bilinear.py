"""Bilinear encoder: each latent is the product of two linear maps of the input, a quadratic form.

Pearce et al. 2024, "Bilinear MLPs enable weight-based mechanistic interpretability" (arXiv 2410.08417), and its authors'
autoencoders: `u = (A (x - b)) ⊙ (C (x - b))` with `b = b_dec`, the k largest by value are the latents, without a ReLU, and
decoder rows are of unit norm. What the saved model does at inference is the same.

A latent is `(x - b)ᵀ B (x - b)` with `B = (a cᵀ + c aᵀ) / 2`, and so is any direction of the output: `quadratic_form`
and `quadratic_form_of` give B, and `eigenfeatures` its spectrum, `Σ_i λ_i (v_i · (x - b))²`.

* The input's scale enters squared: train with `input_norm="scalar"` where activations are far from unit variance.
* Deviations: AuxK on dead latents, as in TopK; rows start near the decoder's, apart enough to part, and are scaled to the
  data (how the authors' start was not found).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .adapters import merged
from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .errors import ConfigError
from .modeling_sae import SAE, Norm
from .modeling_topk import SCALE_TOKENS, auxk, largest
from .outputs import Pass, TrainingState, total_variance
from .plain_layers import has_hooks, is_plain
from .row_gradients import Transposed
from .sparse_code import SparseCode
from .sparse_ops import chosen_products, select_rows, top_k


@strict_config
class BilinearConfig(SAEConfig):
    """[`SAEConfig`] plus the number of active latents.

    Args:
        k (`int`): latents per token.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_bilinear"

    k: int = 32
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Counts of latents lie between 1 and `d_sae`."""
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_amounts(self, "aux_coefficient")


class BilinearEncoder(nn.Module):
    """`left(x) * right(x)`, two linear maps without biases."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.left = nn.Linear(d_in, d_sae, bias=False)
        self.right = nn.Linear(d_in, d_sae, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_sae]` of `[..., d_in]`."""
        return self.left(x) * self.right(x)


class BilinearSAE(SAE):
    """An autoencoder whose `config.k` latents per token are the largest of quadratic forms."""

    config: BilinearConfig
    paper: ClassVar[str] = (
        "Pearce et al. 2024, Bilinear MLPs enable weight-based mechanistic interpretability, arXiv:2410.08417"
    )
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.left.weight", "encoder.right.weight", "decoder.weight")

    def __init__(self, config: BilinearConfig) -> None:
        super().__init__(config)
        self.post_init()

    @staticmethod
    def make_encoder(config: Any) -> nn.Module:
        """[`BilinearEncoder`]: `encoder.left` and `encoder.right`, each `[d_sae, d_in]`."""
        return BilinearEncoder(config.d_in, config.d_sae)

    @torch.no_grad()
    def init_encoder(self) -> None:
        """Unit rows at about 45° of the decoder's (random ones for a transcoder): equal rows would stay equal."""
        for layer in (self.encoder.left, self.encoder.right):
            rows = F.normalize(torch.randn_like(layer.weight), dim=-1)
            if not self.config.is_transcoder:
                rows = F.normalize(rows + self.decoder.weight, dim=-1)
            init.copy_(layer.weight, rows)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents: the `config.k` largest products, of either sign."""
        return self._largest(pre_activations, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code; with gradients and plain maps, those touch the rows of selected latents only."""
        left, right = self.encoder.left, self.encoder.right
        if not torch.is_grad_enabled() or not self._maps_are_plain():
            pre = self.pre_activations(x)
            return self._largest(pre, norm), pre
        rows = self._centred(x).reshape(-1, x.shape[-1])
        with torch.no_grad():
            products = left(rows), right(rows)
            pre = products[0] * products[1]
            indices = top_k(pre, min(self.config.k, pre.shape[-1]))
            chosen, indices = self.dictionary.choose(pre.gather(-1, indices), indices, self.config.k)
        transposed = Transposed(indices, pre.shape[-1])
        factors = [
            chosen_products(rows, layer.weight, product.gather(-1, indices), transposed)
            for layer, product in zip((left, right), products, strict=True)
        ]
        shape = (*x.shape[:-1], indices.shape[-1])
        values = (factors[0] * factors[1]).masked_fill(chosen == -torch.inf, 0).view(shape)
        return SparseCode(values, indices.view(shape), None, pre.shape[-1], norm, transposed=transposed), None

    def pre_activations_of(self, x: Tensor, latents: Tensor) -> Tensor:
        """`[..., len(latents)]`: the products of some latents; others are not computed where the maps are plain."""
        if not self._maps_are_plain():
            return super().pre_activations_of(x, latents)
        x, left, right = self._centred(x), self.encoder.left, self.encoder.right
        return F.linear(x, select_rows(left.weight, latents)) * F.linear(x, select_rows(right.weight, latents))

    def _maps_are_plain(self) -> bool:
        """Whether both maps are linear ones of which some rows may be used."""
        return is_plain(self.encoder.left) and is_plain(self.encoder.right) and not has_hooks(self.encoder)

    def _centred(self, x: Tensor) -> Tensor:
        return x - self.dictionary.copy(self.decoder()) if self.config.subtracts_bias else x

    def _largest(self, pre_activations: Tensor, norm: Norm | None) -> SparseCode:
        return largest(self, pre_activations, self.config.k, norm, rectify=False)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK."""
        return auxk(self, result)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then both maps are scaled until the first reconstructions vary as much as what they reconstruct.

        (A least-squares factor would be near 0: products of random rows are hardly correlated with the input.)
        """
        super().initialize_from(x, target, state)
        sample, norm = self.normalize(x[:SCALE_TOKENS])
        wanted = self.comparable(target[:SCALE_TOKENS]) if self.config.is_transcoder else sample
        first = self.decoder(self.latents_of(sample, norm)[0]) - self.decoder.bias
        scale = (total_variance(wanted) / float(first.square().sum(-1).mean().clamp_min(1e-12))) ** 0.25
        self.encoder.left.weight.mul_(scale)
        self.encoder.right.weight.mul_(scale)

    @torch.no_grad()
    def quadratic_form(self, latents: int | list[int] | Tensor) -> Tensor:
        """`[..., d_in, d_in]`, symmetric B of latents: each is `xᵀ B x` of its centred, normalised input, where it is selected.

        Args:
            latents (`int`, `list` or `Tensor`): indices; a matrix for each.

        Raises:
            ConfigError: for a latent that does not exist.
        """
        latents = torch.as_tensor(latents, device=self.decoder.weight.device)
        if ((latents < 0) | (latents >= self.config.d_sae)).any():
            raise ConfigError(
                f"latents={latents.tolist()} must lie between 0 and d_sae - 1 = {self.config.d_sae - 1}."
            )
        a, c = (merged(layer).weight[latents] for layer in (self.encoder.left, self.encoder.right))
        return _symmetric(a.unsqueeze(-1) * c.unsqueeze(-2))

    @torch.no_grad()
    def quadratic_form_of(self, direction: Tensor) -> Tensor:
        """`[d_in, d_in]`, symmetric B of the output along a direction `[d_out]`, if every latent were selected:
        `direction · (W_decᵀ u) = xᵀ B x`, without the bias, in the decoder's units."""
        if direction.shape != self.decoder.bias.shape:
            raise ConfigError(
                f"direction is {list(direction.shape)}, wanted [{self.config.d_out}]: one of the output."
            )
        a, c = (merged(layer).weight for layer in (self.encoder.left, self.encoder.right))
        shares = self.decoder.weight @ direction.to(self.decoder.weight)
        return _symmetric(a.T @ (shares.unsqueeze(1) * c))


@torch.no_grad()
def eigenfeatures(form: Tensor) -> tuple[Tensor, Tensor]:
    """The spectrum of quadratic forms `[..., d, d]`: `xᵀ B x = Σ_i values_i (vectors_i · x)²`.

    Returns:
        Eigenvalues `[..., d]` by falling magnitude, and unit eigenvectors as rows `[..., d, d]`. In float64, whatever the
        form's dtype.
    """
    values, vectors = torch.linalg.eigh(_symmetric(form.double()))
    order = values.abs().argsort(dim=-1, descending=True)
    return values.gather(-1, order), vectors.mT.gather(-2, order.unsqueeze(-1).expand_as(vectors))


@torch.no_grad()
def interactions(read: Tensor, mlp: tuple[Tensor, Tensor, Tensor], atoms: Tensor) -> Tensor:
    """`[..., n, n]`, symmetric Q: how pairs of atoms before a bilinear MLP `y = P ((W_l x) ⊙ (W_r x))` drive a latent after it.

    For `x = Σ_a s_a atoms_a`, `read · y = Σ_ab s_a s_b Q_ab`.

    Args:
        read (`Tensor`): `[..., d_out]`, what is read of the MLP's output, such as a latent's encoder row.
        mlp (`tuple`): `W_l` and `W_r` `[d_hidden, d_in]`, and `P` `[d_out, d_hidden]`.
        atoms (`Tensor`): `[n, d_in]`, such as decoder rows of the autoencoder before.
    """
    left, right, out = mlp
    weighted = (read @ out).unsqueeze(-2) * (atoms @ left.T)  # [..., n, d_hidden]
    return _symmetric(weighted @ (atoms @ right.T).T)


def _symmetric(form: Tensor) -> Tensor:
    return (form + form.mT) / 2
