"""Gemma Scope 1: JumpReLU autoencoders and transcoders of Gemma 2 (Lieberum et al. 2024, arXiv 2408.05147).

`<place>/params.npz` with `W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`, `b_enc`, `b_dec`, `threshold`, and no config: place, layer
and host stand in the names of repo and folder. Nothing is subtracted from the input. Transcoders read the norm before the
MLP without its gain. Embedding autoencoders were trained on embeddings without Gemma's factor √d.
"""

from __future__ import annotations

import re

import torch

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .places import from_lens
from .tensors import Tensors, tensors_of


NAME = "gemma-scope"
_REPO = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders)")
_PLACES = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out", "transcoders": "ln2.hook_normalized"}


def matches(files: Files) -> bool:
    """Whether the asked folder holds `params.npz`."""
    return files.find("params.npz") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: if the names do not say host, place and layer, or the file is damaged or contradicts them.
    """
    whole = files.path_in_words
    size, kind, place, layer = _names(whole)
    host = f"gemma-2-{size}" + ("-it" if kind == "it" else "")
    tensors = tensors_of(files, str(files.find("params.npz")))
    _drop_scaling_factor(tensors)
    reading = from_lens("hook_embed" if layer is None else f"blocks.{layer}.{_PLACES[place]}", host)
    draft = Draft(
        tensors.take("W_enc", "w_enc", ndim=2).T,
        tensors.take("W_dec", "w_dec", ndim=2),
        tensors.take("b_enc"),
        tensors.take("b_dec"),
        pre_bias=False,
        base_model=f"google/{host}",
        **reading.fields(),
    )
    draft.jump(tensors.take("threshold"))
    tensors.done()
    check_width(whole, draft.d_sae)
    if place == "transcoders":
        draft.fields["hook_out"] = from_lens(f"blocks.{layer}.hook_mlp_out", host).point
    if layer is None:
        draft.scale_input(draft.d_in**-0.5)
        draft.transforms.append("what enters the first block divided by √d_in: it was trained on unscaled embeddings")
    if l0 := re.findall(r"average_l0_(\d+)", whole):
        draft.published["l0"] = float(l0[-1])
    return draft.finish()


def check_width(path: str, d_sae: int) -> None:
    """A width in a name, such as `width_16k` or `width_1m`, is the number of latents rounded down.

    Raises:
        ConversionError: if it is another one.
    """
    for token in re.findall(r"width_(\d+[km])", path)[-1:]:
        if token not in (f"{d_sae // 1000}k", f"{d_sae // 10**6}m"):
            raise ConversionError(
                f"{path!r} is named width_{token} and its tensors have {d_sae:,} latents: a file in the wrong folder?"
            )


def _names(path: str) -> tuple[str, str, str, int | None]:
    """`(size, pt or it, place, layer)` of the names; no layer is the embedding. The innermost ones count."""
    repos, layers = _REPO.findall(path), re.findall(r"(?:^|/)layer_(\d+)(?=/|$)", path)
    embedding = "embedding" in path.split("/") and repos[-1:] and repos[-1][2] == "res"
    if not repos or not (layers or embedding):
        raise ConversionError(
            f"{path!r} does not say host, place and layer, which Gemma Scope's files do not hold. Keep its names, as in "
            "'google/gemma-scope-2b-pt-res' with subfolder='layer_20/width_16k/average_l0_71'."
        )
    return *repos[-1], None if embedding else int(layers[-1])


def _drop_scaling_factor(tensors: Tensors) -> None:
    """A factor on each latent that fine-tuning would have learnt; published files have ones."""
    factor = tensors.take_if("scaling_factor")
    if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
        raise ConversionError(
            f"{tensors.name!r} has a 'scaling_factor' other than 1, whose place in the forward is not known for this format."
        )
