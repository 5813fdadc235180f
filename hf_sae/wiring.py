"""Where attention and MLP of a block read and write, from one small probe forward."""

from __future__ import annotations

from torch import nn

from .errors import HookPointError
from .hook_points import Place
from .towers import Tower


def wiring_of(host: nn.Module, tower: Tower, layer: int):
    """The places inside one block."""
    raise HookPointError("places inside a block need the probe.")


def probe_width(host: nn.Module, module: nn.Module, place: Place) -> int:
    """Width of a place by running the host."""
    raise HookPointError("widths of this place need the probe.")
