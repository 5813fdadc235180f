"""The columns of a stream: the activations of a place, or what is served beside them under `"<place>/gradient"`."""

from __future__ import annotations

import torch


GRADIENT = "/gradient"  # no place is written so: a module path has no slash


def place_of(column: str) -> str:
    """The place that a column belongs to, as it is written."""
    return column.removesuffix(GRADIENT)


def is_gradient(column: str) -> bool:
    """Whether a column holds gradients of the host's loss instead of activations."""
    return column.endswith(GRADIENT)


def dtype_of(column: str, dtype: torch.dtype) -> torch.dtype:
    """What a column is served in: activations in the stream's `dtype`, gradients (which can be tiny) in float32."""
    return torch.float32 if is_gradient(column) else dtype
