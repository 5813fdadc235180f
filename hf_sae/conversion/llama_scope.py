"""Llama Scope: JumpReLU autoencoders and transcoders of Llama 3.1 8B (He et al. 2024, arXiv 2410.20526).

`<place>/hyperparams.json` and `<place>/checkpoints/final.safetensors` with `encoder.weight` `[d_sae, d_model]`, `decoder.weight`
`[d_model, d_sae]` and biases, for activations of mean norm √d_model: the input is multiplied by `s_in = √d_model / norm["in"]`, the
output divided by `s_out = √d_model / norm["out"]`. The one threshold θ is in units of the host, as read in the authors' library, which
folds these scales and the decoder's norms into the weights: a latent counts if `u · ‖w‖ > θ s_out`, with `u` its
pre-activation and `w` its row of the decoder, or without `sparsity_include_decoder_norm` if `u > θ s_in`. Latents keep the
units of the file, as in SAELens and on Neuronpedia; in the authors' library they are `u · ‖w‖ / s_out`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .places import from_lens
from .tensors import Tensors, tensors_of


NAME = "llama-scope"
_HOST = re.compile(r"Llama3_1(-8B-)?Base")
# the library can do more than what was published; another value is a computation that is not done here
_FIXED = {"act_fn": "jumprelu", "norm_activation": "dataset-wise", "use_glu_encoder": False, "sae_type": "sae"}


def matches(files: Files) -> bool:
    """Whether the asked folder holds `hyperparams.json` and `checkpoints/final.safetensors`."""
    return files.find("hyperparams.json") is not None and files.find("checkpoints/final.safetensors") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for an activation or norm that these do not have, or shapes against the config.
    """
    config = files.json(str(files.find("hyperparams.json")))
    check_computation(config)
    norms = config.get("dataset_average_activation_norm")
    norms = norms if isinstance(norms, dict) else {}
    scales = tuple(scale_of(config, norms.get(key, norms.get("in")), key) for key in ("in", "out"))
    threshold = config.get("jump_relu_threshold")
    if not isinstance(threshold, int | float):
        raise ConversionError(f"jump_relu_threshold={threshold!r} is not a number.")
    host = "meta-llama/Llama-3.1-8B" if _HOST.search(files.path_in_words) else files.given.get("base_model")
    tensors = tensors_of(files, str(files.find("checkpoints/final.safetensors")))
    unit = scales[1] if config.get("sparsity_include_decoder_norm") else scales[0]
    draft = assemble(config, tensors, host, (scales[0], scales[1]), threshold * unit)
    if isinstance(config.get("top_k"), int):
        draft.published["l0"] = float(config["top_k"])
    return draft.finish()


def check_computation(config: dict[str, Any]) -> None:
    """Refuses what the authors' library can compute beyond what was published.

    Raises:
        ConversionError: that names the key and its value.
    """
    if not isinstance(config.get("hook_point_in"), str) or not isinstance(config.get("d_model"), int):
        raise ConversionError(
            f"the config lacks 'hook_point_in' or 'd_model'. It has: {', '.join(config) or 'nothing'}."
        )
    for key, known in _FIXED.items():
        value = config.get(key, known)
        if (value.lower() if isinstance(value, str) else value) != known:
            raise ConversionError(f"{key}={value!r} is not known here: published checkpoints have {known!r}.")


def scale_of(config: dict[str, Any], norm: Any, which: str) -> float:
    """√d_model over the mean norm of activations.

    Raises:
        ConversionError: if the norm is none.
    """
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < float("inf"):
        raise ConversionError(f"dataset_average_activation_norm[{which!r}]={norm!r} is not a positive number.")
    return float(config["d_model"]) ** 0.5 / norm


def assemble(
    config: dict[str, Any],
    tensors: Tensors,
    host: str | None,
    scales: tuple[float, float],
    threshold: Tensor | float,
) -> Draft:
    """The draft of weights that were trained on scaled activations.

    Args:
        config (`dict`): `hook_point_in`, `hook_point_out`, `d_model` and flags.
        tensors ([`Tensors`]): weights and biases, and nothing else.
        host (`str`, *optional*): its id.
        scales (`tuple`): `(s_in, s_out)`.
        threshold (`Tensor` or `float`): in scaled units.

    Raises:
        ConversionError: for other tensors, or shapes against the config.
    """
    hook_in = config["hook_point_in"]
    if host is None and "hook_normalized" in hook_in:
        raise ConversionError(
            f"which norm {hook_in!r} reads depends on the host, which the names do not say. Give base_model='org/model'."
        )
    draft = Draft(
        tensors.take("encoder.weight", ndim=2),
        tensors.take("decoder.weight", ndim=2).T,
        tensors.take("encoder.bias"),
        tensors.take("decoder.bias") if config.get("use_decoder_bias", True) else None,
        base_model=host,
        pre_bias=False,
        **from_lens(hook_in, host).fields(),
    )
    tensors.done()
    d_sae = config.get("d_sae") or config["d_model"] * config.get("expansion_factor", 0) or draft.d_sae
    if (draft.d_in, draft.d_sae) != (config["d_model"], d_sae):
        raise ConversionError(
            f"the config says {config['d_model']} dimensions and {d_sae} latents, the tensors have {draft.d_in} and {draft.d_sae}."
        )
    draft.jump(threshold)
    if config.get("sparsity_include_decoder_norm"):
        draft.fold_decoder_norms(latents=False)
    _unscale(draft, config, host, scales)
    return draft


def _unscale(draft: Draft, config: dict[str, Any], host: str | None, scales: tuple[float, float]) -> None:
    """An autoencoder keeps its scale in the config, a transcoder has it in the weights: it has two of them."""
    hook_in, subtracts = config["hook_point_in"], bool(config.get("apply_decoder_bias_to_pre_encoder"))
    hook_out = config.get("hook_point_out") or hook_in
    if hook_out != hook_in:
        if subtracts:  # before the scale, because the bias is subtracted from scaled activations
            draft.fold_input_bias(draft.b_dec)
        draft.fields["hook_out"] = from_lens(hook_out, host).point
        draft.fold_input_scale(*scales)
        return
    if abs(scales[0] / scales[1] - 1) > 1e-6:
        raise ConversionError(f"one place, {hook_in!r}, with two scales: {scales[0]:g} and {scales[1]:g}.")
    draft.fields["pre_bias"] = subtracts
    draft.scale_input(scales[0])
