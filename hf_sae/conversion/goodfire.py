"""Goodfire's ReLU autoencoders of the residual stream of Llama 3.

One file `{host}-SAE-l{L}.pt` or `.pth`: `encoder_linear.weight` `[d_sae, d_in]`, `decoder_linear.weight` `[d_in, d_sae]` and their biases. Host and
layer stand in its name. Nothing is subtracted from the input.
"""

from __future__ import annotations

import re
from typing import Any

from .draft import Draft, Pair
from .files import Files
from .places import from_lens
from .tensors import Tensors, tensors_of


NAME = "goodfire"
_FILE = re.compile(r"(?:.*/)?(Llama-3[\w.-]*-Instruct)-SAE-l(\d+)\.pth?")


def matches(files: Files) -> bool:
    """Whether the asked file is named as Goodfire's are; it is not opened to see."""
    return _FILE.fullmatch(files.asked(".pt", ".pth") or "") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for other tensors than the two layers'.
    """
    name = str(files.asked(".pt", ".pth"))
    host, layer = _FILE.findall(name)[0]
    tensors = tensors_of(files, name)
    return two_layers(tensors, "encoder_linear", "decoder_linear", f"meta-llama/{host}", int(layer)).finish()


def two_layers(tensors: Tensors, encoder: str, decoder: str, host: str, layer: int) -> Draft:
    """The ReLU autoencoder of a residual stream that two `nn.Linear` are, with nothing subtracted from the input.

    Args:
        tensors ([`Tensors`]): `{encoder}.weight` `[d_sae, d_in]`, `{decoder}.weight` `[d_in, d_sae]` and their biases; nothing else.
        encoder (`str`): name of the first.
        decoder (`str`): name of the second.
        host (`str`): its id.
        layer (`int`): the block after which it reads.

    Raises:
        ConversionError: for other tensors.
    """
    fields: dict[str, Any] = from_lens(f"blocks.{layer}.hook_resid_post", host).fields()
    draft = Draft(
        tensors.take(f"{encoder}.weight", ndim=2),
        tensors.take(f"{decoder}.weight", ndim=2).T,
        tensors.take(f"{encoder}.bias"),
        tensors.take(f"{decoder}.bias"),
        pre_bias=False,
        base_model=host,
        **fields,
    )
    tensors.done()
    return draft
