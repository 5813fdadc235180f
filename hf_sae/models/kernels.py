"""Which kernels compute a sparse sum: public torch operations, or our own on a GPU with Triton."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .triton_ops import available, decode, dots, error_and_dots, sum_rows, transpose


# names, not the module: code that travels to the Hub may import from siblings only in this form
_TRITON = SimpleNamespace(
    decode=decode, dots=dots, error_and_dots=error_and_dots, sum_rows=sum_rows, transpose=transpose
)


def kernels_for(tensor: Tensor) -> Any:
    """Our Triton kernels where they can run for this tensor, else `None`: asked at every call, never at import."""
    if not tensor.is_floating_point():
        tensor = tensor.new_empty(0, dtype=torch.float32)
    return _TRITON if available(tensor) else None


def bag_sum(indices: Tensor, weight: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """`[rows, d]`: the sum of `values[i] * weight[indices[i]]` over `offsets[row] <= i < offsets[row + 1]`."""
    return F.embedding_bag(indices, weight, offsets, per_sample_weights=values, mode="sum", include_last_offset=True)
