"""How activations lie in a shard: as they are, in another dtype, or as int8 with one scale per row.

Int8 is symmetric: `scale = max|x| / 127` of the row, in float32, and `q = round(x / scale)`. There is no zero point, since the
coordinates of a residual stream lie on both sides of zero, and the scale is the row's own, since norms of tokens differ by
orders of magnitude (the first token of a row, separators). The error of a coordinate is uniform in ±scale/2, so that a row
loses about `d · scale² / 12`; a row with one very large coordinate loses most. What was lost is measured while a cache is
written and stands in its manifest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError


LEVELS = 127
FLOATS = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.bfloat16, torch.float16)}


class Storage(ABC):
    """A way to store rows; `dtype` is what they are served in."""

    name: str
    dtype: torch.dtype

    @abstractmethod
    def shapes(self, point: str, width: int) -> dict[str, tuple[int, torch.dtype]]:
        """Names, widths and dtypes of the tensors of a place."""

    @abstractmethod
    def encode(self, point: str, x: Tensor) -> dict[str, Tensor]:
        """Rows `[n, width]` as those tensors."""

    @abstractmethod
    def decode(self, point: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The rows again, `[n, width]` in `dtype`."""


class Plain(Storage):
    """Rows in a floating dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.name, self.dtype = str(dtype).removeprefix("torch."), dtype

    def shapes(self, point: str, width: int) -> dict[str, tuple[int, torch.dtype]]:
        """One tensor, called as the place."""
        return {point: (width, self.dtype)}

    def encode(self, point: str, x: Tensor) -> dict[str, Tensor]:
        """A cast."""
        return {point: x.to(self.dtype)}

    def decode(self, point: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """As they lie there."""
        return tensors[point]


class Int8(Storage):
    """Rows as int8 and one float32 scale each; see the module."""

    name = "int8"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def shapes(self, point: str, width: int) -> dict[str, tuple[int, torch.dtype]]:
        """Two tensors, called as the place and `…/scale`."""
        return {point: (width, torch.int8), f"{point}/scale": (1, torch.float32)}

    def encode(self, point: str, x: Tensor) -> dict[str, Tensor]:
        """Rounds to the nearest of 255 levels."""
        x = x.float()
        scale = x.abs().amax(dim=1, keepdim=True) / LEVELS
        quantised = (x / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_().clamp_(-LEVELS, LEVELS)
        return {point: quantised.to(torch.int8), f"{point}/scale": scale}

    def decode(self, point: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Level times scale."""
        return (tensors[point].float() * tensors[f"{point}/scale"]).to(self.dtype)


def storage_for(dtype: torch.dtype | None, own: torch.dtype) -> Storage:
    """The storage that `dtype` means: `None` is the stream's `own` dtype, `torch.int8` quantises.

    Raises:
        DataError: for another dtype.
    """
    if dtype is torch.int8:
        return Int8(own)
    wanted = own if dtype is None else dtype
    if wanted not in FLOATS.values():
        raise DataError(f"dtype={wanted} cannot be stored: give {', '.join(f'torch.{n}' for n in [*FLOATS, 'int8'])}.")
    return Plain(wanted)


def storage_by_name(name: Any, dtype: Any) -> Storage:
    """The storage that a manifest names.

    Raises:
        DataError: for an unknown one.
    """
    if name == Int8.name and dtype in FLOATS:
        return Int8(FLOATS[dtype])
    if name in FLOATS and dtype == name:
        return Plain(FLOATS[name])
    raise DataError(
        f"the cache stores {name!r} as {dtype!r}, which this hf-sae does not read: {', '.join([*FLOATS, 'int8'])}."
    )
