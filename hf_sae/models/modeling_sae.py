"""The model that every architecture inherits from.

* `encode`, `decode`, `forward` and the loss are here; an architecture adds how latents are chosen (`latents_of`) and
  what its loss adds (`penalties`).
* A latent is a row of `encoder.weight` and a row of `decoder.weight`: gathers, norms and slices are contiguous.
* The model holds what inference needs. What training needs (counters, schedules, the loss normaliser) is in
  `TrainingState`, which the trainer owns.
* `__init__` only declares shapes: transformers builds models on the meta device and calls `_init_weights` last.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_sae import SAEConfig
from .decoder import Decoder
from .dictionary import WholeDictionary
from .entry_ops import squared_error_of_entries
from .mostly_zero import encode as encode_mostly_zero
from .normalising import Norm, Normalising
from .outputs import Pass, SAEOutput, TrainingState, total_variance
from .plain_layers import has_hooks, is_plain
from .pursuit import Solver
from .saving import Saving
from .sparse_code import SparseCode
from .sparse_ops import squared_error
from .weights import Weights


class SAE(Saving, Normalising, Weights, PreTrainedModel):
    """A sparse autoencoder, transcoder or skip transcoder: `x̂ = latents(x) @ W_dec + b_dec (+ skip(x))`."""

    config: SAEConfig
    base_model_prefix = "sae"
    main_input_name = "hidden_states"
    _no_split_modules: ClassVar[list[str]] = []
    unit_norm_decoder = True
    paper: ClassVar[str] = ""  # that the architecture comes from, for its card: authors, year, title, arXiv number
    # Adam's steps have one size for all entries. Decoder entries are about 1/sqrt(d_out), encoder entries several times
    # smaller (see `TopKSAE.initialize_from`): equal relative steps need unequal rates. The factor was measured.
    learning_rate_factors: ClassVar[dict[str, float]] = {"decoder.weight": 3.0}
    # Parameters with a row per latent, and what every process holds besides them where latents are shared out among
    # processes. That is for architectures that name their own: all sums over latents have to go through `self.dictionary`.
    per_latent: ClassVar[tuple[str, ...]] = ()
    held_by_all: ClassVar[tuple[str, ...]] = ("decoder.bias", "skip.weight")
    # What an architecture needs of each token besides its activation, such as ("gradient",): training puts it into
    # `state.given`, from the batch's entries `"<place>/<name>"` of the places that are written.
    needs: ClassVar[tuple[str, ...]] = ()
    # Whether in training a token's latents depend on other tokens, of which a process or a part of a batch may lack some.
    couples_tokens: ClassVar[bool] = False

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.encoder: Any = self.make_encoder(config)
        d_out = config.d_out or config.d_in
        self.decoder = Decoder(config.d_sae, d_out)
        self.skip = nn.Linear(config.d_in, d_out, bias=False) if config.skip else None
        self.feature_stats: dict[str, Tensor] | None = None
        self.fitted = False  # to data: training then goes on from the weights

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Unit decoder rows, encoder rows equal to them (random unit rows for a transcoder), the rest zero."""
        # both at one visit, since one depends on the other: the decoder's, as transformers skips a root without parameters
        if module is not self.decoder:
            return
        init.copy_(self.decoder.weight, F.normalize(torch.randn_like(self.decoder.weight), dim=-1))
        init.zeros_(self.decoder.bias)
        if self.skip is not None:
            init.zeros_(self.skip.weight)
        self.init_encoder()

    @staticmethod
    def make_encoder(config: Any) -> nn.Module | None:
        """The module that gives pre-activations; `None` where the decoder's rows are the encoder's too."""
        return nn.Linear(config.d_in, config.d_sae)

    @torch.no_grad()
    def init_encoder(self) -> None:
        """Encoder rows equal to the decoder's, which are set by now (random unit rows for a transcoder)."""
        tied = not self.config.is_transcoder
        rows = self.decoder.weight if tied else F.normalize(torch.randn_like(self.encoder.weight), dim=-1)
        init.copy_(self.encoder.weight, rows)
        init.zeros_(self.encoder.bias)

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[..., d_sae]`: the encoder's output for a normalised input, before the nonlinearity."""
        shift = self.dictionary.copy(self.decoder()) if self.config.subtracts_bias else None
        if torch.is_grad_enabled() and self.encoder_is_plain():
            weight, bias = self.encoder.weight, self.encoder.bias
            rows = encode_mostly_zero(x.reshape(-1, x.shape[-1]), (weight, bias), shift)
            return rows.view(*x.shape[:-1], len(weight))
        return self.encoder(x if shift is None else x - shift)

    def pre_activations_of(self, x: Tensor, latents: Tensor) -> Tensor:
        """`[..., len(latents)]`: the pre-activations of some latents, whose indices are given in ascending order."""
        return self.pre_activations(x)[..., latents]

    def encoder_is_plain(self) -> bool:
        """Whether the encoder is one linear map of which some rows may be used: see [`is_plain`]."""
        return is_plain(self.encoder)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents from pre-activations `[..., d_sae]`; the architecture's nonlinearity."""
        return torch.relu(pre_activations)

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[Tensor | SparseCode, Tensor | None]:
        """Latents and (where they were computed) pre-activations of a normalised input `[..., d_in]`."""
        pre = self.pre_activations(x)
        return self.activate(pre), pre

    def encode(self, hidden_states: Tensor) -> Tensor:
        """Dense latents `[..., d_sae]` of activations `[..., d_in]`."""
        latents, _ = self.latents_of(*self.normalize(hidden_states))
        return latents.to_dense() if isinstance(latents, SparseCode) else latents

    def encode_sparse(self, hidden_states: Tensor, solver: Solver | None = None) -> SparseCode:
        """The non-zero latents of activations `[..., d_in]`, with what `decode` needs of each token; by the encoder, or by a
        solver that searches the dictionary, such as [`GradientPursuit`]."""
        if solver is not None:
            return solver.encode(self, hidden_states)
        x, norm = self.normalize(hidden_states)
        latents, _ = self.latents_of(x, norm)
        return latents if isinstance(latents, SparseCode) else SparseCode.from_dense(latents, norm)

    def decode(self, latents: Tensor | SparseCode, norm: Norm | None = None) -> Tensor:
        """Reconstruction `[..., d_out]` without the skip term (which needs the input).

        Args:
            latents (`Tensor` or [`SparseCode`]): `[..., d_sae]`.
            norm (`tuple`, *optional*): per-token `(mean, std)`, needed by dense latents of an SAE that normalises each
                token; a code carries its own.

        Raises:
            ValueError: for dense latents without `norm` where it is needed.
        """
        if norm is None and isinstance(latents, SparseCode):
            norm = latents.norm
        out = self.to_output_units(self.decoder(latents), norm)
        return out + norm[0] if norm is not None and self.config.undoes_norm_per_token else out

    def forward(
        self,
        hidden_states: Tensor,
        target: Tensor | None = None,
        state: TrainingState | None = None,
        output_pre_activations: bool = False,
    ) -> SAEOutput:
        """Reconstruct, and compute the loss where there is something to compare with.

        Args:
            hidden_states (`Tensor`): `[..., d_in]`.
            target (`Tensor`, *optional*): `[..., d_out]`; an SAE's is its input.
            state ([`TrainingState`], *optional*): schedules, counters and the loss normaliser; without it the batch's
                own variance normalises. With it the reconstruction may be outside the graph: the loss is what is trained.
            output_pre_activations (`bool`): return them.
        """
        x, norm = self.normalize(hidden_states)
        latents, pre = self.latents_of(x, norm, state)
        output = SAEOutput(latents=latents)
        if target is None and (state is not None or self.training) and not self.config.is_transcoder:
            target = hidden_states
        if target is None:
            output.reconstruction = self._reconstruct(x, latents, norm)
        else:
            target = self.comparable(target)
            output.reconstruction, error, squares = self._compared(hidden_states, target, x, latents, norm, state)
            state = state or TrainingState(normaliser=total_variance(self.in_loss_units(target)))
            unexplained = squares.mean() / state.normaliser
            output.fvu = unexplained.detach()
            output.losses = {"reconstruction": self.reconstruction_weight * unexplained}
            result = Pass(x, norm, latents, pre, error, state, target)
            output.losses |= self.penalties(result)
            output.loss = torch.stack(list(output.losses.values())).sum()
            if self.training:
                output.statistics = self.statistics(result)
        if output_pre_activations:
            output.pre_activations = self.pre_activations(x) if pre is None else pre
        return output

    def _compared(
        self,
        hidden_states: Tensor,
        target: Tensor,
        x: Tensor,
        latents: Tensor | SparseCode,
        norm: Norm | None,
        state: TrainingState | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, error, and each token's squared error in loss units."""
        if state is not None and isinstance(latents, SparseCode) and self._error_is_sparse(latents):
            squares, error = self._sparse_error(x, latents, None if target is hidden_states else target)
            return target - error, error, squares
        reconstruction = self._reconstruct(x, latents, norm)
        error = target - reconstruction
        return reconstruction, error, self.in_loss_units(error).square().sum(-1)

    def _reconstruct(self, x: Tensor, latents: Tensor | SparseCode, norm: Norm | None) -> Tensor:
        reconstruction = self.decode(latents, norm)
        return reconstruction if self.skip is None else reconstruction + self.skip(x)

    def _error_is_sparse(self, latents: SparseCode) -> bool:
        """Whether one sparse product gives the squared error: a code with gradients, in units that do not vary by token."""
        if latents.transposed is None or type(self.decoder) is not Decoder:
            return False
        same_units = self.config.is_transcoder or self.config.input_norm in ("none", "scalar")
        return same_units and not has_hooks(self.decoder)

    def _sparse_error(self, x: Tensor, latents: SparseCode, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Squared error of each token and (outside the graph) the error itself, both in the target's units; `target=None` is
        the input, whose normalised form is there already."""
        unit = 1.0
        if not self.config.is_transcoder and self.config.input_norm == "scalar":
            unit = 1 / self.config.input_scale
        target = x if target is None else target / unit
        if self.skip is not None:
            target = target - self.skip(x) / unit
        rows, decoder = target.reshape(-1, target.shape[-1]), (self.decoder.weight, self.decoder.bias)
        shared = (decoder, rows, latents.transposed, self.dictionary)
        if latents.offsets is None:
            k = latents.values.shape[-1]
            squares, error = squared_error(latents.values.reshape(-1, k), latents.indices.reshape(-1, k), *shared)
        else:
            squares, error = squared_error_of_entries(latents.values, latents.indices, latents.offsets, *shared)
        squares, error = squares.view(target.shape[:-1]), error.view(target.shape)
        return (squares, error) if unit == 1 else (squares * unit**2, error * unit)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """What the architecture adds to the reconstruction loss: weighted scalars by name."""
        return {}

    @property
    def reconstruction_weight(self) -> float:
        """Of the whole code's error in the loss; less than 1 where the loss is a mean over several reconstructions."""
        return 1.0

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """What `after_step` needs to know of the whole batch, as means over its tokens or, under names that end in
        `_max`, as maxima: training puts the parts of a batch and the processes together, in `output.statistics`."""
        return {}

    @torch.no_grad()
    def measure(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Sets what the loss needs to know of the data (`state.normaliser`): all that an adapter's training needs."""
        state.normaliser = total_variance(self.in_loss_units(self.comparable(target)))

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Fits scale and biases to a sample of activations `[tokens, d_in]` and `[tokens, d_out]` before training.

        Sets `state.normaliser`. The input scale (under `input_norm="scalar"`) makes the mean variance per dimension 1; the decoder bias starts
        at the mean of the targets, so that the dictionary need not learn it.
        """
        if self.config.input_norm == "scalar":
            self.fit_scale(x)
        self.measure(x, target, state)
        target = self.comparable(target)
        normalised, _ = self.normalize(target) if not self.config.is_transcoder else (target, None)
        self.decoder.bias.copy_(normalised.mean(0))

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """Called before the forward passes of an optimiser step: schedules."""

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """Thresholds, controllers: after a step, with unit decoder rows and `output.statistics` of the whole batch."""

    @classmethod
    def keys_for(cls, config: SAEConfig) -> list[str]:
        """What a training batch by hook point must hold: places read and written, and what is needed besides."""
        needed = [f"{place}/{name}" for name in cls.needs for place in config.places_out]
        return list(dict.fromkeys((*config.places_in, *config.places_out, *needed)))

    @property
    def needs_at_inference(self) -> tuple[str, ...]:
        """Of `needs`, what calls have to be given by name outside of training."""
        return ()

    @property
    def batch_keys(self) -> list[str]:
        """[`keys_for`] this model's config."""
        return self.keys_for(self.config)

    @property
    def dictionary(self) -> WholeDictionary:
        """The part of the dictionary that is here: all of it, except while training shares it out."""
        return self.decoder.dictionary

    @property
    def dtype(self) -> torch.dtype:
        """Of the dictionary: thresholds stay in float32 in a model of any dtype."""
        return self.decoder.weight.dtype
