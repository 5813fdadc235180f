"""Kissane's and Krzyzanowski's ReLU autoencoders of the heads of GPT-2 small (arXiv 2406.17759).

`<name>.pt` with `W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_in]`, `b_enc`, `b_dec`, and `<name>_cfg.json` with `act_name`, `act_size`, `dict_size`, … `b_dec`
is subtracted from the input. Heads are side by side, as they are before the output projection.

The authors' trainer loads GPT-2 with TransformerLens' default processing, which moves each head's value bias behind the
heads (`fold_value_biases`, after `fold_ln` has put LayerNorm's bias into it). Their heads are therefore those of the published GPT-2
minus a constant that no file of the checkpoint holds. Read alone, it is what SAELens makes of it, and sees inputs that
are off by that constant; with the host at hand [`move_value_bias`] makes it exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ConversionError
from ..hosts.towers import unwrap
from ..models import SAE
from .draft import Draft, Pair
from .files import Files
from .names import hub_name
from .places import from_lens
from .tensors import tensors_of


NAME = "hook-z"
SHIFTED = (
    "read as SAELens reads it: its heads were those of the host minus their value biases, as TransformerLens processes them; "
    "hf_sae.conversion.hook_z.move_value_bias(sae, host) puts them back"
)
MOVED = "the host's value biases, which its heads were without, moved into the decoder bias"


def matches(files: Files) -> bool:
    """Whether the asked `.pt` file has its `_cfg.json` beside it."""
    name = files.asked(".pt")
    return name is not None and _config_of(name) in files.names


def _config_of(name: str) -> str:
    return name.removesuffix(".pt") + "_cfg.json"


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for another place than all heads of a layer, or a config that contradicts the tensors.
    """
    name = str(files.asked(".pt"))
    cfg = files.json(_config_of(name))
    hook = str(cfg.get("act_name"))
    if not hook.endswith("hook_z") or cfg.get("concat_heads") is False:
        raise ConversionError(
            f"act_name={hook!r} with concat_heads={cfg.get('concat_heads')!r}: this format has all heads side by side, "
            "'blocks.5.attn.hook_z'."
        )
    host = hub_name(cfg.get("model_name"))
    tensors = tensors_of(files, name)
    fields: dict[str, Any] = from_lens(hook, host).fields()
    draft = Draft(
        tensors.take("W_enc", ndim=2).T,
        tensors.take("W_dec", ndim=2),
        tensors.take("b_enc", ndim=1),
        tensors.take("b_dec", ndim=1),
        pre_bias=True,
        base_model=host,
        **fields,
    )
    tensors.done()
    for key, size in (("act_size", draft.d_in), ("act_size", draft.d_out), ("dict_size", draft.d_sae)):
        if cfg.get(key, size) != size:
            raise ConversionError(f"{_config_of(name)!r} says {key}={cfg[key]!r} and the weights have {size}.")
    if length := cfg.get("seq_len"):
        draft.fields["provenance"] = {"data": {"context_length": length}}
    draft.transforms.append(SHIFTED)
    return draft.finish()


@torch.no_grad()
def move_value_bias(sae: SAE, host: nn.Module) -> SAE:
    """Makes an autoencoder of processed heads one of the heads that `host` gives, exactly and in place.

    `x - v - b_dec` is what it was trained to read, where `v` is what each head's values add to its output at every
    token: the value bias, and LayerNorm's bias through the value weights. `b_dec + v` becomes its decoder bias.

    Args:
        sae ([`SAE`]): as this format reads it.
        host (`nn.Module`): GPT-2, in any wrapper.

    Returns:
        [`SAE`]: the same object.

    Raises:
        ConversionError: if it has been moved already or is none of this format's, or the host is no GPT-2.
    """
    record = (sae.config.provenance or {}).get("conversion") or {}
    done = record.get("transforms") or []
    if SHIFTED not in done:
        raise ConversionError(f"nothing to move: it was read by {record.get('format')!r} with the transforms {done}.")
    layer = int(str(sae.config.hook_in).rpartition(".")[2])
    try:
        block = _blocks(unwrap(host))[layer]
        weight, bias, shift = block.attn.c_attn.weight, block.attn.c_attn.bias, block.ln_1.bias
    except (AttributeError, IndexError, TypeError) as error:
        raise ConversionError(
            f"{type(host).__name__} has no block {layer} of GPT-2 (h.{layer}.attn.c_attn and ln_1): give the host it was trained on."
        ) from error
    d = sae.config.d_in
    if weight.shape != (len(shift), 3 * d):
        raise ConversionError(f"the host's heads are {weight.shape[1] // 3} wide and the autoencoder reads {d}.")
    constant = bias[2 * d :].double() + shift.double() @ weight[:, 2 * d :].double()
    stored = sae.decoder.bias
    stored.copy_((stored.double() + constant.to(stored.device)).to(stored.dtype))
    record["transforms"] = [MOVED if said == SHIFTED else said for said in done]
    return sae


def _blocks(model: nn.Module) -> Any:
    return getattr(model, "transformer", model).h
