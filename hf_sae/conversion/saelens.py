"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 (flat keys and `metadata`) and before (all keys flat).

`W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`, `b_enc`, `b_dec`; JumpReLU has `threshold`, gated `b_gate`, `b_mag` and `r_mag` instead of
`b_enc`, skip transcoders `W_skip` `[d_out, d_in]`, which acts on the input before any normalisation. Checkpoints from the middle of
training are read too: BatchTopK's scalar `topk_threshold`, and what `activation_scaler.json` and
`activation_whitening.safetensors` hold. Read in SAELens 6.54.12.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .names import facts_about
from .saelens_config import CONFIG, WEIGHTS, is_transcoder, modern, place, undo_processing
from .saelens_writing import write
from .tensors import Tensors, tensors_of


__all__ = ["ARCHITECTURES", "NAME", "matches", "read", "write"]

NAME = "saelens"
_JUMP = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder", "batchtopk", "matryoshka_batchtopk")
ARCHITECTURES = ("standard", "transcoder", "skip_transcoder", "topk", "gated", *_JUMP)


def matches(files: Files) -> bool:
    """Whether the asked folder holds SAELens' two files."""
    return files.find(CONFIG) is not None and files.find(WEIGHTS) is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for an architecture, a hook or a normalisation that cannot be expressed, for a config that
            contradicts the tensors, and for damaged files.
    """
    cfg = modern(files.json(str(files.find(CONFIG)))) | facts_about(files)
    architecture = cfg.get("architecture")
    if architecture not in ARCHITECTURES:
        raise ConversionError(
            f"SAELens' architecture {architecture!r} is not read here. Read: {', '.join(ARCHITECTURES)}."
        )
    tensors = tensors_of(files, str(files.find(WEIGHTS)))
    draft = _weights(tensors, cfg)
    _activate(draft, tensors, cfg)
    tensors.done()
    place(draft, cfg, files.given)
    _normalise(draft, cfg, files)
    undo_processing(draft, cfg)
    if isinstance(cfg.get("l0"), int | float):
        draft.published["l0"] = float(cfg["l0"])
    return draft.finish()


def _weights(tensors: Tensors, cfg: dict[str, Any]) -> Draft:
    """Both layers; what the latents are comes after."""
    skip = tensors.take("W_skip", ndim=2) if "skip" in cfg["architecture"] else None
    w_enc, w_dec = tensors.take("W_enc", ndim=2), tensors.take("W_dec", ndim=2)
    b_enc = None if cfg["architecture"] == "gated" else tensors.take("b_enc", ndim=1)
    draft = Draft(w_enc.T, w_dec, b_enc, tensors.take("b_dec", ndim=1), skip)
    for key, size in (("d_in", draft.d_in), ("d_sae", draft.d_sae), ("d_out", draft.d_out)):
        if cfg.get(key) not in (None, size):
            raise ConversionError(f"cfg.json says {key}={cfg[key]!r} and the weights have {size}.")
    if not is_transcoder(cfg) and draft.d_in != draft.d_out:
        raise ConversionError(
            f"W_enc reads {draft.d_in} dimensions and W_dec writes {draft.d_out}: no transcoder does."
        )
    draft.fields["pre_bias"] = bool(cfg.get("apply_b_dec_to_input", not is_transcoder(cfg)))
    if is_transcoder(cfg) and draft.fields["pre_bias"]:
        raise ConversionError("apply_b_dec_to_input on a transcoder: its decoder bias lives in the output's space.")
    _scale_latents(draft, tensors, cfg)
    return draft


def _scale_latents(draft: Draft, tensors: Tensors, cfg: dict[str, Any]) -> None:
    """Old files hold a factor per latent that acts before the decoder; mostly ones."""
    factor = tensors.take_if("scaling_factor", "finetuning_scaling_factor", ndim=1)
    if factor is None or torch.allclose(factor.float(), torch.ones(())):
        return
    if not cfg.get("finetuning_scaling_factor") or cfg.get("rescale_acts_by_decoder_norm"):
        raise ConversionError(
            "scaling_factor is not 1 everywhere, and cfg.json does not say finetuning_scaling_factor=true: whether the "
            "latents are multiplied by it before they are decoded cannot be known."
        )
    if factor.shape != (draft.d_sae,):
        raise ConversionError(f"scaling_factor has shape {list(factor.shape)}, wanted [{draft.d_sae}].")
    draft.decoder = draft.decoder.float() * factor.float()[:, None]
    draft.transforms.append("the finetuned factor of each latent moved into the decoder")


def _activate(draft: Draft, tensors: Tensors, cfg: dict[str, Any]) -> None:
    """ReLU, top k, threshold or gate."""
    architecture, rescaled = cfg["architecture"], bool(cfg.get("rescale_acts_by_decoder_norm"))
    if architecture == "gated":
        draft.gate(**{key: tensors.take(key, ndim=1) for key in ("b_gate", "b_mag", "r_mag")})
    elif architecture == "topk":
        draft.select(cfg.get("k"))
        if rescaled:
            draft.fold_decoder_norms()
    elif architecture in _JUMP:
        _threshold(draft, tensors, rescaled)


def _threshold(draft: Draft, tensors: Tensors, rescaled: bool) -> None:
    scalar = tensors.take_if("topk_threshold")
    if scalar is None:
        log = tensors.take_if("log_threshold")  # of older training checkpoints
        draft.jump(tensors.take("threshold", ndim=1) if log is None else log.exp())
        return
    if scalar.numel() != 1 or not float(scalar) > 0:
        raise ConversionError(
            f"topk_threshold={scalar.tolist()} was never estimated, so inference would keep every positive latent: use a later "
            "checkpoint."
        )
    if rescaled:  # in training the threshold is on u · ‖w‖, and norms are moved when it is saved for inference
        draft.fold_decoder_norms()
    draft.jump(scalar)


def _normalise(draft: Draft, cfg: dict[str, Any], files: Files) -> None:
    kind = cfg.get("normalize_activations") or "none"
    normed = draft.fields.get("input_norm", "none") != "none"  # the place itself is a norm's output
    if kind != "none" and (normed or draft.skip is not None):
        raise ConversionError(
            f"normalize_activations={kind!r} at {cfg.get('hook_name')!r}"
            + (" with a skip, which SAELens feeds the raw input" if draft.skip is not None else ", a norm's output")
            + ": that cannot be expressed."
        )
    if kind in ("expected_average_only_in", "covariance_whitening") and is_transcoder(cfg):
        raise ConversionError(f"normalize_activations={kind!r} does not say what a transcoder's output is divided by.")
    if kind == "layer_norm":
        draft.fields |= {"input_norm": "layer_norm", "norm_eps": 1e-5}
    elif kind == "constant_norm_rescale":
        draft.fields |= {"input_norm": "unit_rms", "norm_eps": 0.0}
    elif kind == "expected_average_only_in":
        draft.scale_input(_average_scale(cfg, files))
    elif kind == "covariance_whitening":
        _unwhiten(draft, files)
    elif kind != "none":
        raise ConversionError(f"normalize_activations={kind!r} is not known.")


def _average_scale(cfg: dict[str, Any], files: Files) -> float:
    # taken out, so that the caller's values are not set again on a config whose weights hold the scale by then
    by_hand = files.given.pop("input_scale", None)
    if files.given.get("input_norm") == "scalar":
        files.given.pop("input_norm")
    beside = files.find("activation_scaler.json")
    for scale in (
        by_hand,
        files.json(beside).get("scaling_factor") if beside else None,
        cfg.get("norm_scaling_factor"),
    ):
        if isinstance(scale, int | float) and not isinstance(scale, bool):
            return float(scale)
    raise ConversionError(
        "it was trained on activations times √d_in / (their mean norm), a number that its files do not hold. Give "
        'input_norm="scalar", input_scale=…; 1.0 if the weights hold it already.'
    )


def _unwhiten(draft: Draft, files: Files) -> None:
    """`z = (x - mean) M` and `x̂ = ẑ M⁻¹ + mean` moved into the weights, in float64."""
    beside = files.find("activation_whitening.safetensors")
    if beside is None:
        raise ConversionError(
            "it was trained on whitened activations, and activation_whitening.safetensors with their mean and matrices is "
            "not beside it."
        )
    stored, d, dtype = tensors_of(files, beside), draft.d_in, draft.encoder.dtype
    mean, whiten, undo = (stored.take(key).double() for key in ("mean", "matrix", "inverse_matrix"))
    stored.done()
    if mean.shape != (d,) or whiten.shape != (d, d) or undo.shape != (d, d):
        raise ConversionError(
            f"{beside!r} has a mean of {list(mean.shape)} and matrices of {list(whiten.shape)}, {d=}."
        )
    encoder = draft.encoder.double() @ whiten.T
    if not draft.fields["pre_bias"]:  # otherwise the new decoder bias, which is subtracted, holds the mean
        draft.b_enc = (draft.b_enc.double() - encoder @ mean).to(dtype)
    draft.b_dec = (draft.b_dec.double() @ undo + mean).to(dtype)
    draft.decoder = (draft.decoder.double() @ undo).to(dtype)
    draft.encoder = encoder.to(dtype)
    draft.transforms.append("whitening of the activations moved into the weights")
