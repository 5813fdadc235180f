"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 (flat keys and `metadata`) and before (all keys flat).

`W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`, `b_enc`, `b_dec`; JumpReLU has `threshold`, gated `b_gate`, `b_mag` and `r_mag`, skip
transcoders `W_skip` `[d_out, d_in]`, which acts on the input before any normalisation. Read in SAELens 6.54.12.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import ConversionError
from ..models import SAE
from ..models.checkpoint import atomic_folder
from .draft import Draft, Pair
from .files import Files
from .names import facts_about, hub_name
from .places import Reading, from_lens, from_path, to_lens
from .tensors import Tensors, tensors_of


NAME = "saelens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_JUMP = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder", "batchtopk", "matryoshka_batchtopk")
_PLAIN = ("standard", "transcoder", "skip_transcoder")
ARCHITECTURES = (*_PLAIN, "topk", "gated", *_JUMP)
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def matches(files: Files) -> bool:
    """Whether the asked folder holds SAELens' two files."""
    return files.find(CONFIG) is not None and files.find(WEIGHTS) is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for an architecture, a hook or a normalisation that cannot be expressed, and for damaged files.
    """
    cfg = _modern(files.json(str(files.find(CONFIG)))) | facts_about(files)
    architecture = cfg.get("architecture")
    if architecture not in ARCHITECTURES:
        raise ConversionError(
            f"SAELens' architecture {architecture!r} is not read here. Read: {', '.join(ARCHITECTURES)}."
        )
    if cfg.get("hook_head_index") is not None:
        raise ConversionError(
            f"it reads head {cfg['hook_head_index']} of {cfg.get('hook_name')!r} alone: a hook point here has all heads."
        )
    tensors = tensors_of(files, str(files.find(WEIGHTS)))
    draft = _weights(tensors, cfg, architecture)
    _place(draft, cfg, architecture, files.given)
    _normalise(draft, cfg, files)
    tensors.done()
    if isinstance(cfg.get("l0"), int | float):
        draft.published["l0"] = float(cfg["l0"])
    return draft.finish()


def _modern(raw: dict[str, Any]) -> dict[str, Any]:
    """All keys flat, by their names of version 6, with the defaults of the version that wrote them."""
    found = raw.get("metadata")
    metadata: dict[str, Any] = found if isinstance(found, dict) else {}
    cfg = {**{k: v for k, v in raw.items() if k != "metadata"}, **metadata}
    version = str(cfg.get("sae_lens_version") or "0")
    if version.split(".")[0].isdecimal() and int(version.split(".")[0]) >= 6:
        return cfg
    cfg = {_OLD_NAMES.get(key, key): value for key, value in cfg.items()}
    cfg.setdefault("apply_b_dec_to_input", True)
    cfg.setdefault("architecture", "standard")
    k = (cfg.get("activation_fn_kwargs") or {}).get("k")
    if cfg.get("activation_fn") == "topk" and k is not None:
        cfg |= {"architecture": "topk", "k": k}
    norm = cfg.get("normalize_activations")
    if isinstance(norm, bool) or norm is None:
        cfg["normalize_activations"] = "expected_average_only_in" if norm else "none"
    return cfg


def _weights(tensors: Tensors, cfg: dict[str, Any], architecture: str) -> Draft:
    gated = {key: tensors.take(key, ndim=1) for key in ("b_gate", "b_mag", "r_mag")} if architecture == "gated" else {}
    skip = tensors.take("W_skip", ndim=2) if "skip" in architecture else None
    w_enc, w_dec = tensors.take("W_enc", ndim=2), tensors.take("W_dec", ndim=2)
    b_enc = None if gated else tensors.take("b_enc", ndim=1)
    draft = Draft(w_enc.T, w_dec, b_enc, tensors.take("b_dec", ndim=1), skip)
    for key, size in (("d_in", draft.d_in), ("d_sae", draft.d_sae)):
        if key in cfg and cfg[key] != size:
            raise ConversionError(f"cfg.json says {key}={cfg[key]!r} and the weights have {size}.")
    _scale_latents(draft, tensors, cfg)
    rescaled = bool(cfg.get("rescale_acts_by_decoder_norm"))
    if gated:
        draft.gate(**gated)
    elif architecture == "topk":
        draft.select(cfg.get("k"))
        if rescaled:
            draft.fold_decoder_norms()
    elif architecture in _JUMP:
        scalar = tensors.take_if("topk_threshold")
        if scalar is not None and rescaled:  # a checkpoint from the middle of training: norms are not folded yet
            draft.fold_decoder_norms()
        log = tensors.take_if("log_threshold") if "threshold" not in tensors else None
        threshold = scalar if scalar is not None else tensors.take("threshold") if log is None else log.exp()
        if scalar is not None and float(scalar) <= 0:
            raise ConversionError("topk_threshold is 0: it was never estimated, so inference would keep every latent.")
        draft.jump(threshold)
    return draft


def _scale_latents(draft: Draft, tensors: Tensors, cfg: dict[str, Any]) -> None:
    """Old files hold a factor per latent that acts before the decoder; mostly ones."""
    factor = tensors.take_if("scaling_factor", "finetuning_scaling_factor", ndim=1)
    if factor is None or torch.allclose(factor.float(), torch.ones(())):
        return
    if not cfg.get("finetuning_scaling_factor"):
        raise ConversionError(
            "there is a scaling_factor that is not 1, and finetuning_scaling_factor does not say to use it."
        )
    draft.decoder = draft.decoder.float() * factor.float()[:, None]
    draft.transforms.append("the finetuned factor of each latent moved into the decoder")


def _place(draft: Draft, cfg: dict[str, Any], architecture: str, given: dict[str, Any]) -> None:
    host = hub_name(cfg.get("model_name"))
    transcoder = "transcoder" in architecture
    draft.fields |= {
        "base_model": host,
        "pre_bias": bool(cfg.get("apply_b_dec_to_input", not transcoder)) and not transcoder,
    }
    if transcoder and cfg.get("apply_b_dec_to_input"):
        raise ConversionError("apply_b_dec_to_input on a transcoder: its decoder bias lives in the output's space.")
    if "hook_in" not in given:
        draft.fields |= _reading(cfg, "", host).fields()
    if transcoder and "hook_out" not in given:
        draft.fields["hook_out"] = _reading(cfg, "_out", host).point
    data = {"dataset": cfg.get("dataset_path"), "context_length": cfg.get("context_size")}
    if known := {key: value for key, value in data.items() if value}:
        draft.fields["provenance"] = {"data": known}


def _reading(cfg: dict[str, Any], suffix: str, host: str | None) -> Reading:
    path, hook = cfg.get(f"hf_hook_name{suffix}"), cfg.get(f"hook_name{suffix}")
    if path:
        return from_path(str(path), host)
    if not hook:
        raise ConversionError(f"cfg.json names no hook_name{suffix}: give hook_{suffix.strip('_') or 'in'}=….")
    return from_lens(str(hook), host)


def _normalise(draft: Draft, cfg: dict[str, Any], files: Files) -> None:
    kind = cfg.get("normalize_activations") or "none"
    pre_gain = draft.fields.get("input_norm", "none") != "none"  # the place itself is a norm's output
    if kind != "none" and (pre_gain or (draft.is_transcoder and draft.skip is not None)):
        raise ConversionError(f"normalize_activations={kind!r} at {cfg.get('hook_name')!r} cannot be expressed.")
    if kind == "layer_norm":
        draft.fields["input_norm"] = "layer_norm"
    elif kind == "constant_norm_rescale":
        draft.fields |= {"input_norm": "unit_rms", "norm_eps": 0.0}
    elif kind == "expected_average_only_in":
        draft.scale_input(_average_scale(cfg, files))
    elif kind == "covariance_whitening":
        _whiten(draft, files)
    elif kind != "none":
        raise ConversionError(f"normalize_activations={kind!r} is not known.")
    if (cfg.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        draft.center()


def _average_scale(cfg: dict[str, Any], files: Files) -> float:
    beside = files.find("activation_scaler.json")
    scale = files.given.get("input_scale") or cfg.get("norm_scaling_factor")
    scale = files.json(beside).get("scaling_factor") if beside and not scale else scale
    if not isinstance(scale, int | float):
        raise ConversionError(
            "it was trained on activations times a constant that its files do not hold: give input_scale=√d_in / (mean "
            "norm of the activations), or 1.0 if the weights hold it already."
        )
    return float(scale)


def _whiten(draft: Draft, files: Files) -> None:
    beside = files.find("activation_whitening.safetensors")
    if beside is None:
        raise ConversionError(
            "it was trained on whitened activations and activation_whitening.safetensors is missing."
        )
    stored = tensors_of(files, beside)
    mean, forward, back = (stored.take(key).double() for key in ("mean", "matrix", "inverse_matrix"))
    if draft.is_transcoder:
        raise ConversionError("a whitened transcoder cannot be expressed.")
    # z = (x - mean) M; the bias that is subtracted from z becomes one that is subtracted from x
    dictionary = draft.encoder.double()
    subtracted = dictionary @ draft.b_dec.double() if draft.fields["pre_bias"] else 0.0
    draft.encoder = (dictionary @ forward.T).float()
    draft.b_enc = (draft.b_enc.double() - subtracted - draft.encoder.double() @ mean).float()
    draft.b_dec = (draft.b_dec.double() @ back + mean).float()
    draft.decoder = (draft.decoder.double() @ back).float()
    if draft.fields["pre_bias"]:
        draft.b_enc = (draft.b_enc.double() + draft.encoder.double() @ draft.b_dec.double()).float()
    draft.transforms.append("whitening of the activations moved into the weights")


def write(sae: SAE, path: str | Path) -> list[str]:
    """Writes a model as SAELens 6 reads it; returns the transforms that were needed, in words.

    Raises:
        ConversionError: for what SAELens has no class or setting for.
    """
    draft = Draft.of(sae)
    norm = _written_norm(draft)
    if draft.is_transcoder and (draft.k is not None or draft.fields["center_target"]):
        raise ConversionError(
            "SAELens has neither TopK transcoders nor centred targets: use the format 'sparsify' or 'ours'."
        )
    cfg = {
        "architecture": _written_architecture(draft),
        "d_in": draft.d_in,
        "d_sae": draft.d_sae,
        "dtype": str(draft.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": draft.fields["pre_bias"],
        "normalize_activations": norm,
        "reshape_activations": "none",
        "metadata": _metadata(sae, draft),
    }
    cfg |= {"d_out": draft.d_out} if draft.is_transcoder else {}
    cfg |= {"k": draft.k, "rescale_acts_by_decoder_norm": False} if draft.k is not None else {}
    dtype = draft.encoder.dtype
    weights = {"W_enc": draft.encoder.T, "W_dec": draft.decoder, "b_enc": draft.b_enc, "b_dec": draft.b_dec}
    weights |= {"threshold": draft.threshold} if draft.threshold is not None else {}
    weights |= {"W_skip": draft.skip} if draft.skip is not None else {}
    with atomic_folder(path) as folder:
        (folder / CONFIG).write_text(json.dumps(cfg, indent=1) + "\n", encoding="utf-8")
        save_file({key: value.to(dtype).contiguous() for key, value in weights.items()}, folder / WEIGHTS)
    return draft.transforms


def _written_norm(draft: Draft) -> str:
    draft.unscale()
    kind, eps = draft.fields["input_norm"], draft.fields["norm_eps"]
    if kind == "none":
        return "none"
    if kind == "layer_norm" and eps == 1e-5 and draft.skip is None:
        return "layer_norm"
    if kind == "unit_rms" and eps == 0 and draft.skip is None:
        return "constant_norm_rescale"
    raise ConversionError(f"SAELens cannot express input_norm={kind!r} with norm_eps={eps} here: keep it in ours.")


def _written_architecture(draft: Draft) -> str:
    kind = "topk" if draft.k is not None else "standard" if draft.threshold is None else "jumprelu"
    if not draft.is_transcoder:
        return kind
    skip = "skip_transcoder" if draft.skip is not None else "transcoder"
    return skip if kind == "standard" else f"{kind}_{skip}"


def _metadata(sae: SAE, draft: Draft) -> dict[str, Any]:
    data = (sae.config.provenance or {}).get("data") or {}
    hooks = {"hook_name": draft.fields["hook_in"]}
    hooks |= {"hook_name_out": draft.fields["hook_out"]} if draft.is_transcoder else {}
    return {
        "sae_lens_version": "6.0.0",
        "model_name": draft.fields["base_model"],
        **{key: to_lens(str(point)) for key, point in hooks.items() if point is not None},
        "dataset_path": data.get("dataset"),
        "context_size": data.get("context_length"),
        "prepend_bos": True,
    }
