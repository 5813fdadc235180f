"""Activations of several places that stand side by side in the last dimension: their widths and scales.

Residual streams grow from layer to layer and differ from model to model, so places that are reconstructed together are
brought to one scale first: otherwise the loudest would have all latents.
"""

import math

import torch
from torch import Tensor

from .outputs import total_variance


def scaled(x: Tensor, widths: list[int], scales: list[float], inverse: bool = False) -> Tensor:
    """`[..., sum(widths)]` with each place multiplied by its scale, or divided by it.

    Args:
        x (`Tensor`): `[..., sum(widths)]`.
        widths (`list`), scales (`list`): a number for each place.
        inverse (`bool`): divide.
    """
    parts = zip(x.split(widths, dim=-1), scales, strict=True)
    return torch.cat([part / scale if inverse else part * scale for part, scale in parts], dim=-1)


def fitted_scales(x: Tensor, widths: list[int]) -> list[float]:
    """For a sample `[tokens, sum(widths)]`, what makes the mean variance per dimension of each place 1."""
    return [math.sqrt(part.shape[-1] / total_variance(part)) for part in x.split(widths, dim=-1)]


def require_scales(scales: list[float] | None, n_places: int, name: str, norm: str) -> None:
    """For `validate_*` methods: refuses scales that do not fit the places or the norm.

    Raises:
        ValueError: naming what was given.
    """
    if scales is None:
        return
    if norm != "scalar":
        raise ValueError(f"{name}={scales} is for input_norm='scalar', which is {norm!r} here. Leave it out.")
    if len(scales) != n_places or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"{name}={scales} must be {n_places} positive finite numbers, one for each place.")
