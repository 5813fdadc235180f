"""g-SAE: the k latents of each token by what they do to the host's loss, as well as by how active they are.

Olmo, Wilson, Forsey, Hepner, Howe and Wingate 2024, "Features that make a difference: leveraging gradients for improved
dictionary learning" (arXiv 2411.10397). With the TopK autoencoder's pre-activations u and z = ReLU(u), latents are ranked by

    s = z + β · z ∘ |W_dec ĝ|,     ĝ = g / rms(g),     g = ∇ of the host's next-token loss at the place that is written,

the k largest are kept, and what is passed on is z, not s. `z_i · |w_i · g|` is how much the loss changes, to first order, when
latent i is taken away. g is a constant: nothing is differentiated twice. The loss is TopK's, error plus AuxK.

Reconstructed, since we had the paper at second hand: that activation and effect are *added* (which makes β = 0 TopK), that the
gradient of each token is scaled to a root mean square of 1 (so β has no units, and tokens with small gradients are chosen for
like others), the default β, and AuxK's use of plain pre-activations. A token without a gradient (the last one of a row, where
nothing is predicted) is TopK's. For a transcoder g is taken where it writes.

At inference a gradient that is given (`encode(x, gradient=g)`) ranks as in training. Gradients look at later tokens, and nobody
who splices or steers has one at hand, so `config.inference` says what happens without:
`"topk"` (the default) ranks by z alone; `"threshold"` keeps u > θ, where θ is a running mean, over training, of the number that k
pre-activations per token exceed on average; `"gradient"`, the faithful one, refuses to run without, and `evaluate` finds it for it.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .errors import ConfigError
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, largest, select_top_k, shorten_encoder_rows
from .outputs import Pass, SAEOutput, TrainingState, total_variance
from .pursuit import Solver
from .sparse_code import SparseCode


THRESHOLD_DECAY, THRESHOLD_TOKENS = 0.999, 256  # of the running mean, and how many tokens of a pass it looks at
NOT_ESTIMATED = -1.0  # thresholds are 0 or more


@strict_config
class GradientConfig(SAEConfig):
    """[`SAEConfig`] plus the number of active latents and how much the gradient counts.

    Args:
        k (`int`): latents per token.
        beta (`float`): weight of a latent's effect on the loss against its activation; 0 is TopK. Large ones choose latents that
            reconstruct little.
        inference (`str`): what chooses latents where no gradient is given: `"topk"`, `"threshold"`, or `"gradient"`, which is to
            refuse.
        aux_coefficient (`float`): weight of the AuxK loss; 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_gradient"

    k: int = 32
    beta: float | int = 1.0
    inference: Literal["topk", "threshold", "gradient"] = "topk"
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Counts of latents lie between 1 and `d_sae`, weights are finite and not negative."""
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_amounts(self, "beta", "aux_coefficient")


class GradientSAE(SAE):
    """A TopK autoencoder whose latents are chosen with the gradient of the host's loss."""

    config: GradientConfig
    paper: ClassVar[str] = "Olmo et al. 2024, Features that make a difference, arXiv:2411.10397"
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")
    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold"]

    def __init__(self, config: GradientConfig) -> None:
        super().__init__(config)
        self.threshold: Tensor | None = None
        if config.inference == "threshold":
            del self.threshold
            self.threshold = nn.Parameter(torch.empty(()), requires_grad=False)
        self.post_init()

    @property
    def needs_at_inference(self) -> tuple[str, ...]:
        """The gradient, where `config.inference` is `"gradient"`."""
        return self.needs if self.config.inference == "gradient" else ()

    @torch.no_grad()
    def init_encoder(self) -> None:
        """As in [`SAE`]; the threshold is not estimated yet."""
        super().init_encoder()
        if self.threshold is not None:
            init.constant_(self.threshold, NOT_ESTIMATED)

    def encode(self, hidden_states: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Dense latents `[..., d_sae]` of activations `[..., d_in]`, chosen with the gradients `[..., d_out]` if there are any."""
        latents, _ = self.latents_of(*self.normalize(hidden_states), gradient=gradient)
        return latents.to_dense() if isinstance(latents, SparseCode) else latents

    def encode_sparse(
        self, hidden_states: Tensor, solver: Solver | None = None, gradient: Tensor | None = None
    ) -> SparseCode:
        """The non-zero latents of activations `[..., d_in]`, chosen with the gradients `[..., d_out]` if there are any, or by a
        solver."""
        if solver is not None:
            return super().encode_sparse(hidden_states, solver)
        x, norm = self.normalize(hidden_states)
        latents, _ = self.latents_of(x, norm, gradient=gradient)
        return latents if isinstance(latents, SparseCode) else SparseCode.from_dense(latents, norm)

    def forward(
        self,
        hidden_states: Tensor,
        target: Tensor | None = None,
        state: TrainingState | None = None,
        output_pre_activations: bool = False,
        gradient: Tensor | None = None,
    ) -> SAEOutput:
        """As in [`SAE`].

        Args:
            gradient (`Tensor`, *optional*): `[..., d_out]`, of the host's loss at the place that is written; in training
                `state.given["gradient"]` is the same.

        Raises:
            ConfigError: without a gradient in training, or where `config.inference` is `"gradient"`; without a threshold where
                it is `"threshold"`.
        """
        if gradient is None:
            return super().forward(hidden_states, target, state, output_pre_activations)
        if state is None and target is None and not self.training:
            x, norm = self.normalize(hidden_states)
            latents, pre = self.latents_of(x, norm, gradient=gradient)
            output = SAEOutput(latents=latents, reconstruction=self._reconstruct(x, latents, norm))
            if output_pre_activations:
                output.pre_activations = self.pre_activations(x) if pre is None else pre
            return output
        compared = hidden_states if target is None else target
        state = state or TrainingState(normaliser=total_variance(self.comparable(compared)))
        given = state.given | {"gradient": gradient}
        return super().forward(hidden_states, target, replace(state, given=given), output_pre_activations)

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None, gradient: Tensor | None = None
    ) -> tuple[Tensor | SparseCode, Tensor | None]:
        """A fixed-k code, or dense latents above the threshold."""
        if gradient is None and state is not None:
            gradient = self._given(state)
        if gradient is not None:
            direction = unit_rms(gradient).to(self.decoder.weight.dtype)
            return select_top_k(self, x, self.config.k, norm, lambda pre: self.scores(pre, direction))
        if self.config.inference == "gradient":
            raise ConfigError(
                "this GradientSAE has inference='gradient' and got none: call it with gradient= (the gradient of the host's loss "
                "where it writes; ActivationStream(hook_points=[place, place + '/gradient']) serves both), or load it with "
                "from_pretrained(…, inference='topk')."
            )
        if self.config.inference == "threshold":
            pre = self.pre_activations(x)
            return self.activate(pre), pre
        return select_top_k(self, x, self.config.k, norm)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents `[..., d_sae]` where no gradient is given.

        Raises:
            ConfigError: where no threshold was estimated, because the model was not trained.
        """
        if self.threshold is None:
            return largest(self, pre_activations, self.config.k, None).to_dense()
        if not torch.compiler.is_compiling() and self.threshold < 0:
            raise ConfigError(
                "inference='threshold' needs a threshold, which training estimates, and this model has none yet. Train it, or "
                "use inference='topk'."
            )
        return torch.relu(pre_activations) * (pre_activations.float() > self.threshold)

    @torch.no_grad()
    def scores(self, pre_activations: Tensor, direction: Tensor) -> Tensor:
        """What latents are ranked by, `[..., d_sae]` in at least float32: `z + β z |W_dec ĝ|` where z > 0, u elsewhere.

        Args:
            pre_activations (`Tensor`): `[..., d_sae]`.
            direction (`Tensor`): `[..., d_out]`, the gradients with a root mean square of 1.
        """
        effect = F.linear(direction.reshape(-1, direction.shape[-1]), self.decoder.weight).abs()
        wide = torch.promote_types(pre_activations.dtype, torch.float32)
        pre, effect = pre_activations.to(wide), effect.view(pre_activations.shape).to(wide)
        return torch.where(pre > 0, pre * (1 + self.config.beta * effect), pre)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK."""
        return auxk(self, result)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As TopK's: encoder rows are fitted to the reconstruction by the k largest."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x, lambda sample: select_top_k(self, sample, self.config.k, None)[0])

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """The number that k pre-activations per token exceed on average, where a threshold is wanted."""
        if self.threshold is None:
            return {}
        sample = result.x.reshape(-1, result.x.shape[-1])[:THRESHOLD_TOKENS]
        largest_ones = self.pre_activations(sample).float().flatten().topk(self.config.k * len(sample)).values
        return {"threshold": largest_ones[-1].clamp_min(0)}

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """The running mean of the threshold."""
        super().after_step(state, output)
        if self.threshold is not None and output.statistics:
            new = output.statistics["threshold"].to(self.threshold.dtype)
            self.threshold.copy_(new if self.threshold < 0 else torch.lerp(new, self.threshold, THRESHOLD_DECAY))

    @staticmethod
    def _given(state: TrainingState) -> Tensor:
        if "gradient" not in state.given:
            raise ConfigError(
                "a GradientSAE trains on activations and gradients: give state.given['gradient'], or train it on "
                "ActivationStream(hook_points=[place, place + '/gradient']) with SAETrainer."
            )
        return state.given["gradient"]


def unit_rms(gradient: Tensor) -> Tensor:
    """Each token's gradient `[..., d]` with a root mean square of 1, in at least float32; zeros stay zero."""
    gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    # by the largest entry first: squares of small gradients would vanish
    scaled = gradient / gradient.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / scaled.square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
