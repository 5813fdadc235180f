"""Hook names of TransformerLens, of module paths and of other peers, as places by meaning, and back.

TransformerLens' definitions were read in its block's forward pass: `hook_mlp_in` is the residual stream before the MLP's
norm, `mlp.hook_in` what the MLP reads, `hook_normalized` a norm's output before its gain, and `hook_mlp_out` and
`hook_attn_out` what is added to the residual stream (in Gemma 2 and 3 after the norm that follows, where `mlp.hook_out` is
before it).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import ConversionError


@dataclass(frozen=True)
class Reading:
    """Where to read, and what the place needs to be what a foreign hook saw.

    Args:
        point (`str`): a hook point.
        input_norm (`str`): of [`SAEConfig`].
        norm_eps (`float`): of [`SAEConfig`].
    """

    point: str
    input_norm: str = "none"
    norm_eps: float = 1e-5

    def fields(self) -> dict[str, Any]:
        """The fields of a config that say so."""
        norm = {"input_norm": self.input_norm, "norm_eps": self.norm_eps} if self.input_norm != "none" else {}
        return {"hook_in": self.point, **norm}


_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_mlp_in": "resid_mid",
    "attn.hook_z": "attn_z",
    "hook_z": "attn_z",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_out": "mlp_out",
}
_UNIT = {"ln1.hook_normalized": "resid_pre", "ln2.hook_normalized": "resid_mid"}
_BACK = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "attn_z": "attn.hook_z",
    "mlp_in": "mlp.hook_in",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_PATH = re.compile(
    r"(?:.*\.)?(?:layers|h|layer|blocks)\.(\d+)"
    r"(?:\.(?P<inner>(?!(?:in|out)put$)[a-z_0-9.]+?))?(?:\.(?P<side>input|output))?"
)
_INNER = {
    ("", "input"): "resid_pre",
    ("", "output"): "resid_post",
    ("self_attn.o_proj", "input"): "attn_z",
    ("attn.c_proj", "input"): "attn_z",
    ("attention.dense", "input"): "attn_z",
    ("mlp", "input"): "mlp_in",
    # these two norms exist in blocks that norm what the MLP writes, and nowhere else
    ("pre_feedforward_layernorm", "output"): "mlp_in",
    ("post_feedforward_layernorm", "output"): "mlp_out",
}
# a norm is LayerNorm in these families, RMSNorm in all others that are published
_LAYER_NORM = re.compile(r"gpt-?2|gpt-?neo|gpt-?j|pythia|opt-|bloom|phi-[12]", re.IGNORECASE)
_EPS = re.compile(r"gemma|qwen", re.IGNORECASE)
# blocks that norm what the MLP gives before they add it
_POST_NORM = re.compile(r"gemma-?[23](?![0-9]*b)", re.IGNORECASE)
# models whose text part is one tower of several
_TOWERS = re.compile(r"gemma-3-(4b|12b|27b)|qwen3\.5", re.IGNORECASE)
_SCALED_EMBEDDING = re.compile(r"gemma", re.IGNORECASE)


def from_lens(hook: str, model: str | None = None, layer: int | None = None) -> Reading:
    """The place of a TransformerLens hook, such as `blocks.8.hook_resid_pre` or `blocks.3.ln2.hook_normalized`.

    Args:
        hook (`str`): the name; with `layer`, the part after `blocks.L.` may stand alone.
        model (`str`, *optional*): name of the host: it says which kind of norm a pre-gain norm is.
        layer (`int`, *optional*): of a name without one.

    Raises:
        ConversionError: for a hook inside attention or the MLP that has no place by meaning.
    """
    name = (model or "").rpartition("/")[2]
    if hook == "hook_embed":
        # TransformerLens scales Gemma's embedding, and so does what enters the first block in every implementation
        return Reading(_in_tower("resid_pre.0" if _SCALED_EMBEDDING.search(name) else "embed", name))
    found = _BLOCK.fullmatch(hook)
    number, inner = (int(found[1]), found[2]) if found else (layer, hook)
    if number is not None and inner == "mlp.hook_out" and _POST_NORM.search(name):
        return Reading(f"layers.{number}.mlp")
    if number is not None and inner in _LENS:
        return Reading(_in_tower(f"{_LENS[inner]}.{number}", name))
    if number is not None and inner in _UNIT:
        kind, eps = host_norm(name)
        return Reading(_in_tower(f"{_UNIT[inner]}.{number}", name), kind, eps)
    if found or layer is not None or hook.startswith("hook_"):
        raise ConversionError(
            f"the hook {hook!r} has no place by meaning. Known: {', '.join([*_LENS, *_UNIT, 'hook_embed'])}. Give the module "
            "path where it is in your host, such as hook_in='model.layers.3.mlp.down_proj:input'."
        )
    return from_path(hook, model)


def host_norm(model: str) -> tuple[str, float]:
    """`(input_norm, norm_eps)` of the norms in a host, by its name."""
    return ("unit_ln" if _LAYER_NORM.search(model) else "unit_rms"), (1e-6 if _EPS.search(model) else 1e-5)


def from_path(path: str, model: str | None = None, side: str = "output") -> Reading:
    """The place of a module path, such as `model.layers.13.output`, `layers.10` or `layers.10.mlp`.

    Paths that have no meaning by name alone stay paths.

    Args:
        path (`str`): in the host, with or without `.input` or `.output` at the end.
        model (`str`, *optional*): name of the host.
        side (`str`): where the path does not say it.
    """
    name = (model or "").rpartition("/")[2]
    found = _PATH.fullmatch(path)
    if found:
        place = _INNER.get((found["inner"] or "", found["side"] or side))
        if place:
            return Reading(_in_tower(f"{place}.{found[1]}", name))
    if path in ("embed_tokens", "model.embed_tokens", "wte", "transformer.wte"):
        return Reading(_in_tower("embed", name))
    for ending in ("input", "output"):
        if path.endswith(f".{ending}"):
            path, side = path.removesuffix(f".{ending}"), ending
    return Reading(f"{path}:{side}" if side == "input" else path)


def to_lens(point: str) -> str:
    """The TransformerLens hook of a place; a module path stays as it is."""
    name, _, layer = point.rpartition(":")[2].partition(".")
    if point.endswith((":input", ":output")) or not (layer.isdecimal() or point == "embed"):
        return point
    if point == "embed":
        return "hook_embed"
    return f"blocks.{layer}.{_BACK[name]}" if name in _BACK else point


def _in_tower(point: str, model: str) -> str:
    return f"text:{point}" if _TOWERS.search(model) else point
