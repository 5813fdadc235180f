"""Llama Scope R1: JumpReLU autoencoders of DeepSeek-R1-Distill-Llama-8B, in a later layout of the same library.

`<place>/config.json` and `<place>/sae_weights.safetensors` with the tensors of `llama_scope` and `log_jumprelu_threshold` `[d_sae]`, whose
exponentials are thresholds in scaled units. The mean norms that give the scales are scalars in the weights' file,
`dataset_average_activation_norm.<hook>`; a file without them needs `input_scale=` from whoever loads it.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import ConversionError
from .draft import Pair
from .files import Files
from .llama_scope import assemble, check_computation, scale_of
from .tensors import Tensors, tensors_of


NAME = "llama-scope-r1"
_HOST = re.compile(r"Llama-Scope-R1-Distill")
_NORM = "dataset_average_activation_norm"


def matches(files: Files) -> bool:
    """Whether the asked folder holds `sae_weights.safetensors` with `config.json` (with `cfg.json` it is SAELens')."""
    named = {name for name in ("config.json", "sae_weights.safetensors", "cfg.json") if files.find(name)}
    return named == {"config.json", "sae_weights.safetensors"}


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for another architecture of the library, or where the scale of the input is not known.
    """
    config = files.json(str(files.find("config.json")))
    check_computation(config)
    host = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B" if _HOST.search(files.path_in_words) else None
    tensors = tensors_of(files, str(files.find("sae_weights.safetensors")))
    scales = _scales(files, config, tensors)
    threshold = tensors.take("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold").float().exp()
    return assemble(config, tensors, host or files.given.get("base_model"), scales, threshold).finish()


def _scales(files: Files, config: dict[str, Any], tensors: Tensors) -> tuple[float, float]:
    """`(s_in, s_out)`: from the weights' file, from the config, or as given."""
    hooks = config["hook_point_in"], config.get("hook_point_out") or config["hook_point_in"]
    said = config.get(_NORM)
    norms = dict(said) if isinstance(said, dict) else {}
    for hook in dict.fromkeys(hooks):
        tensor = tensors.take_if(f"{_NORM}.{hook}")
        if tensor is not None:
            norms[hook] = float(tensor)
    if all(hook in norms for hook in hooks):
        return scale_of(config, norms[hooks[0]], hooks[0]), scale_of(config, norms[hooks[1]], hooks[1])
    given = files.given.get("input_scale")
    if given is None or hooks[0] != hooks[1]:
        raise ConversionError(
            f"{tensors.name!r} was trained on scaled activations and does not say by how much: it lacks '{_NORM}.{hooks[0]}'. "
            "Give input_scale=, the square root of d_model over the mean norm of the activations that it was trained on."
        )
    return float(given), float(given)
