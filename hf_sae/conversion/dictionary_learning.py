"""dictionary_learning: `ae.pt` (a state dict) and `config.json` with the keys `trainer` and `buffer`.

`trainer.dict_class` says how the tensors are used:

* `AutoEncoder`: `bias` is subtracted and added again, ReLU. `AutoEncoderNew`: nothing is subtracted. `GatedAutoEncoder`: gate and
  magnitude (arXiv 2404.16014). `AutoEncoderTopK`: `k` latents per token.
* `BatchTopKSAE`, `MatryoshkaBatchTopKSAE`: at inference rectified pre-activations above one `threshold`.
* `JumpReluAutoEncoder`: a threshold per latent; nothing is subtracted.

Linear layers are stored as torch does, `decoder.weight` `[d_in, d_sae]`. Weights are taken as they were trained; the library's own
`AutoEncoder.from_pretrained` then also moves the norms of the decoder's columns into the latents. A backup from the middle of a
run lies under the same name, in a dictionary, with biases and thresholds in units of `norm_factor`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..models import SAE
from ..models.checkpoint import atomic_folder
from .draft import Draft, Pair
from .files import Files
from .pickles import read_pt
from .tensors import Tensors


NAME = "dictionary-learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
)
_OURS = ("resid_pre", "resid_mid", "resid_post", "attn_in", "attn_z", "attn_out", "mlp_in", "mlp_out")
_PLACES = {
    **{name: name for name in _OURS},
    "resid": "resid_post",
    "mlp": "mlp_out",
    "attention_out": "attn_out",
    "attn": "attn_out",
}


def matches(files: Files) -> bool:
    """Whether the asked folder holds `ae.pt` and `config.json`."""
    return files.find(WEIGHTS) is not None and files.find(CONFIG) is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for an unknown class or place, a threshold that was never estimated, and damaged files.
    """
    config = files.json(str(files.find(CONFIG)))
    trainer, buffer = config.get("trainer"), config.get("buffer") or {}
    if not isinstance(trainer, dict) or trainer.get("dict_class") not in CLASSES:
        found = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise ConversionError(f"config.json names the class {found!r}. Known: {', '.join(CLASSES)}.")
    stored, factor = _state(files)
    name = trainer["dict_class"]
    draft = _draft(Tensors(WEIGHTS, stored), name, trainer)
    for key, size in (("activation_dim", draft.d_in), ("dict_size", draft.d_sae)):
        if trainer.get(key, size) != size:
            raise ConversionError(f"config.json says {key}={trainer[key]} and the weights have {size}.")
    if factor is not None:
        _scale_biases(draft, factor)
    draft.fields["base_model"] = trainer.get("lm_name")
    if buffer.get("ctx_len"):
        draft.fields["provenance"] = {"data": {"context_length": buffer["ctx_len"]}}
    if "hook_in" not in files.given:
        draft.fields["hook_in"] = _place(files, trainer)
    return draft.finish()


def _state(files: Files) -> tuple[Mapping[str, Any], float | None]:
    """The state dict, and the factor that a backup's biases still need."""
    content = read_pt(files.path(str(files.find(WEIGHTS))))
    if not isinstance(content, Mapping):
        raise ConversionError(f"ae.pt holds a {type(content).__name__}, not a state dict.")
    if not isinstance(content.get("ae"), Mapping):
        return content, None
    factor = content.get("norm_factor", 1.0)
    factor = 1.0 if factor is None else float(factor)
    if not 0 < factor < float("inf"):
        raise ConversionError(f"the backup's norm_factor {factor!r} is not a positive number.")
    return content["ae"], factor


def _draft(tensors: Tensors, name: str, trainer: dict[str, Any]) -> Draft:
    # matrices of nn.Linear, or the transposed plain parameters of two classes
    w_enc = tensors.take_if("W_enc", ndim=2)
    encoder = tensors.take("encoder.weight", ndim=2) if w_enc is None else w_enc.T
    w_dec = tensors.take_if("W_dec", ndim=2)
    decoder = tensors.take("decoder.weight", ndim=2).T if w_dec is None else w_dec
    gated = name == "GatedAutoEncoder"
    draft = Draft(
        encoder,
        decoder,
        None if gated else tensors.take("encoder.bias", "b_enc"),
        tensors.take(*_BIAS[name]),
        pre_bias=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
    )
    k, threshold = tensors.pop("k", None), tensors.take_if("threshold")
    tensors.drop("group_sizes")
    if gated:
        draft.gate(tensors.take("gate_bias"), tensors.take("mag_bias"), tensors.take("r_mag"))
    elif name == "AutoEncoderTopK":
        draft.select(int(k) if isinstance(k, Tensor) else trainer.get("k"))
        draft.published["l0"] = float(draft.k or 0)
    elif name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        if threshold is None or (threshold.numel() == 1 and float(threshold) < 0):
            raise ConversionError(
                f"the threshold of this {name} was never estimated (it is {threshold}): train it longer."
            )
        draft.jump(threshold)
        if isinstance(k, Tensor):
            draft.published["l0"] = float(k)
    tensors.done()
    return draft


_BIAS = {
    "AutoEncoder": ("bias",),
    "AutoEncoderNew": ("decoder.bias",),
    "AutoEncoderTopK": ("b_dec",),
    "BatchTopKSAE": ("b_dec",),
    "MatryoshkaBatchTopKSAE": ("b_dec",),
    "GatedAutoEncoder": ("decoder_bias",),
    "JumpReluAutoEncoder": ("b_dec",),
}


def _scale_biases(draft: Draft, factor: float) -> None:
    """What the library does when it saves: the model was trained on `x / factor` and is used on `x`."""
    draft.b_enc, draft.b_dec = draft.b_enc.float() * factor, draft.b_dec.float() * factor
    if draft.threshold is not None:
        draft.threshold = draft.threshold * factor
    draft.transforms.append(f"biases and thresholds of a backup multiplied by its norm_factor {factor:.6g}")


def _place(files: Files, trainer: dict[str, Any]) -> str:
    named = [trainer.get("submodule_name"), *reversed(files.path_in_words.split("/"))]
    for text in named:
        found = re.fullmatch(r"([a-z_]+?)_layer_?(\d+)", str(text or ""))
        if found and found[1] in _PLACES:
            return f"{_PLACES[found[1]]}.{found[2]}"
    if trainer.get("submodule_name") is None and isinstance(trainer.get("layer"), int):
        return f"resid_post.{trainer['layer']}"  # older runs recorded the layer alone and read the residual stream
    raise ConversionError(f"the place {trainer.get('submodule_name')!r} is not known: give hook_in=.")


def write(sae: SAE, path: str | Path) -> list[str]:
    """Writes a model as dictionary_learning's classes load it; returns the transforms that were needed, in words.

    Raises:
        ConversionError: for a transcoder, or a norm that cannot be folded.
    """
    draft = Draft.of(sae)
    draft.unscale()
    if draft.is_transcoder or draft.fields["input_norm"] != "none":
        raise ConversionError(
            "dictionary_learning has neither transcoders nor norms of each token: use 'saelens', 'sparsify' or 'ours'."
        )
    name = (
        "AutoEncoderTopK"
        if draft.k is not None
        else "AutoEncoder"
        if draft.threshold is None
        else "JumpReluAutoEncoder"
    )
    draft.subtract_bias(name != "JumpReluAutoEncoder")
    state = _written(draft)
    place, _, layer = str(draft.fields["hook_in"] or "").rpartition(":")[2].rpartition(".")
    trainer = {
        "dict_class": name,
        "activation_dim": draft.d_in,
        "dict_size": draft.d_sae,
        "lm_name": draft.fields["base_model"],
        "layer": int(layer) if layer.isdecimal() else None,
        # other places by the name they have here: a layer alone would be read as the residual stream's
        "submodule_name": f"{place}_layer_{layer}" if place in _OURS else draft.fields["hook_in"],
        **({"k": draft.k} if draft.k is not None else {}),
    }
    length = ((sae.config.provenance or {}).get("data") or {}).get("context_length")
    with atomic_folder(path) as folder:
        (folder / CONFIG).write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": length}}) + "\n", "utf-8")
        torch.save({key: value.contiguous() for key, value in state.items()}, folder / WEIGHTS)
    return draft.transforms


def _written(draft: Draft) -> dict[str, Tensor]:
    if draft.threshold is not None:
        plain = {"W_enc": draft.encoder.T, "b_enc": draft.b_enc, "W_dec": draft.decoder, "b_dec": draft.b_dec}
        return {"threshold": draft.threshold, **plain}
    state = {"encoder.weight": draft.encoder, "encoder.bias": draft.b_enc, "decoder.weight": draft.decoder.T}
    if draft.k is None:
        return {"bias": draft.b_dec, **state}
    # -1 is that library's word for a threshold that was not estimated
    return {
        "b_dec": draft.b_dec,
        "k": torch.tensor(draft.k, dtype=torch.int32),
        "threshold": torch.tensor(-1.0),
        **state,
    }
