"""Cosines of a direction with the decoder rows of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import DataError


if TYPE_CHECKING:
    from ...models.modeling_sae import SAE

_NUMBERS_AT_ONCE = 1 << 23  # 32 MiB


@torch.no_grad()
def cosines(vector: Tensor | Sequence[float], sae: SAE) -> Tensor:
    """`[d_sae]`: cosine of a direction `[d_out]` with each decoder row, 0 for a row of zeros; float32, on the CPU.

    Raises:
        DataError: for a vector of another length, of zeros, or with a number that is not finite.
    """
    rows = sae.decoder.weight
    direction = torch.as_tensor(vector, dtype=torch.float32).detach().to(rows.device)
    if tuple(direction.shape) != (rows.shape[1],):
        raise DataError(
            f"the direction has shape {list(direction.shape)}, and decoder rows have {rows.shape[1]} numbers."
        )
    norm = direction.norm()
    if not (torch.isfinite(direction).all() and norm > 0):
        raise DataError("the direction is zero or not finite: give one that points somewhere.")
    direction = direction / norm
    # half precision is an order of magnitude slower on processors, and copying all rows doubles the memory
    parts = (part.float() for part in rows.split(max(1, _NUMBERS_AT_ONCE // rows.shape[1])))
    return torch.cat([(part @ direction) / part.norm(dim=1).clamp(min=1e-30) for part in parts]).cpu()
