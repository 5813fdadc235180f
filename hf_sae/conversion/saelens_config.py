"""SAELens' `cfg.json` of any version, flat and by the names of version 6, and the host and places it speaks of.

Hosts are TransformerLens' models without processing, unless `model_from_pretrained_kwargs` says otherwise. Of that processing
`fold_ln` takes the gain from what the MLP reads, `center_writing_weights` the mean from what is written to the residual stream
(of LayerNorm hosts alone), and `fold_value_biases` a constant from the heads; residual activations do not see the rest.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConversionError
from .draft import Draft
from .names import hub_name
from .places import Reading, from_lens, from_path, host_norm


CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_DATA = {"dataset_path": "dataset", "context_size": "context_length", "prepend_bos": "prepend_bos"}


def modern(raw: dict[str, Any]) -> dict[str, Any]:
    """All keys flat, by their names of version 6, with the defaults of the version that wrote them.

    Raises:
        ConversionError: for an activation function that version 6 no longer has.
    """
    found = raw.get("metadata")
    cfg = {**(found if isinstance(found, dict) else {}), **{k: v for k, v in raw.items() if k != "metadata"}}
    major = str(cfg.get("sae_lens_version") or "0").partition(".")[0]
    if major.isdecimal() and int(major) >= 6:
        return cfg
    cfg = {_OLD_NAMES.get(key, key): value for key, value in cfg.items()}
    cfg.setdefault("apply_b_dec_to_input", True)
    cfg.setdefault("architecture", "standard")
    k = (cfg.get("activation_fn_kwargs") or {}).get("k")
    function = cfg.get("activation_fn") or "relu"
    if k is not None and "topk" in (function, cfg["architecture"]):
        cfg |= {"architecture": "topk", "k": k}
    elif function != "relu" and cfg["architecture"] != "topk":
        raise ConversionError(
            f"activation_fn={function!r} with activation_fn_kwargs={cfg.get('activation_fn_kwargs')!r}: 'relu', and "
            "'topk' with a k, are read."
        )
    norm = cfg.get("normalize_activations")
    if isinstance(norm, bool) or norm is None:
        cfg["normalize_activations"] = "expected_average_only_in" if norm else "none"
    return cfg


def place(draft: Draft, cfg: dict[str, Any], given: dict[str, Any]) -> None:
    """Host, hook points and data, as fields of a draft; points that the caller gave by hand are not looked for.

    Raises:
        ConversionError: for one head alone, and for hooks that no place by meaning or path is.
    """
    for key in ("hook_head_index", "hook_head_index_out"):
        if cfg.get(key) is not None:
            raise ConversionError(
                f"{key}={cfg[key]!r}: it sees one head of {cfg.get('hook_name')!r} alone, and a place here has all of them side "
                "by side."
            )
    host = given.get("base_model") or hub_name(cfg.get("model_name"))
    flags = processing(cfg)
    draft.fields["base_model"] = host
    if revision := flags.get("revision"):
        draft.fields["base_revision"] = str(revision)
    draft.fields |= {key: given[key] for key in ("hook_in", "hook_out") if key in given}
    if "hook_in" not in given:
        draft.fields |= _reading(cfg, "", host).fields()
    if draft.fields.get("input_norm", "none") != "none" and not is_transcoder(cfg):
        raise ConversionError(
            f"it reconstructs {cfg.get('hook_name')!r}, a norm's output before its gain, which no module gives: give another "
            "place by hook_in=, or use it in SAELens."
        )
    if is_transcoder(cfg) and "hook_out" not in given:
        draft.fields["hook_out"] = _reading(cfg, "_out", host).point
    if data := {name: cfg[key] for key, name in _DATA.items() if cfg.get(key) is not None}:
        draft.fields["provenance"] = {"data": data}


def is_transcoder(cfg: dict[str, Any]) -> bool:
    """Whether its architecture has an output of its own."""
    return "transcoder" in str(cfg.get("architecture"))


def processing(cfg: dict[str, Any]) -> dict[str, Any]:
    """How the host was loaded: `center_writing_weights`, `fold_ln`, …"""
    flags = cfg.get("model_from_pretrained_kwargs")
    return flags if isinstance(flags, dict) else {}


def undo_processing(draft: Draft, cfg: dict[str, Any]) -> None:
    """Makes up for the processing of the host's weights, where that can be done exactly.

    Raises:
        ConversionError: where it cannot.
    """
    flags, host = processing(cfg), str(draft.fields.get("base_model") or "")
    points = {str(draft.fields.get(key)).rpartition(":")[2] for key in ("hook_in", "hook_out")}
    heads = any(point.startswith("attn_z") for point in points)
    if changed := [f for f in ("fold_value_biases", "refactor_factored_attn_matrices") if heads and flags.get(f)]:
        raise ConversionError(
            f"{', '.join(changed)} in model_from_pretrained_kwargs changes what the heads give, by numbers that only the "
            "host's weights hold."
        )
    if not flags.get("center_writing_weights"):
        return
    if host and host_norm(host)[0] != "unit_ln":
        draft.transforms.append("nothing is centred: TransformerLens centres the weights of LayerNorm hosts alone")
    else:
        draft.center()


def _reading(cfg: dict[str, Any], suffix: str, host: str | None) -> Reading:
    path, hook = cfg.get(f"hf_hook_name{suffix}"), cfg.get(f"hook_name{suffix}")
    if path:
        return from_path(str(path), host)
    if not hook:
        name = suffix.strip("_") or "in"
        raise ConversionError(f"cfg.json has no hook_name{suffix}: give the place as hook_{name}='resid_post.8'.")
    if processing(cfg).get("fold_ln"):  # the norm before the MLP has no gain there
        hook = str(hook).replace("mlp.hook_in", "ln2.hook_normalized")
    return from_lens(str(hook), host)
