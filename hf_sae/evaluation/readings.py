"""The near misses of an autoencoder: what it would be had one thing been read differently from its files.

Each is a model around the same tensors, so that a dozen of them cost no memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, HookPointError
from ..hosts import resolve, width_of
from ..models.modeling_sae import SAE


AS_LOADED = "as loaded"
_SIDES = {
    "resid_pre": ("resid_mid", "resid_post"),
    "resid_mid": ("resid_pre", "resid_post", "mlp_in", "attn_out"),
    "resid_post": ("resid_mid", "resid_pre", "mlp_out"),
    "mlp_in": ("resid_mid", "mlp_out"),
    "mlp_out": ("mlp_in", "resid_post"),
    "attn_in": ("resid_pre", "attn_out"),
    "attn_out": ("attn_in", "resid_mid"),
}
_NORMS = ("none", "center", "layer_norm", "unit_rms")


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint.

    Args:
        name (`str`): what is different, in words.
        sae ([`SAE`]): the model that it gives.
    """

    name: str
    sae: SAE

    @property
    def points(self) -> tuple[str, str]:
        """Where it reads and writes."""
        config = self.sae.config
        return str(config.hook_in), str(config.hook_out or config.hook_in)


def readings(sae: SAE, host: nn.Module, sample: Tensor, with_published_l0: bool) -> Iterator[Reading]:
    """The autoencoder as it was loaded, and its near misses.

    Args:
        sae ([`SAE`]): as loaded, with one place to read and one to write.
        host (`nn.Module`): says which places exist and how wide they are.
        sample (`Tensor`): activations `[tokens, d_in]` at `hook_in`, from which the scale of a scalar norm is taken.
        with_published_l0 (`bool`): try readings that only an L0 can tell from the right one.
    """
    yield Reading(AS_LOADED, sae)
    for name, config, weights in _changes(sae, sample, with_published_l0):
        if (model := _variant(sae, config, weights)) is not None:
            yield Reading(name, model)
    for name, config in _elsewhere(sae, host):
        if (model := _variant(sae, config, {})) is not None:
            yield Reading(name, model)


def other_places(sae: SAE, host: nn.Module) -> set[str]:
    """Every place that the readings of [`readings`] need."""
    config = sae.config
    points = {str(config.hook_in), str(config.hook_out or config.hook_in)}
    for _, changes in _elsewhere(sae, host):
        points |= {str(changes[key]) for key in ("hook_in", "hook_out") if changes.get(key)}
    return points


def _variant(sae: SAE, config: dict[str, Any], weights: dict[str, Tensor]) -> SAE | None:
    try:
        changed = sae.config.replace(**config)
    except ConfigError:
        return None  # a combination that has no meaning, such as a bias subtracted in another space
    with torch.device("meta"):
        model = type(sae)(changed)
    model.load_state_dict({**sae.state_dict(), **weights}, assign=True)
    return model.eval()


def _changes(
    sae: SAE, sample: Tensor, with_published_l0: bool
) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    config, matrices = sae.config, {"decoder.weight": sae.decoder.weight.detach()}
    if isinstance(sae.encoder, nn.Linear):
        matrices = {"encoder.weight": sae.encoder.weight.detach()} | matrices
    if not config.is_transcoder:
        words = "b_dec not subtracted from the input" if config.subtracts_bias else "b_dec subtracted from the input"
        yield words, {"pre_bias": not config.subtracts_bias}, {}
    elif config.d_in == config.d_out and "encoder.weight" in matrices:
        bias, shift = sae.encoder.bias.detach(), matrices["encoder.weight"] @ sae.decoder.bias.detach()
        yield "b_dec subtracted from the input", {}, {"encoder.bias": bias - shift}
        yield "b_dec of the input added back", {}, {"encoder.bias": bias + shift}
    for key, matrix in matrices.items():
        for number, other in enumerate(_transposed(matrix)):
            name = key.removesuffix(".weight")
            yield f"{name} transposed" + (" the other way" if number else ""), {}, {key: other}
    if sae.skip is not None:
        for number, other in enumerate(_transposed(sae.skip.weight.detach())):
            yield "skip transposed" + (" the other way" if number else ""), {}, {"skip.weight": other}
    for kind in _NORMS:
        if kind != config.input_norm:
            eps = 0.0 if kind == "unit_rms" else 1e-5
            yield f"input norm {kind!r}", {"input_norm": kind, "input_scale": 1.0, "norm_eps": eps}, {}
    scale = config.d_in**0.5 / float(sample.norm(dim=-1).mean().clamp_min(1e-12))
    yield f"input scaled by {scale:.3g}, to a norm of √d_in", {"input_norm": "scalar", "input_scale": scale}, {}
    if with_published_l0 and "threshold" in sae.state_dict():
        yield "without thresholds", {}, {"threshold": torch.zeros_like(sae.state_dict()["threshold"])}


def _transposed(matrix: Tensor) -> list[Tensor]:
    """The same numbers in memory read with the other index first; there are two ways where it is not square."""
    rows, columns = matrix.shape
    ways = [matrix.T.contiguous().view(rows, columns)]
    if rows != columns:
        ways.append(matrix.contiguous().view(columns, rows).T.contiguous())
    return ways


def _elsewhere(sae: SAE, host: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Readings at other places that the host has, each value of the residual stream under one name."""
    config = sae.config
    source = str(config.hook_in)
    if not config.is_transcoder:
        for point in _near(source, host, config.d_in):
            yield f"at {point}", {"hook_in": point, "hook_out": None}
        return
    target = str(config.hook_out)
    yield "input and output exchanged", {"hook_in": target, "hook_out": source}
    for point in _near(source, host, config.d_in):
        if _plain(point) != _plain(target):
            yield f"reads {point}", {"hook_in": point}
    for point in _near(target, host, config.d_out or config.d_in):
        if _plain(point) != _plain(source):
            yield f"writes {point}", {"hook_out": point}
    for step in (-1, 1):
        points = [_shift(source, step), _shift(target, step)]
        if all(point is not None and _exists(point, host) for point in points):
            yield f"{points[0]} to {points[1]}", {"hook_in": points[0], "hook_out": points[1]}


def _near(point: str, host: nn.Module, width: int | None) -> list[str]:
    tower, _, rest = point.rpartition(":") if not point.endswith((":input", ":output")) else ("", "", point)
    name, _, layer = rest.partition(".")
    prefix = f"{tower}:" if tower else ""
    found = [f"{prefix}{other}.{layer}" for other in _SIDES.get(name, ())]
    if name not in _SIDES:
        found.append(
            point.removesuffix(":input") if point.endswith(":input") else f"{point.removesuffix(':output')}:input"
        )
    found += [shifted for step in (-1, 1) if (shifted := _shift(point, step)) is not None]
    known, out = {_plain(point)}, []
    for candidate in found:
        if _plain(candidate) not in known and _exists(candidate, host, width):
            known.add(_plain(candidate))
            out.append(candidate)
    return out


def _plain(point: str) -> str:
    """What enters a block is what left the one before: one name for both."""
    found = re.fullmatch(r"((?:\w+:)?)resid_pre\.(\d+)", point)
    return f"{found[1]}resid_post.{int(found[2]) - 1}" if found and int(found[2]) else point


def _shift(point: str, step: int) -> str | None:
    found = list(re.finditer(r"\.(\d+)(?=\.|:|$)", point))
    if len(found) != 1 or int(found[0][1]) + step < 0:
        return None
    start, end = found[0].span(1)
    return f"{point[:start]}{int(found[0][1]) + step}{point[end:]}"


def _exists(point: str, host: nn.Module, width: int | None = None) -> bool:
    try:
        resolve(host, point)
        return width is None or width_of(host, point) == width
    except HookPointError:
        return False
