"""OpenAI's autoencoders of GPT-2 small (Gao et al. 2024, arXiv 2406.04093, and the ReLU ones before them).

`{place}[_v4|_v5_32k|_v5_128k]/autoencoders/{layer}.pt`, a state dict: `pre_bias` `[d_in]`, subtracted from the input and added to the output,
`encoder.weight` `[d_sae, d_in]`, `latent_bias`, `decoder.weight` `[d_in, d_sae]` (absent where it is tied to the encoder), the activation's name and
its own state, and statistics of training. TopK autoencoders read `(x - mean) / (std + 1e-5)` of each token, with the unbiased
deviation, and undo it; ReLU ones read the activations as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ConversionError
from .draft import Draft, Pair
from .files import Files
from .pickles import read_pt
from .tensors import Tensors


NAME = "openai"
HOST = "openai-community/gpt2"
_PLACES = {
    "resid_delta_attn": "attn_out.{}",
    "resid_post_attn": "resid_mid.{}",
    "resid_delta_mlp": "mlp_out.{}",
    "resid_post_mlp": "resid_post.{}",
    "mlp_post_act": "h.{}.mlp.act:output",
}
_PATH = re.compile(rf"(?:.*/)?({'|'.join(_PLACES)})(?:_v4|_v5_32k|_v5_128k)?/autoencoders/(\d+)\.pt")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def matches(files: Files) -> bool:
    """Whether the asked file lies as OpenAI's do, such as `resid_post_mlp_v5_32k/autoencoders/8.pt`."""
    return _PATH.fullmatch(_whole(files)) is not None


def _whole(files: Files) -> str:
    return files.at(files.asked(".pt") or "").path_in_words


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for an activation that is not known, or tensors that do not fit.
    """
    place, layer = _PATH.findall(_whole(files))[0]
    name = str(files.asked(".pt"))
    content = read_pt(files.path(name))
    if not isinstance(content, Mapping):
        raise ConversionError(f"{name!r} holds a {type(content).__name__}, not a state dict.")
    tensors = Tensors(name, content)
    unknown = sorted(map(str, content.keys() - tensors.keys() - {"activation", "activation_state_dict"}))
    if unknown:
        raise ConversionError(f"{name!r} has entries that this format does not know: {', '.join(unknown)}.")
    tensors.drop(*_STATISTICS)
    encoder = tensors.take("encoder.weight", ndim=2)
    decoder = tensors.take_if("decoder.weight", ndim=2)
    tied = tensors.take_if("decoder.linear.weight", ndim=2)  # the encoder's again, under the decoder's name
    if tied is not None and not torch.equal(tied, encoder):
        raise ConversionError(f"{name!r} has a tied decoder whose weights are not the encoder's.")
    draft = Draft(
        encoder,
        encoder.clone() if decoder is None else decoder.T,
        tensors.take("latent_bias"),
        tensors.take("pre_bias"),
        pre_bias=True,
        base_model=HOST,
        hook_in=_PLACES[place].format(layer),
    )
    tensors.done()
    _activate(draft, name, content)
    return draft.finish()


def _activate(draft: Draft, name: str, content: Mapping[str, Any]) -> None:
    """ReLU, or TopK with the norm that comes with it."""
    activation = content.get("activation", "ReLU")
    if activation == "ReLU":
        return
    state = content.get("activation_state_dict")
    state = state if isinstance(state, Mapping) else {}
    if activation != "TopK" or state.get("postact_fn", "ReLU") != "ReLU":
        raise ConversionError(
            f"{name!r} has activation={activation!r} with {dict(state)}: known are 'ReLU', and 'TopK' with postact_fn='ReLU'."
        )
    draft.select(state.get("k"))
    draft.published["l0"] = float(state["k"])
    draft.fields |= {"input_norm": "layer_norm", "norm_eps": 1e-5}
