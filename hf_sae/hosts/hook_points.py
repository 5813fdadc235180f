"""How a place in a host is written - by meaning (`[tower:]name.layer`) or as a module path with a side - and held."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from torch import nn

from ..errors import HookPointError


Side = Literal["input", "output"]
TOWERS = ("text", "vision", "audio", "encoder", "decoder")
LAYER_NAMES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_in",
    "attn_z",
    "attn_out",
    "mlp_in",
    "mlp_out",
)
HOST_NAMES = ("embed", "final")
FORMS = (
    "Allowed: '[tower:]name.layer' with a name of "
    + ", ".join(LAYER_NAMES)
    + "; '[tower:]embed' and '[tower:]final'; or a module path such as 'model.layers.12.mlp' with ':input' or "
    "':output' (the default). Towers: " + ", ".join(TOWERS) + "."
)


@dataclass(frozen=True)
class HookPoint:
    """A place in a host, as written; `str()` gives that back.

    Meanings (`resid_post.8`, `vision:mlp_in.3`, `embed`) survive a change of wrapper or of transformers version and
    are what a checkpoint stores; a module path (`model.layers.8.mlp:input`) reaches everything else.

    Args:
        text (`str`): `[tower:]name.layer`, `[tower:]embed`, `[tower:]final`, or `path[:input|:output]`.

    Raises:
        HookPointError: if it is none of these.
    """

    text: str
    tower: str | None = field(init=False, compare=False, repr=False, default=None)
    name: str | None = field(init=False, compare=False, repr=False, default=None)
    layer: int | None = field(init=False, compare=False, repr=False, default=None)
    path: str | None = field(init=False, compare=False, repr=False, default=None)
    side: Side = field(init=False, compare=False, repr=False, default="output")

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise HookPointError(f"a hook point is written as a string, not {type(self.text).__name__}. {FORMS}")
        for key, value in _parse(self.text).items():
            object.__setattr__(self, key, value)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, point: str | HookPoint) -> HookPoint:
        """The point itself, or the one that a string writes."""
        return point if isinstance(point, HookPoint) else cls(point)


@dataclass(frozen=True)
class Place:
    """A place as `hf-sae hooks` lists it.

    Args:
        name (`str`): how to write it, by meaning where it has one.
        path (`str`): module path in the unwrapped host.
        side (`str`): `"input"` or `"output"` of that module.
        width (`int`, *optional*): size of the last dimension, where the structure says it.
    """

    name: str
    path: str
    side: Side
    width: int | None


@dataclass(frozen=True, eq=False)
class Site:
    """A resolved place: the module to hook, and what a hook there has to know.

    Args:
        place ([`Place`]): what was found.
        module (`nn.Module`): the module at `place.path`.
        owner (`nn.Module`): the innermost model around it, whose inputs describe the tokens here.
        block (`nn.Module`, *optional*): the transformer block around it.
        flat (`bool`): the module sees `[batch * tokens, width]`.
        stream (`bool`): the module reads the residual stream beside the block's own sum, so an edit has to reach
            the block's output too.
    """

    place: Place
    module: nn.Module
    owner: nn.Module
    block: nn.Module | None = None
    flat: bool = False
    stream: bool = False


def _parse(text: str) -> dict[str, str | int | None]:
    head, colon, tail = text.partition(":")
    if not text or text != text.strip() or not all(part for part in text.replace(":", ".").split(".")):
        _refuse(text, "is not a place")
    if not colon:
        return _parse_meaning(text, None, text) or {"path": text}
    if tail in ("input", "output"):
        return {"path": head, "side": tail}
    if head in TOWERS:
        return _parse_meaning(text, head, tail) or _refuse(text, f"has no known name after {head + ':'!r}", tail)
    wrong_tower = _parse_meaning(text, None, tail) is not None
    what, wrong = ("tower", head) if wrong_tower else ("side", tail)
    return _refuse(text, f"has an unknown {what} {wrong!r}", wrong)


def _parse_meaning(text: str, tower: str | None, rest: str) -> dict[str, str | int | None] | None:
    """Tower, name and layer, or `None` where the text does not start with a known name."""
    name, dot, layer = rest.partition(".")
    if name in HOST_NAMES:
        # 'embed.weight' could be a path, 'embed.3' can only be a mistake.
        if dot and layer.isdecimal():
            _refuse(text, f"has a layer, but there is one {name!r} in a tower: write {text.rpartition('.')[0]!r}")
        return None if dot else {"tower": tower, "name": name}
    if name not in LAYER_NAMES:
        return None
    if not (layer.isdecimal() and layer.isascii()):
        _refuse(text, f"needs the number of a layer after {name!r}, as in '{name}.0'")
    return {"tower": tower, "name": name, "layer": int(layer)}


def _refuse(text: str, why: str, wrong: str | None = None) -> NoReturn:
    names = [*LAYER_NAMES, *HOST_NAMES, *TOWERS, "input", "output"]
    near = difflib.get_close_matches((wrong or text).partition(".")[0], names, n=2)
    hint = f" Closest: {', '.join(map(repr, near))}." if near else ""
    raise HookPointError(f"{text!r} {why}.{hint} {FORMS}")
