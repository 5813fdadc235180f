"""The configuration that every sparse autoencoder and transcoder shares."""

import copy
import difflib
import functools
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .errors import ConfigError


C = TypeVar("C", bound=type)

# Keys that transformers itself writes into a config.json or sets while loading one.
_TRANSFORMERS_KEYS = frozenset(
    [
        "model_type",
        "transformers_version",
        "auto_map",
        "torch_dtype",
        "name_or_path",
        "_name_or_path",
        "_commit_hash",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "quantization_config",
        "tie_word_embeddings",
        "use_cache",
        "output_attentions",
    ]
)


def strict_config(cls: C) -> C:
    """`huggingface_hub`'s `@strict`, whose failures are a [`ConfigError`].

    Every subclass of [`SAEConfig`] must carry it again: an undecorated one would check neither its own fields nor
    the `validate_*` methods it inherits.
    """
    checked: Any = strict(cls)
    for method in ("__setattr__", "validate"):
        setattr(checked, method, _with_config_errors(getattr(checked, method), cls.__name__))
    return checked


def _with_config_errors(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except StrictDataclassError as error:
            cause = error.__cause__ or error
            raise ConfigError(f"{name}: {cause}") from error

    return wrapper


@strict_config
class SAEConfig(PreTrainedConfig):
    """What an autoencoder reads, writes and computes; nothing about devices, paths or logging.

    Args:
        d_in (`int`): width of the place that is read.
        d_out (`int`, *optional*): width of the place that is written; `None` is `d_in`.
        d_sae (`int`): number of latents.
        hook_in (`str` or `list`, *optional*): place that is read, such as `"resid_post.12"`, `"vision:resid_post.5"` or
            `"model.layers.12.mlp:input"`; of several places the activations stand side by side.
        hook_out (`str`, *optional*): place that is written; `None` is `hook_in`. Another place makes a transcoder.
        pre_bias (`bool`, *optional*): subtract the decoder bias from the input. `None`: an SAE does, a transcoder
            does not (and cannot: `True` is an error there).
        skip (`bool`): add an affine map of the input to the output (transcoders only).
        input_norm (`str`): what is done to an input `x` before encoding. An SAE undoes it on its output, a transcoder
            never does.
            `"none"`; `"scalar"`: `input_scale * x`; `"center"`: `x - mean(x)`;
            `"layer_norm"`: `(x - mean(x)) / (std(x) + norm_eps)` with the unbiased deviation, as OpenAI's autoencoders;
            `"unit_ln"`: `(x - mean(x)) / sqrt(var(x) + norm_eps)` and `"unit_rms"`: `x / sqrt(mean(x²) + norm_eps)`,
            as LayerNorm and RMSNorm without gain and bias. Means and variances are over a token's dimensions.
        input_scale (`float`): the factor of `input_norm="scalar"`.
        norm_eps (`float`): the small number of the last three norms.
        center_target (`bool`): the target is `y - mean(y)` (transcoders only): what a host writes whose weights were
            centred, as TransformerLens does. A LayerNorm that reads the residual stream sees no difference.
        base_model (`str`, *optional*): the host it was trained on, and `base_revision` its commit.
        provenance (`dict`, *optional*): data, masks, host fingerprint, resolved module paths, training.

    Raises:
        ConfigError: for an unknown key, a wrong type, or values that contradict each other.
    """

    model_type = "hf_sae"
    tied = False  # whether decoder rows are the encoder's too, which needs one place to read and write

    d_in: int = 768
    d_out: int | None = None
    d_sae: int = 12288
    hook_in: str | list[str] | None = None
    hook_out: str | list[str] | None = None
    pre_bias: bool | None = None
    skip: bool = False
    input_norm: Literal["none", "scalar", "center", "layer_norm", "unit_ln", "unit_rms"] = "none"
    input_scale: float | int = 1.0
    norm_eps: float | int = 1e-5
    center_target: bool = False
    base_model: str | None = None
    base_revision: str | None = None
    provenance: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuses keys that neither this class nor transformers knows."""
        known = {f.name for f in fields(type(self))}
        for key in kwargs:
            if key in _TRANSFORMERS_KEYS:
                continue
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = (
                f" Did you mean {nearest[0]!r}?" if nearest else f" Allowed: {', '.join(sorted(_own_fields(self)))}."
            )
            raise ConfigError(f"{type(self).__name__} has no field {key!r}.{hint}")
        for name in ("hook_in", "hook_out"):  # a list of one place is that place, everywhere
            if isinstance(places := getattr(self, name), list) and len(places) == 1:
                setattr(self, name, places[0])
        if self.d_out is None:
            self.d_out = self.d_in
        super().__post_init__(**kwargs)

    def replace(self, **changes: Any) -> "SAEConfig":
        """A copy with other values, validated as a whole.

        Raises:
            ConfigError: if the values contradict each other.
        """
        copied = {name: copy.deepcopy(getattr(self, name)) for name in _own_fields(self)}
        return type(self)(**{**copied, **changes})

    @property
    def places_in(self) -> list[str]:
        """The places that are read, whose activations an input has side by side."""
        return _places(self.hook_in)

    @property
    def places_out(self) -> list[str]:
        """The places that are written; those that are read where `hook_out` is `None`."""
        return _places(self.hook_in if self.hook_out is None else self.hook_out)

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes to another place than it reads."""
        return self.hook_out is not None and self.hook_out != self.hook_in

    @property
    def subtracts_bias(self) -> bool:
        """Whether the decoder bias is subtracted from the input before encoding."""
        return not self.is_transcoder if self.pre_bias is None else self.pre_bias

    @property
    def undoes_norm_per_token(self) -> bool:
        """Whether decoding needs the mean and scale of each token's input."""
        return not self.is_transcoder and self.input_norm not in ("none", "scalar")

    def validate_sizes(self) -> None:
        """Widths are positive; only a transcoder may have two of them."""
        for name in ("d_in", "d_out", "d_sae"):
            if not 1 <= getattr(self, name) <= 2**31:
                raise ValueError(f"{name}={getattr(self, name)} must be between 1 and 2**31.")
        if self.d_out != self.d_in and not self.is_transcoder:
            raise ValueError(
                f"d_out={self.d_out} differs from d_in={self.d_in}, but hook_out={self.hook_out!r} is the place that is "
                "read. Give the transcoder's hook_out, or leave d_out out."
            )

    def validate_wiring(self) -> None:
        """`pre_bias`, `skip`, `center_target` and the norm's numbers fit the kind of autoencoder."""
        if self.pre_bias and self.is_transcoder:
            raise ValueError(
                f"pre_bias=True with hook_in={self.hook_in!r} and hook_out={self.hook_out!r}: a transcoder's decoder bias "
                "lives in its output space. Use pre_bias=False or None."
            )
        if self.tied and self.is_transcoder:
            raise ValueError(
                f"hook_out={self.hook_out!r} makes a transcoder, and {type(self).__name__} reads with the rows it writes. "
                "Leave hook_out out, or take an architecture with an encoder of its own, such as TopKConfig."
            )
        if self.skip and not self.is_transcoder:
            raise ValueError(
                "skip=True needs a transcoder: an SAE with a linear skip would copy its input. Set hook_out."
            )
        if self.center_target and not self.is_transcoder:
            raise ValueError(
                "center_target=True needs a transcoder: an SAE on centred activations has input_norm='center', which "
                "puts the mean back."
            )
        if not 0 <= self.norm_eps < 1:
            raise ValueError(f"norm_eps={self.norm_eps} must be a small number, 0 or more.")
        if not (math.isfinite(self.input_scale) and self.input_scale > 0):
            raise ValueError(f"input_scale={self.input_scale} must be a positive finite number.")


def require_between(config: SAEConfig, low: float, high: float, *names: str) -> None:
    """For `validate_*` methods: refuses fields outside `[low, high]`; `None` is allowed.

    Raises:
        ValueError: naming the first one.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            limit = "d_sae=" if high == config.d_sae else ""
            raise ValueError(f"{name}={value} must be between {low:g} and {limit}{high:g}.")


def require_amounts(config: SAEConfig, *names: str) -> None:
    """For `validate_*` methods: refuses weights that are negative or not finite.

    Raises:
        ValueError: naming the first one.
    """
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)} must be a finite number, 0 or more.")


def _places(hook: str | list[str] | None) -> list[str]:
    return list(hook) if isinstance(hook, list) else [str(hook)]


def _own_fields(config: SAEConfig) -> set[str]:
    return {f.name for f in fields(type(config))} - {f.name for f in fields(PreTrainedConfig)}
