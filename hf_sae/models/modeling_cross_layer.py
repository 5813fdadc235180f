"""Cross-layer transcoder: a latent reads one layer and writes to that layer and all later ones.

Ameisen et al. 2025, "Circuit tracing: revealing computational graphs in language models": `z_l = act(W_enc,l x_l + b_l)`,
`ŷ_l = b'_l + Σ_{s ≤ l} W_dec,s→l z_s`, loss `Σ_l ‖y_l - ŷ_l‖²` plus sparsity. `hook_in` lists the readers and `hook_out` the
writers, in the order of the layers; the latents are divided equally among the readers, first ones first.

* A latent of reader r writes to the writers r, r + 1, … of the list. One reader may have any number of writers, all of which
  are its; one writer any number of readers. One reader and one writer are a [`TopKSAE`] transcoder, to the bit.
* The encoder stores what exists: a row `[width of a reader]` for each latent. The decoder stores a row `[d_out]` for each latent,
  in which the entries of earlier writers are zero and stay so exactly: they get no gradient. At most half of it is such zeros.
* Sparsity is TopK: the `k` largest pre-activations of a token over all readers, with AuxK. The paper uses JumpReLU with a
  tanh penalty on activation times decoder norm; TopK is what EleutherAI's and Llamascopium's trainers offer beside it. What the
  saved model does at inference is the same as in training.
* `input_norm="scalar"` has a scale for each reader and, where there are several, for each writer: the loss counts each writer by
  its width, and reconstructions are in the writers' own units. Norms of each token are taken of each reader by itself.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .decoder import Decoder
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, largest, select_top_k
from .outputs import Pass, TrainingState
from .several_places import fitted_scales, require_scales, scaled
from .sparse_code import SparseCode


@strict_config
class CrossLayerConfig(SAEConfig):
    """[`SAEConfig`] of readers (`hook_in`) and writers (`hook_out`), each in the order of the layers, plus the sparsity.

    `d_in` and `d_out` are the sums of the places' widths, which are equal among readers and among writers.

    Args:
        k (`int`): latents per token, of all readers together.
        aux_coefficient (`float`), k_aux (`int`, *optional*): of AuxK, as in [`TopKConfig`].
        input_scales (`list` of `float`, *optional*): the factor of each of several readers under `input_norm="scalar"`;
            training sets it.
        output_scales (`list` of `float`, *optional*): the factor of each of several writers in the loss; training sets it.
    """

    model_type = "hf_sae_cross_layer"
    has_no_defaults_at_init = True  # places have to be named

    k: int = 32
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None
    input_scales: list[float | int] | None = None
    output_scales: list[float | int] | None = None

    @property
    def n_readers(self) -> int:
        """Number of places that are read."""
        return len(self.places_in)

    @property
    def n_writers(self) -> int:
        """Number of places that are written."""
        return len(self.places_out)

    @property
    def widths_in(self) -> list[int]:
        """Width of each reader."""
        return [self.d_in // self.n_readers] * self.n_readers

    @property
    def widths_out(self) -> list[int]:
        """Width of each writer."""
        return [(self.d_out or self.d_in) // self.n_writers] * self.n_writers

    def validate_places(self) -> None:
        """Readers and writers pair up, and widths and latents are divided equally among them."""
        if not self.is_transcoder:
            raise ValueError(
                f"hook_in={self.hook_in!r}, hook_out={self.hook_out!r}: a cross-layer transcoder writes other places than it "
                "reads, as in hook_in=['mlp_in.0', 'mlp_in.1'], hook_out=['mlp_out.0', 'mlp_out.1']."
            )
        if self.n_readers != self.n_writers and min(self.n_readers, self.n_writers) > 1:
            raise ValueError(
                f"{self.n_readers} readers and {self.n_writers} writers: list a writer for each reader, in the order of the "
                "layers, or one reader, or one writer."
            )
        shares = (("d_in", self.n_readers), ("d_out", self.n_writers), ("d_sae", self.n_readers))
        for name, parts in shares:
            if getattr(self, name) % parts:
                raise ValueError(
                    f"{name}={getattr(self, name)} is shared equally among {parts} places: give a multiple of {parts}."
                )
        if self.skip and self.n_readers > 1:
            raise ValueError(
                "skip=True with several readers would let later ones write to earlier places. Leave it out."
            )
        for name, parts in (("input_scales", self.n_readers), ("output_scales", self.n_writers)):
            require_scales(getattr(self, name), parts, name, self.input_norm)

    def validate_k(self) -> None:
        """Every count of latents lies between 1 and `d_sae`."""
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_amounts(self, "aux_coefficient")


class CrossLayerSAE(SAE):
    """A transcoder whose latents read one place each and write to the later ones."""

    config: CrossLayerConfig
    paper: ClassVar[str] = (
        "Ameisen et al. 2025, Circuit tracing: revealing computational graphs in language models, "
        "transformer-circuits.pub/2025/attribution-graphs/methods.html"
    )

    def __init__(self, config: CrossLayerConfig) -> None:
        super().__init__(config)
        if min(config.n_readers, config.n_writers) > 1:
            self.decoder = CausalDecoder(config.d_sae, config.d_out or config.d_in, config.n_writers)
        self.post_init()

    @staticmethod
    def make_encoder(config: SAEConfig) -> nn.Module:
        """A linear map of each reader's activations to its share of the latents."""
        readers = len(config.places_in)
        linear = readers == 1
        return nn.Linear(config.d_in, config.d_sae) if linear else BlockEncoder(config.d_in, config.d_sae, readers)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in [`SAE`]; decoder rows are of unit norm where they exist and zero elsewhere."""
        super()._init_weights(module)
        if isinstance(module, CausalDecoder):
            init.copy_(module.weight, F.normalize(module.weight * module.exists(), dim=-1))

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k` largest pre-activations."""
        return largest(self, pre_activations, self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code of the latents of all readers."""
        return select_top_k(self, x, self.config.k, norm)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK."""
        return auxk(self, result)

    def normalize(self, hidden_states: Tensor) -> tuple[Tensor, Norm | None]:
        """The input `[..., d_in]` with each reader normalised by itself."""
        config = self.config
        if config.n_readers == 1:
            return super().normalize(hidden_states)
        if config.input_scales is not None:
            return scaled(hidden_states.to(self.decoder.weight.dtype), config.widths_in, config.input_scales), None
        x, _ = super().normalize(hidden_states.unflatten(-1, (config.n_readers, -1)))
        return x.flatten(-2), None  # a transcoder undoes nothing

    def to_output_units(self, delta: Tensor, norm: Norm | None = None) -> Tensor:
        """A difference of decoder outputs `[..., d_out]` in the units of each writer."""
        scales = self.config.output_scales
        return delta if scales is None else scaled(delta, self.config.widths_out, scales, inverse=True)

    def in_loss_units(self, error: Tensor) -> Tensor:
        """Errors `[..., d_out]` with each writer in its own units, so that none drowns the others."""
        scales = self.config.output_scales
        return error if scales is None else scaled(error, self.config.widths_out, scales)

    def comparable(self, target: Tensor) -> Tensor:
        """The part of a target that is reconstructed: of each writer all, or without its mean (`center_target`)."""
        return super().comparable(target.unflatten(-1, (self.config.n_writers, -1))).flatten(-2)

    def fit_scale(self, x: Tensor) -> None:
        """A scale for each reader: mean variance 1 per dimension."""
        if self.config.n_readers == 1:
            super().fit_scale(x)
        else:
            self.config.input_scales = fitted_scales(x, self.config.widths_in)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`], with a scale for each of several writers too."""
        if self.config.input_norm == "scalar" and self.config.n_writers > 1:
            self.config.output_scales = fitted_scales(self.comparable(target), self.config.widths_out)
        super().initialize_from(x, target, state)
        self.decoder.bias.copy_(self.in_loss_units(self.decoder.bias))

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, d_sae]`, read-only: zero where a latent does not read a place."""
        if not isinstance(self.encoder, BlockEncoder):
            return super().W_enc
        return torch.block_diag(*(block.detach().T for block in self.encoder.blocks()))

    def defects(self) -> list[str]:
        """Latents that write to an earlier place than they read."""
        if not isinstance(self.decoder, CausalDecoder) or self.decoder.weight.is_meta:
            return []
        n, share = self.config.n_writers, self.config.d_sae // self.config.n_writers
        written = self.decoder.weight.detach().view(n, share, n, -1).ne(0).any(-1).sum(1)  # [readers, writers]
        found = written.tril(-1).nonzero().tolist()
        places_in, places_out = self.config.places_in, self.config.places_out
        return [
            f"{int(written[reader, writer])} of {share} latents that read {places_in[reader]!r} write to "
            f"{places_out[writer]!r}"
            for reader, writer in found
        ]

    def reader_of(self, latents: Tensor) -> Tensor:
        """The number of the place in `hook_in` that each of some latents `[m]` reads."""
        return latents // (self.config.d_sae // self.config.n_readers)


class BlockEncoder(nn.Module):
    """A linear map whose output is divided among several inputs: `weight` `[d_sae, d_in / readers]`, `bias` `[d_sae]`."""

    def __init__(self, d_in: int, d_sae: int, readers: int) -> None:
        super().__init__()
        self.readers = readers
        self.weight = nn.Parameter(torch.empty(d_sae, d_in // readers))
        self.bias = nn.Parameter(torch.empty(d_sae))

    def blocks(self) -> tuple[Tensor, ...]:
        """The rows of each reader, `[d_sae / readers, d_in / readers]`."""
        return self.weight.chunk(self.readers)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_sae]` of `[..., d_in]`."""
        parts = zip(x.chunk(self.readers, dim=-1), self.blocks(), self.bias.chunk(self.readers), strict=True)
        return torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts], dim=-1)


class CausalDecoder(Decoder):
    """A decoder in which latents of the n-th reader have no entries for the writers before the n-th."""

    def __init__(self, d_sae: int, d_out: int, writers: int) -> None:
        super().__init__(d_sae, d_out)
        self.writers = writers

    def exists(self) -> Tensor:
        """`[d_sae, d_out]` mask of the entries that exist."""
        causal = self.weight.new_ones(self.writers, self.writers).triu()
        d_sae, d_out = self.weight.shape
        return causal.repeat_interleave(d_sae // self.writers, 0).repeat_interleave(d_out // self.writers, 1)

    def rows(self) -> Tensor:
        """`weight`, whose gradient is zero where nothing exists."""
        return _OnlyExisting.apply(self.weight, self.writers) if torch.is_grad_enabled() else self.weight


class _OnlyExisting(torch.autograd.Function):
    """The weight itself; of its gradient the part that exists."""

    @staticmethod
    def forward(ctx, weight, writers):
        ctx.writers = writers
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        n = ctx.writers
        causal = grad.new_ones(n, n).triu()
        blocks = grad.view(n, grad.shape[0] // n, n, grad.shape[1] // n) * causal.view(n, 1, n, 1)
        return blocks.view(grad.shape), None
