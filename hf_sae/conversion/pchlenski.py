"""The transcoders of GPT-2's MLPs from "Transcoders Find Interpretable LLM Feature Circuits" (Dunefsky et al. 2024, arXiv 2406.11944).

`final_sparse_autoencoder_{host}_blocks.{L}.ln2.hook_normalized_{d_sae}.pt`, a pickle of a config object and a state dict: `W_enc` `[d, d_sae]`,
`W_dec` `[d_sae, d]`, `b_enc`, `b_dec` (subtracted from the *input*) and `b_dec_out`. They were trained in TransformerLens with folded norms and centred
weights: they read the norm before the MLP without gain and bias, and their target is what the MLP writes minus its mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .pickles import Inert, read_pt
from .places import from_lens
from .tensors import Tensors


NAME = "transcoder-circuits"
_FILE = re.compile(r"(?:.*/)?final_sparse_autoencoder_([\w.-]+?)_blocks\.(\d+)\.ln2\.hook_normalized_(\d+)\.pt")
# hosts that end in a LayerNorm, which does not see the mean that is missing
_HOSTS = {"gpt2-small": "gpt2", "gpt2-medium": "gpt2-medium", "gpt2-large": "gpt2-large", "gpt2-xl": "gpt2-xl"}


def matches(files: Files) -> bool:
    """Whether the asked file is named as these are; the same name with another hook is an autoencoder of an old SAELens."""
    return _FILE.fullmatch(files.asked(".pt") or "") is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: if name, config and tensors contradict each other, or the host is not known.
    """
    name = str(files.asked(".pt"))
    host, layer, width = _FILE.findall(name)[0]
    if host not in _HOSTS:
        raise ConversionError(
            f"{name!r} is of the host {host!r}. Known: {', '.join(_HOSTS)}, whose weights can be centred."
        )
    content = read_pt(files.path(name))
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise ConversionError(f"{name!r} is not a dictionary with a 'state_dict'.")
    said = content.get("cfg")
    said = said.state if isinstance(said, Inert) else dict(said) if isinstance(said, Mapping) else {}
    hooks = tuple(f"blocks.{layer}.{hook}" for hook in ("ln2.hook_normalized", "hook_mlp_out"))
    _check(said, hooks, name)
    tensors = Tensors(name, content["state_dict"])
    draft = Draft(
        tensors.take("W_enc", ndim=2).T,
        tensors.take("W_dec", ndim=2),
        tensors.take("b_enc"),
        tensors.take("b_dec_out"),
        base_model=f"openai-community/{_HOSTS[host]}",
        hook_out=from_lens(hooks[1], host).point,
        center_target=True,
        **from_lens(hooks[0], host).fields(),
    )
    bias = tensors.take("b_dec")
    tensors.done()
    if draft.d_sae != int(width) or bias.shape != (draft.d_in,):
        raise ConversionError(
            f"{name!r} is named for {width} latents and has {draft.d_sae}, with a b_dec of shape {list(bias.shape)} for "
            f"{draft.d_in} dimensions."
        )
    draft.fold_input_bias(bias)
    draft.transforms.append("the target is what the MLP writes minus its mean: the host's weights were centred")
    data = {"dataset": said.get("dataset_path"), "context_length": said.get("context_size")}
    known = {key: value for key, value in data.items() if isinstance(value, str | int)}
    draft.fields |= {"provenance": {"data": known}} if known else {}
    return draft.finish()


def _check(said: Mapping[str, Any], hooks: tuple[str, ...], name: str) -> None:
    """What the config says, where it does, has to be what the name says."""
    expected = {"is_transcoder": True, "hook_point": hooks[0], "out_hook_point": hooks[1]}
    for key, value in expected.items():
        if said.get(key, value) != value:
            raise ConversionError(f"the config in {name!r} says {key}={said[key]!r}, and the name says {value!r}.")
