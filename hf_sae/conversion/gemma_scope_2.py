"""Gemma Scope 2: JumpReLU autoencoders, transcoders and skip transcoders of Gemma 3.

`<kind>/layer_L_width_W_l0_S[_affine]/params.safetensors` with `w_enc` `[d_in, d_sae]`, `w_dec` `[d_sae, d_out]`, `b_enc`, `b_dec`,
`threshold` and, in skip transcoders, `affine_skip_connection` `[d_in, d_out]` (the input times it); kinds are `resid_post`, `attn_out`,
`mlp_out`, `transcoder`, each with or without `_all`. `config.json` beside it names the places as module paths; where it is
missing they follow from the names. Nothing is subtracted from the input.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .gemma_scope import check_width
from .places import Reading, from_path
from .tensors import tensors_of


NAME = "gemma-scope-2"
_REPO = re.compile(r"gemma-scope-2-(\d+[mb])-(pt|it)")
# what is read and what is written; `attn_out` was trained on the concatenated heads, the input of the output projection
_KINDS = {
    "resid_post": ("output", "output"),
    "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input"),
    "mlp_out": ("post_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}
_TYPES = (None, "sae", "transcoder", "skip_transcoder")


def matches(files: Files) -> bool:
    """Whether the asked folder holds `params.safetensors`, or lies among Gemma Scope 2's cross-layer transcoders."""
    return files.find("params.safetensors") is not None or _is_cross_layer(files)


def _is_cross_layer(files: Files) -> bool:
    inside = "clt" in files.path_in_words.split("/") and _REPO.search(files.path_in_words) is not None
    return inside and files.above("config.yaml") is None  # with it, it is circuit-tracer's


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: if names, config and tensors contradict each other, or it is none of these architectures.
    """
    if _is_cross_layer(files):
        raise ConversionError(
            f"{files.path_in_words!r} is a cross-layer transcoder (CLT): its latents write to all later layers, which an "
            "autoencoder or transcoder of one place cannot express. Load a folder under transcoder/ or transcoder_all/."
        )
    name = files.find("config.json")
    config = files.json(name) if name else {}
    _check(config)
    host = _host(files, config)
    source, target = _places(files, config, host)
    tensors = tensors_of(files, str(files.find("params.safetensors")))
    skip = tensors.take_if("affine_skip_connection", ndim=2)
    _check_affine(files, config, skip is not None)
    draft = Draft(
        tensors.take("w_enc", ndim=2).T,
        tensors.take("w_dec", ndim=2),
        tensors.take("b_enc"),
        tensors.take("b_dec"),
        None if skip is None else skip.T,
        pre_bias=False,
        base_model=host,
        **source.fields(),
    )
    draft.jump(tensors.take("threshold"))
    tensors.done()
    check_width(files.path_in_words, draft.d_sae)
    if config.get("width", draft.d_sae) != draft.d_sae:
        raise ConversionError(f"{name!r} says width {config['width']} and the tensors have {draft.d_sae:,} latents.")
    if target != source:
        draft.fields["hook_out"] = target.point
    if isinstance(config.get("l0"), int | float):
        draft.published["l0"] = float(config["l0"])
    return draft.finish()


def _check(config: dict[str, Any]) -> None:
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ConversionError(f"architecture={config['architecture']!r} is not known; Gemma Scope 2 has 'jump_relu'.")
    if config.get("type") not in _TYPES:
        raise ConversionError(
            f"a {config['type']!r} has more than one place to read or write, which an autoencoder or transcoder of one place "
            f"cannot express. Known types: {', '.join(t for t in _TYPES if t)}."
        )


def _host(files: Files, config: dict[str, Any]) -> str:
    """The host's id: configs write `gemma-v3` for `gemma-3`, and the 270m base model has no `-pt` on the Hub."""
    repos = _REPO.findall(files.path_in_words)
    name = config.get("model_name") or (f"gemma-3-{repos[-1][0]}-{repos[-1][1]}" if repos else None)
    if not isinstance(name, str):
        raise ConversionError(
            f"neither a config.json nor the name {files.path_in_words!r} says the host. Keep the repo's name, as in "
            "'google/gemma-scope-2-1b-pt'."
        )
    name = name.replace("-v3", "-3")
    name = name.removesuffix("-pt") if "270m" in name else name
    return name if "/" in name else f"google/{name}"


def _places(files: Files, config: dict[str, Any], host: str) -> tuple[Reading, Reading]:
    """Where it reads and where it writes; an autoencoder's config says the same place twice, or once."""
    paths = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    source, target = (from_path(path, host) if path else None for path in paths)
    named = _from_names(files.path_in_words, host)
    if named is None:
        if source is None:
            raise ConversionError(
                f"neither a config.json nor the names in {files.path_in_words!r} say the place. Keep them, as in "
                "'resid_post/layer_13_width_16k_l0_big'."
            )
        return source, target or source
    for path, said, expected in zip(paths, (source, target), named, strict=True):
        if said is not None and said != expected:
            raise ConversionError(
                f"config.json says {path!r}, which is {said.point!r}, and the names in {files.path_in_words!r} say "
                f"{expected.point!r}."
            )
    return named


def _from_names(path: str, host: str) -> tuple[Reading, Reading] | None:
    kinds = [part.removesuffix("_all") for part in path.split("/") if part.removesuffix("_all") in _KINDS]
    layers = re.findall(r"(?:^|/)layer_(\d+)(?=_|/|$)", path)
    if not kinds or not layers:
        return None
    source, target = (from_path(f"model.layers.{layers[-1]}.{inner}", host) for inner in _KINDS[kinds[-1]])
    return source, target


def _check_affine(files: Files, config: dict[str, Any], found: bool) -> None:
    said = config.get("affine_connection", found)
    if bool(said) != found or (files.path_in_words.endswith("_affine") and not found):
        raise ConversionError(
            f"{files.path_in_words!r} {'has' if found else 'lacks'} the tensor 'affine_skip_connection', against "
            f"{'its config.json' if bool(said) != found else 'its name'}: a file in the wrong folder?"
        )
