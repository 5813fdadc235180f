"""Qwen Scope: TopK autoencoders of the residual stream of Qwen 3 and 3.5 (arXiv 2605.11887).

`layer{L}.sae.pt` at the top of a repo `SAE-Res-{host}-W{n}K-L0_{k}`: `W_enc` `[d_sae, d_in]`, `W_dec` `[d_in, d_sae]`, `b_enc`, `b_dec`, and no config: width (n · 1024)
and k stand in the repo's name. Nothing is subtracted from the input. The authors' example keeps the k largest
pre-activations without a rectifier, which is the same wherever k of them are positive.
"""

from __future__ import annotations

import re

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .places import from_lens
from .tensors import tensors_of


NAME = "qwen-scope"
_FILE = re.compile(r"(?:.*/)?layer(\d+)\.sae\.pt")
_REPO = re.compile(r"SAE-Res-([^/]+)-W(\d+)K-L0_(\d+)")


def matches(files: Files) -> bool:
    """Whether the asked file is `layer{L}.sae.pt`."""
    return _FILE.fullmatch(files.asked(".pt") or "") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: if the repo's name does not say host, width and k, or the tensors contradict it.
    """
    name = str(files.asked(".pt"))
    layer, repos = _FILE.fullmatch(name), _REPO.findall(files.path_in_words)
    if layer is None or not repos:
        raise ConversionError(
            f"{files.path_in_words!r} does not say host, width and k, which the files do not hold. Keep the repo's name, as in "
            "'Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50'."
        )
    host, width, k = repos[-1]
    tensors = tensors_of(files, name)
    draft = Draft(
        tensors.take("W_enc", ndim=2),
        tensors.take("W_dec", ndim=2).T,
        tensors.take("b_enc"),
        tensors.take("b_dec"),
        pre_bias=False,
        base_model=f"Qwen/{host}",
        **from_lens(f"blocks.{layer[1]}.hook_resid_post", host).fields(),
    )
    tensors.done()
    if draft.d_sae != 1024 * int(width):
        raise ConversionError(
            f"{files.path_in_words!r} is named W{width}K, {1024 * int(width):,} latents, and the tensors have {draft.d_sae:,}."
        )
    draft.select(int(k))
    draft.published["l0"] = float(k)
    return draft.finish()
