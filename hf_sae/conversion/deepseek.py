"""The ReLU autoencoders that qresearch trained on the residual stream of DeepSeek-R1's distillations.

One file `{host}-SAE-l{L}.pt`: `encoder.weight` `[d_sae, d_in]`, `decoder.weight` `[d_in, d_sae]` and their biases. Host and layer stand in
its name. Nothing is subtracted from the input.
"""

from __future__ import annotations

import re

from .draft import Pair
from .files import Files
from .goodfire import two_layers
from .tensors import tensors_of


NAME = "deepseek-r1"
_FILE = re.compile(r"(?:.*/)?(DeepSeek-R1-Distill-[\w.-]+)-SAE-l(\d+)\.pt")


def matches(files: Files) -> bool:
    """Whether the asked file is named as these are; it is not opened to see."""
    return _FILE.fullmatch(files.asked(".pt") or "") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for other tensors than the two layers'.
    """
    name = str(files.asked(".pt"))
    host, layer = _FILE.findall(name)[0]
    return two_layers(tensors_of(files, name), "encoder", "decoder", f"deepseek-ai/{host}", int(layer)).finish()
