"""Writing SAELens' layout of version 6, such that `SAE.load_from_disk` gives the same latents and reconstructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..errors import ConversionError
from ..hosts.hook_points import HookPoint
from ..models import SAE
from ..models.checkpoint import atomic_folder
from .draft import Draft
from .names import lens_name
from .places import host_norm, to_lens
from .saelens_config import CONFIG, WEIGHTS


_NORMED = {"resid_pre": "ln1.hook_normalized", "resid_mid": "ln2.hook_normalized"}
_CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


def write(sae: SAE, path: str | Path) -> list[str]:
    """Writes a model as SAELens 6 reads it.

    Args:
        sae ([`SAE`]): the model.
        path (`str` or `Path`): a folder; it is made where it does not exist.

    Returns:
        `list[str]`: the transforms that were needed, in words.

    Raises:
        ConversionError: for what SAELens has no class or setting for.
    """
    draft = Draft.of(sae)
    if draft.is_transcoder and draft.k is not None:
        raise ConversionError("SAELens has no TopK transcoder: write it as 'sparsify' or 'ours'.")
    metadata = _hooks(draft)
    norm = _norm(draft, metadata)
    data = (sae.config.provenance or {}).get("data") or {}
    cfg = {
        "architecture": _architecture(draft),
        "d_in": draft.d_in,
        "d_sae": draft.d_sae,
        **({"d_out": draft.d_out} if draft.is_transcoder else {}),
        **({"k": draft.k, "rescale_acts_by_decoder_norm": False} if draft.k is not None else {}),
        "dtype": str(draft.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": draft.fields["pre_bias"],
        "normalize_activations": norm,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # of the layout
            "sae_lens_training_version": None,
            "model_name": lens_name(draft.fields["base_model"]),
            **metadata,
            "dataset_path": data.get("dataset"),
            "context_size": data.get("context_length"),
            "prepend_bos": data.get("prepend_bos", True),
        },
    }
    weights = {"W_enc": draft.encoder.T, "W_dec": draft.decoder, "b_enc": draft.b_enc, "b_dec": draft.b_dec}
    weights |= {"W_skip": draft.skip} if draft.skip is not None else {}
    stored = {key: value.to(draft.encoder.dtype).contiguous() for key, value in weights.items()}
    if draft.threshold is not None:
        stored["threshold"] = draft.threshold  # in float32 whatever the rest is
    with atomic_folder(path) as folder:
        (folder / CONFIG).write_text(json.dumps(cfg, indent=1) + "\n", encoding="utf-8")
        save_file(stored, folder / WEIGHTS)
    return draft.transforms


def _architecture(draft: Draft) -> str:
    kind = "topk" if draft.k is not None else "standard" if draft.threshold is None else "jumprelu"
    if not draft.is_transcoder:
        return kind
    transcoder = "transcoder" if draft.skip is None else "skip_transcoder"
    return transcoder if kind == "standard" else f"{kind}_{transcoder}"


def _hooks(draft: Draft) -> dict[str, Any]:
    """TransformerLens' hooks of places by meaning; a module's output is a hook of an `AutoModelForCausalLM`."""
    found: dict[str, Any] = {}
    for key, suffix in (("hook_in", ""), ("hook_out", "_out")):
        if draft.fields[key] is None or (suffix and not draft.is_transcoder):
            continue
        point = HookPoint(draft.fields[key])
        if point.path is None:
            hook = to_lens(point.text)
            if hook == point.text or point.tower not in (None, "text"):
                raise ConversionError(
                    f"{key}={point.text!r} has no hook in TransformerLens: give its module path as {key}=, or keep it in ours."
                )
            found[f"hook_name{suffix}"] = hook
            continue
        found[f"hf_hook_name{suffix}"] = f"{point.path}.{point.side}"
        if point.side == "output":
            found |= {f"hook_name{suffix}": point.path, "model_class_name": "AutoModelForCausalLM"}
    return found


def _norm(draft: Draft, metadata: dict[str, Any]) -> str:
    """The setting that does what `input_norm` does; places in the metadata change where a norm is a hook of its own.

    Raises:
        ConversionError: if there is none.
    """
    draft.unscale()
    host = draft.fields["base_model"] or ""
    kind, eps, centred = draft.fields["input_norm"], draft.fields["norm_eps"], draft.fields["center_target"]
    if kind == "center" and draft.is_transcoder:
        draft.fold_centering()
        kind = "none"
    if centred or kind == "center":
        if host_norm(host)[0] != "unit_ln":
            raise ConversionError(
                f"SAELens reads centred activations from hosts that TransformerLens centres, those with LayerNorm, and "
                f"base_model={host or None!r} is not known as one: keep it in ours."
            )
        metadata |= _CENTRED
        draft.transforms.append("its host is to be loaded with center_writing_weights=True, as its metadata says")
        kind = "none" if kind == "center" else kind
    if kind == "none":
        return "none"
    if draft.is_transcoder and (kind, eps) == host_norm(host):
        point = HookPoint(draft.fields["hook_in"])
        if point.name in _NORMED:
            metadata["hook_name"] = f"blocks.{point.layer}.{_NORMED[point.name]}"
            return "none"
    if draft.skip is None and (kind, eps) == ("layer_norm", 1e-5):
        return "layer_norm"
    if draft.skip is None and (kind, eps) == ("unit_rms", 0):
        return "constant_norm_rescale"
    raise ConversionError(
        f"SAELens cannot express input_norm={kind!r} with norm_eps={eps}"
        + (" and a skip" if draft.skip is not None else "")
        + ": keep it in ours."
    )
