"""BatchTopK: the k·B largest pre-activations of a batch of B tokens, so that a token may have more latents than another.

Bussmann et al. 2024, "BatchTopK Sparse Autoencoders" (arXiv 2412.06410): of `a = ReLU(W_enc (x - b_dec) + b_enc)`,
`[B, d_sae]`, training keeps the `round(k B)` largest entries of the flattened matrix; the loss is the squared error and
AuxK. Zeros are never kept, so that tokens without positive pre-activations leave their share to others. k may be a fraction.

The saved model does not look at other tokens: `z = u · 1[u > θ]`, where the scalar θ is the running mean over batches of
the smallest entry that was kept, and is saved in float32. A model whose θ was never set refuses to run.

* "Mutual Choice" (Ayonrinde 2024, arXiv 2411.02124), the largest affinities between all tokens and all features, is the
  same selection: `hf-sae train --arch mutual_choice` trains this file.
* θ's mean is exponential, of about 100 steps, and divided by its total weight: without bias from the first step on (a mean
  that starts at 0 lets too many latents through for long).
* The encoder's product has no graph: gradients touch the kept entries only (`entry_ops`).
* Parts of an accumulated batch, and processes that share out tokens, select among their own. Padding must be left out before, as streams do.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from .adapters import has_adapter
from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .dictionary import WholeDictionary
from .entry_ops import Choice, compressed
from .entry_ops import select_entries as select_entries_of
from .errors import ConfigError
from .modeling_jumprelu import JumpReLUSAE
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, shorten_encoder_rows
from .outputs import Pass, SAEOutput, TrainingState
from .rewriting import as_jumprelu
from .sparse_code import SparseCode
from .sparse_ops import top_k


UNSET = -1.0  # of a threshold that no batch has set: kept entries are positive
DECAY = 0.99  # of the mean over steps that a threshold is
TOKENS_PER_ESTIMATE = 4096


@strict_config
class BatchTopKConfig(SAEConfig):
    """[`SAEConfig`] plus the mean number of active latents.

    Args:
        k (`float`): latents per token, in the mean over a batch; may be a fraction.
        aux_coefficient (`float`): weight of the AuxK loss (see [`TopKConfig`]). 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_batch_topk"

    k: float | int = 32
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Every count of latents is above 0 and at most `d_sae`."""
        require_mean_l0(self)


class BatchTopKSAE(SAE):
    """An autoencoder with `config.k` latents per token in the mean, chosen by one threshold once it is trained."""

    config: BatchTopKConfig
    paper: ClassVar[str] = "Bussmann et al. 2024, BatchTopK Sparse Autoencoders, arXiv:2412.06410"
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")
    held_by_all: ClassVar[tuple[str, ...]] = (*SAE.held_by_all, "threshold")
    couples_tokens: ClassVar[bool] = True
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold"]
    threshold: Tensor

    def __init__(self, config: BatchTopKConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.empty(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self.decoder:
            init.constant_(self.threshold, UNSET)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents `u · 1[u > θ]`, compared in float32.

        Raises:
            ConfigError: while θ was never set.
        """
        return above(self, pre_activations)

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[Tensor | SparseCode, Tensor | None]:
        """In training the code of the batch's largest pre-activations, otherwise dense latents above θ."""
        if state is None and not self.training:
            return super().latents_of(x, norm)
        return select_batch_top_k(self, x, self.config.k, norm)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK."""
        return auxk(self, result)

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
        """Sets θ from a sample of activations `[..., d_in]`, as training would with frozen weights, and returns it.

        Raises:
            ConfigError: if no pre-activation of the sample is positive.
        """
        return estimate_threshold(self, hidden_states, self.config.k)

    def to_jumprelu(self) -> JumpReLUSAE:
        """The [`JumpReLUSAE`] of the same outputs; a `ConfigError` while θ was never set."""
        require_threshold(self)
        return as_jumprelu(self, self.threshold, target_l0=self.config.k)


def require_mean_l0(config: Any) -> None:
    """For `validate_*` methods: `k`, `k_aux` and `aux_coefficient` of selections across a batch.

    Raises:
        ValueError: naming the first that is out of range.
    """
    if not 0 < config.k <= config.d_sae:
        raise ValueError(f"k={config.k} must be above 0 and at most d_sae={config.d_sae}.")
    require_between(config, 1, config.d_sae, "k_aux")
    require_amounts(config, "aux_coefficient")


@torch.no_grad()
def batch_top_k(pre_activations: Tensor, k: float, dictionary: WholeDictionary | None = None) -> Tensor:
    """`[entries]`, ascending: where in the flattened `[tokens, d_sae]` the `round(k * tokens)` largest positive values are.

    Fewer, where fewer are positive, or some are in other parts of the `dictionary`. Which of equal values are taken is not
    defined, as in `Tensor.topk`.
    """
    flat = pre_activations.reshape(-1)
    count = round(k * pre_activations.shape[0])
    if not count:
        return torch.empty(0, dtype=torch.long, device=flat.device)
    here = min(count, len(flat))
    # a GPU's own selection is made for one long row, the tournament for a CPU
    chosen = flat.topk(here, sorted=False).indices if flat.is_cuda else top_k(flat, here)
    chosen = chosen[flat[chosen] > 0].sort().values
    return chosen if dictionary is None else chosen[dictionary.among(flat[chosen], count)]


def select_batch_top_k(sae: SAE, x: Tensor, k: float, norm: Norm | None) -> tuple[SparseCode, Tensor | None]:
    """The code of the `round(k * tokens)` largest pre-activations of a normalised input `[..., d_in]`."""
    return select_entries(sae, x, lambda pre: batch_top_k(pre, k, sae.dictionary), norm)


def select_entries(sae: SAE, x: Tensor, choose: Choice, norm: Norm | None) -> tuple[SparseCode, Tensor | None]:
    """The code of the pre-activations that `choose` takes, and all of them if they are at hand.

    With gradients and a plain encoder only what is chosen gets a gradient product.

    Args:
        x (`Tensor`): `[..., d_in]`, normalised.
        choose (`Callable`): from pre-activations `[tokens, d_sae]` to ascending positions in them, flattened.
    """
    rows, pre = x.reshape(-1, x.shape[-1]), None
    if torch.is_grad_enabled() and sae.encoder_is_plain():
        shift = sae.dictionary.copy(sae.decoder()) if sae.config.subtracts_bias else None
        values, places = select_entries_of(rows, (sae.encoder.weight, sae.encoder.bias), shift, choose)
    else:
        pre = sae.pre_activations(x)
        flat = pre.reshape(len(rows), -1)
        positions = choose(flat.detach())
        values, places = flat.reshape(-1)[positions], compressed(positions, *flat.shape)
    indices, offsets, transposed = places
    shape = tuple(x.shape[:-1])
    return SparseCode(values, indices, offsets, transposed.d_sae, norm, shape, transposed), pre


def above(sae: Any, pre_activations: Tensor) -> Tensor:
    """`u · 1[u > θ]` of `[..., d_sae]`, compared in float32, with `sae.threshold` a scalar or `[d_sae]`.

    A latent whose threshold is unset has never been kept, and does not fire.

    Raises:
        ConfigError: while all are unset.
    """
    threshold = sae.threshold
    if not torch.compiler.is_compiling():  # a graph cannot ask; it would keep nothing
        require_threshold(sae)
    threshold = threshold.where(threshold >= 0, torch.inf)
    compared = pre_activations.to(torch.promote_types(pre_activations.dtype, torch.float32))
    return pre_activations * (compared > threshold)


def require_threshold(sae: Any) -> None:
    """Refuses a model whose thresholds were never set.

    Raises:
        ConfigError: saying how to set them.
    """
    if bool((sae.threshold < 0).all()):
        raise ConfigError(
            f"the threshold of this {type(sae).__name__} was never set, so that it cannot choose latents without a batch. "
            "Train it, or set the threshold from a sample of its activations: sae.estimate_threshold(x)."
        )


def smallest_kept(sae: SAE, code: Any) -> dict[str, Tensor]:
    """Statistics for `update_threshold`: the smallest value of a code, over all latents, and whether there was one."""
    values = code.values.detach().float()
    least = sae.dictionary.least(values.min() if len(values) else values.new_tensor(torch.inf))
    kept = torch.isfinite(least)
    return {"smallest_kept": least.where(kept, 0.0), "kept": kept.to(values.dtype)}


@torch.no_grad()
def update_threshold(sae: Any, state: TrainingState, output: SAEOutput) -> None:
    """One step of the running mean that `sae.threshold` is, from `output.statistics` (`smallest_kept` and `kept`).

    An adapter is saved without thresholds, so while one is trained they stay those of its base.
    """
    if output.statistics and not has_adapter(sae):
        smallest, kept = output.statistics["smallest_kept"], output.statistics["kept"]
        weight = state.tensors.get("threshold_weight", torch.zeros_like(sae.threshold))
        state.tensors["threshold_weight"] = running_mean_(sae.threshold, weight.to(smallest.device), smallest, kept)


@torch.no_grad()
def running_mean_(mean: Tensor, weight: Tensor, value: Tensor, share: Tensor, decay: float = DECAY) -> Tensor:
    """Moves an exponential mean in place towards `value / share`, where `share > 0`; returns the mean's new weight.

    The first value replaces what was there, since a mean is divided by its weight (which starts at 0 and tends to 1).

    Args:
        mean (`Tensor`), weight (`Tensor`), value (`Tensor`), share (`Tensor`): of one shape.
    """
    seen = share > 0
    weight = torch.where(seen, decay * weight + (1 - decay), weight)
    step = torch.where(seen, (1 - decay) / weight.clamp_min(1e-12), 0.0)
    mean += (step * (value / share.clamp_min(1e-12) - mean)).to(mean.dtype)
    return weight


@torch.no_grad()
def estimate_threshold(sae: Any, hidden_states: Tensor, k: float) -> float:
    """Sets a scalar `sae.threshold` to the mean over batches of a sample `[..., d_in]` of the smallest kept entry.

    Raises:
        ConfigError: if no pre-activation of the sample is positive.
    """
    found = []
    for rows in hidden_states.reshape(-1, hidden_states.shape[-1]).split(TOKENS_PER_ESTIMATE):
        code, _ = select_batch_top_k(sae, sae.normalize(rows)[0], k, None)
        if len(code.values):
            found.append(code.values.min().float())
    if not found:
        raise ConfigError(
            f"no pre-activation of the {hidden_states[..., 0].numel()} activations is positive: there is no threshold. "
            f"Give [tokens, {sae.config.d_in}] of the place that is read, {sae.config.hook_in!r}."
        )
    sae.threshold.copy_(torch.stack(found).mean())
    return float(sae.threshold)
