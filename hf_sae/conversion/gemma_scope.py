"""Gemma Scope 1: JumpReLU autoencoders and transcoders of Gemma 2 (Lieberum et al. 2024, arXiv 2408.05147).

`<place>/params.npz` with `W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`, `b_enc`, `b_dec`, `threshold`, and no config: place, layer
and host stand in the names of repo and folder. Nothing is subtracted from the input. Transcoders read the norm before the
MLP without its gain. Embedding autoencoders were trained on embeddings without Gemma's factor √d.
"""

from __future__ import annotations

import re

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .places import from_lens
from .tensors import tensors_of


NAME = "gemma-scope"
_REPO = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders)")
_PLACES = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out", "transcoders": "ln2.hook_normalized"}


def matches(files: Files) -> bool:
    """Whether the asked folder holds `params.npz`."""
    return files.find("params.npz") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: if the names do not say host, place and layer, or the file is damaged.
    """
    whole = f"{files.name}/{files.place}"
    repo, layer = _REPO.search(whole), re.search(r"layer_(\d+)", whole)
    embedding = "embedding" in whole
    if repo is None or (layer is None and not embedding):
        raise ConversionError(
            f"{whole!r} does not say host, place and layer, which Gemma Scope's files do not hold. Keep its names, as in "
            "'google/gemma-scope-2b-pt-res' with subfolder='layer_20/width_16k/average_l0_71'."
        )
    host = f"gemma-2-{repo[1]}" + ("-it" if repo[2] == "it" else "")
    hook = "hook_embed" if embedding or layer is None else f"blocks.{layer[1]}.{_PLACES[repo[3]]}"
    tensors = tensors_of(files, str(files.find("params.npz")))
    draft = Draft(
        tensors.take("W_enc", "w_enc", ndim=2).T,
        tensors.take("W_dec", "w_dec", ndim=2),
        tensors.take("b_enc"),
        tensors.take("b_dec"),
        pre_bias=False,
        base_model=f"google/{host}",
        **from_lens(hook, host).fields(),
    )
    draft.jump(tensors.take("threshold"))
    tensors.done()
    if repo[3] == "transcoders":
        draft.fields["hook_out"] = from_lens(f"blocks.{layer[1] if layer else 0}.hook_mlp_out", host).point
    if embedding:
        draft.scale_input(draft.d_in**-0.5)
        draft.transforms.append("what enters the first block divided by √d_in: it was trained on unscaled embeddings")
    if l0 := re.search(r"average_l0_(\d+)", whole):
        draft.published["l0"] = float(l0[1])
    return draft.finish()
