"""The model that every architecture inherits from.

* `encode`, `decode`, `forward` and the loss are here; an architecture adds how latents are chosen (`latents_of`) and
  what its loss adds (`penalties`).
* A latent is a row of `encoder.weight` and a row of `decoder.weight`: gathers, norms and slices are contiguous.
* The model holds what inference needs. What training needs (counters, schedules, the loss normaliser) is in
  `TrainingState`, which the trainer owns.
* `__init__` only declares shapes: transformers builds models on the meta device and calls `_init_weights` last.
"""

import math
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from .adapters import (
    add_adapter,
    find_adapter,
    has_adapter,
    load_adapted,
    merge_adapter,
    merged,
    remember_place,
    save_adapter,
)
from .checkpoint import FEATURE_STATS, atomic_folder, load_strictly, read_feature_stats, without_progress_bars
from .code_export import with_code, without_code
from .configuration_sae import SAEConfig
from .dictionary import WholeDictionary
from .errors import CheckpointError
from .outputs import Pass, SAEOutput, TrainingState, total_variance
from .pinning import hub_options, is_commit, pin, remember, split_name
from .sparse_code import SparseCode
from .sparse_ops import decode as sparse_decode
from .sparse_ops import decode_rows


Norm = tuple[Tensor, Tensor]
CARD_OPTIONS = ("report", "examples", "history", "metadata")
PUSH_OPTIONS = ("private", "token", "revision", "create_pr", "commit_message")


class Decoder(nn.Module):
    """`latents @ weight + bias`, with a latent a contiguous row of `weight` `[d_sae, d_out]`."""

    def __init__(self, d_sae: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_sae, d_out))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.dictionary = WholeDictionary()

    def forward(self, latents: Tensor | SparseCode | None = None) -> Tensor:
        """`[..., d_out]`; the bias alone where no latents are given (so that offloading hooks see that read too)."""
        if latents is None:
            return self.bias
        if not isinstance(latents, SparseCode):
            return self.dictionary.sum(latents.to(self.weight.dtype) @ self.weight) + self.bias
        if latents.offsets is None:
            k = latents.values.shape[-1]
            out = sparse_decode(latents.values.reshape(-1, k), latents.indices.reshape(-1, k), self.weight)
        else:
            out = decode_rows(latents.values, latents.indices, latents.offsets, self.weight)
        return self.dictionary.sum(out).view(*latents.shape, -1) + self.bias


class SAE(PreTrainedModel):
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
    # Parameters with a row per latent. An architecture that names its own may be trained with its latents shared out
    # among processes: all that it computes over latents then has to go through `self.dictionary`.
    per_latent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.encoder = nn.Linear(config.d_in, config.d_sae)
        d_out = config.d_out or config.d_in
        self.decoder = Decoder(config.d_sae, d_out)
        self.skip = nn.Linear(config.d_in, d_out, bias=False) if config.skip else None
        self.feature_stats: dict[str, Tensor] | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Unit decoder rows, encoder rows equal to them (random unit rows for a transcoder), the rest zero."""
        # Encoder and decoder depend on each other, so both are set at one visit: the decoder's, because transformers
        # does not visit a root without parameters of its own.
        if module is not self.decoder:
            return
        init.copy_(self.decoder.weight, F.normalize(torch.randn_like(self.decoder.weight), dim=-1))
        tied = not self.config.is_transcoder
        rows = self.decoder.weight if tied else F.normalize(torch.randn_like(self.encoder.weight), dim=-1)
        init.copy_(self.encoder.weight, rows)
        init.zeros_(self.encoder.bias)
        init.zeros_(self.decoder.bias)
        if self.skip is not None:
            init.zeros_(self.skip.weight)

    def normalize(self, hidden_states: Tensor) -> tuple[Tensor, Norm | None]:
        """The input as the encoder reads it, `[..., d_in]`, and what `decode` needs to undo it on each token."""
        hidden_states = hidden_states.to(self.decoder.weight.dtype)
        kind, eps = self.config.input_norm, self.config.norm_eps
        if kind == "scalar":
            return hidden_states * self.config.input_scale, None
        if kind == "none":
            return hidden_states, None
        mean = hidden_states.new_zeros(()) if kind == "unit_rms" else hidden_states.mean(-1, keepdim=True)
        x = hidden_states - mean
        if kind == "center":
            return x, (mean, torch.ones_like(mean))
        if kind == "layer_norm":  # eps is in the divisor only, as in the autoencoders that were published with it
            std = x.std(-1, keepdim=True)
            return x / (std + eps), (mean, std)
        # a token of zeros stays zero where eps is 0
        scale = (x.square().mean(-1, keepdim=True) + eps).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        return x / scale, (mean.expand_as(scale), scale)

    def to_output_units(self, delta: Tensor, norm: Norm | None = None) -> Tensor:
        """A difference of decoder outputs `[..., d_out]` in the units of the hook point (no mean is added back)."""
        if self.config.is_transcoder or self.config.input_norm == "none":
            return delta
        if self.config.input_norm == "scalar":
            return delta / self.config.input_scale
        if norm is None:
            raise ValueError(
                f"input_norm={self.config.input_norm!r} needs norm=(mean, std) of each token: pass SparseCode.norm."
            )
        return delta * norm[1]

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[..., d_sae]`: the encoder's output for a normalised input, before the nonlinearity."""
        return self.encoder(x - self.dictionary.copy(self.decoder()) if self.config.subtracts_bias else x)

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

    def encode_sparse(self, hidden_states: Tensor) -> SparseCode:
        """The non-zero latents of activations `[..., d_in]`, with what `decode` needs of each token."""
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
                own variance normalises.
            output_pre_activations (`bool`): return them.
        """
        x, norm = self.normalize(hidden_states)
        latents, pre = self.latents_of(x, norm, state)
        reconstruction = self.decode(latents, norm)
        if self.skip is not None:
            reconstruction = reconstruction + self.skip(x)
        output = SAEOutput(reconstruction=reconstruction, latents=latents)
        if target is None and (state is not None or self.training) and not self.config.is_transcoder:
            target = hidden_states
        if target is not None:
            target = self.comparable(target)
            error = target - reconstruction
            state = state or TrainingState(normaliser=total_variance(target))
            output.losses = {"reconstruction": error.square().sum(-1).mean() / state.normaliser}
            output.losses |= self.penalties(Pass(x, norm, latents, pre, error, state))
            output.loss = torch.stack(list(output.losses.values())).sum()
        if output_pre_activations:
            output.pre_activations = self.pre_activations(x) if pre is None else pre
        return output

    def comparable(self, target: Tensor) -> Tensor:
        """The part of a target `[..., d_out]` that is reconstructed: all of it, or without its mean (`center_target`)."""
        return target - target.mean(-1, keepdim=True) if self.config.center_target else target

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """What the architecture adds to the reconstruction loss: weighted scalars by name."""
        return {}

    @torch.no_grad()
    def measure(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Sets what the loss needs to know of the data (`state.normaliser`) and leaves the SAE as it is.

        All that the training of an adapter needs: its base is fitted already.
        """
        state.normaliser = total_variance(self.comparable(target))

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Fits scale and biases to a sample of activations `[tokens, d_in]` and `[tokens, d_out]` before training.

        Sets `state.normaliser`. The input scale (under `input_norm="scalar"`) makes the mean variance per dimension 1; the decoder bias starts
        at the mean of the targets, so that the dictionary need not learn it.
        """
        if self.config.input_norm == "scalar":
            self.config.input_scale = math.sqrt(self.config.d_in / total_variance(x))
        self.measure(x, target, state)
        target = self.comparable(target)
        normalised, _ = self.normalize(target) if not self.config.is_transcoder else (target, None)
        self.decoder.bias.copy_(normalised.mean(0))

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """Called before the forward passes of an optimiser step: schedules."""

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Removes from each decoder row's gradient the part along the row, which normalisation would undo anyway."""
        weight, grad = self.decoder.weight, self.decoder.weight.grad
        if self.unit_norm_decoder and grad is not None:
            grad.addcmul_((grad * weight).sum(-1, keepdim=True), weight, value=-1)

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """Called after an optimiser step: decoder rows return to unit norm."""
        weight = self.decoder.weight
        if self.unit_norm_decoder and weight.requires_grad:  # a frozen one (under an adapter) keeps its bits
            weight.div_(torch.linalg.vector_norm(weight, dim=-1, keepdim=True).clamp_min_(1e-12))

    @property
    def dictionary(self) -> WholeDictionary:
        """The part of the dictionary that is here: all of it, except while training shares it out."""
        return self.decoder.dictionary

    @property
    def dtype(self) -> torch.dtype:
        """Of the dictionary: thresholds stay in float32 in a model of any dtype."""
        return self.decoder.weight.dtype

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, d_sae]`, read-only; a LoRA on the encoder is merged in."""
        return merged(self.encoder).weight.detach().T

    @property
    def b_enc(self) -> Tensor:
        """`[d_sae]`, read-only; a LoRA's bias is merged in."""
        return merged(self.encoder).bias.detach()

    @property
    def W_dec(self) -> Tensor:
        """`[d_sae, d_out]`, read-only."""
        return self.decoder.weight.detach()

    @property
    def b_dec(self) -> Tensor:
        """`[d_out]`, read-only."""
        return self.decoder.bias.detach()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """transformers' `from_pretrained`, strictly: see [`CheckpointError`] and [`ConfigError`] for what is refused."""
        want_info = kwargs.pop("output_loading_info", False)
        # config and tensors may be given instead of a name, as in transformers: a converted checkpoint is
        name = str(pretrained_model_name_or_path or kwargs["config"]._name_or_path)
        if pretrained_model_name_or_path is not None:
            name, subfolder = split_name(name, str(kwargs.get("subfolder") or ""))
            pretrained_model_name_or_path = name
            asked = kwargs.get("revision")
            pinned = pin(name, subfolder, asked, **hub_options(kwargs)) or "main"
            kwargs |= {"subfolder": subfolder, "revision": pinned}
            if (found := find_adapter(name, kwargs)) is not None:
                kwargs["output_loading_info"] = want_info
                return load_adapted(cls.from_pretrained, name, found, *model_args, **kwargs)
        hub_keys = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if key in kwargs}
        load = super().from_pretrained
        model, info = load_strictly(load, name, pretrained_model_name_or_path, *model_args, **kwargs)
        if pretrained_model_name_or_path is not None:
            remember_place(model, name, hub_kwargs)
            model.feature_stats = read_feature_stats(name, model.config.d_sae, hub_kwargs)
            if is_commit(pinned) and not Path(name).exists():
                model.config._commit_hash = pinned
                remember(name, asked, pinned, kwargs.get("cache_dir"))
        return (model, info) if want_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """transformers' `save_pretrained`, atomically, with the feature statistics beside the weights.

        `include_code=True` puts the modelling code beside them, so that `AutoModel.from_pretrained(…,
        trust_remote_code=True)` loads the SAE where hf_sae is not installed. `push_to_hub=True` uploads, too.
        """
        if Path(save_directory).is_file():
            raise CheckpointError(f"{str(save_directory)!r} is a file: give a folder.")
        push, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", Path(save_directory).name)
        upload = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
        code = with_code(self) if kwargs.pop("include_code", False) else without_code(self)
        with atomic_folder(Path(save_directory)) as folder, without_progress_bars(), code:
            if has_adapter(self):
                save_adapter(self, folder)
            else:
                super().save_pretrained(folder, *args, **kwargs)
            if self.feature_stats is not None:
                save_file({k: v.contiguous().cpu() for k, v in self.feature_stats.items()}, folder / FEATURE_STATS)
        if self.feature_stats is None:  # those of other weights, which stood there before
            Path(save_directory, FEATURE_STATS).unlink(missing_ok=True)
        if push:
            self.push_to_hub(repo_id, **upload, **kwargs)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Puts a new PEFT adapter on the encoder and makes it the active one, as transformers does.

        By PEFT itself: transformers 5.24 asks for a PEFT that there is not yet.

        Raises:
            CheckpointError: where PEFT is missing.
            TypeError: for a config that is not PEFT's.
            ValueError: for a name that is taken, or a config that does not fit.
        """
        add_adapter(self, adapter_config, adapter_name)

    def merge_and_unload(self) -> Any:
        """Merges the active adapter into the weights, in place, and returns the SAE, plain again and trainable."""
        merge_adapter(self)
        return self

    def push_to_hub(self, repo_id: str, *, subfolder: str | None = None, **kwargs: Any) -> str:
        """Uploads the model with a card of its own in one commit and returns the commit's address.

        Weights that stand there go, and with them what was measured on them: give `report` and what else the card shall show.

        Args:
            repo_id (`str`): `user/name`; created where it does not exist.
            subfolder (`str`, *optional*): folder in the repo, for a repo with several SAEs; its index is brought up to date.
            kwargs: for the card, `report` (`EvalReport`, also written as `eval_results.json`), `examples` (features to
                show, `hf_sae.hub.example_features`), `history` (`SAETrainer.log_history`) and `metadata` (keys of its
                header, such as `license`); `private`, `token`, `revision`, `create_pr`, `commit_message` as in
                `hf_sae.hub.push_folder`; the rest, such as `max_shard_size`, `variant` and `include_code`, is for
                `save_pretrained`.

        Raises:
            CheckpointError: for a name that is no repo id, or a card that the Hub does not take.
            OSError: if the Hub refuses or cannot be reached.
        """
        try:
            from hf_sae.hub import push_folder, save_card
        except ImportError as error:  # this file also travels to the Hub as code, without the rest of the package
            raise CheckpointError("push_to_hub writes a model card: pip install hf-sae.") from error
        upload = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
        card = {key: kwargs.pop(key) for key in CARD_OPTIONS if key in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            save_card(folder, self, repo_id=repo_id, subfolder=subfolder, **card)
            return push_folder(folder, repo_id, subfolder=subfolder, **upload)
