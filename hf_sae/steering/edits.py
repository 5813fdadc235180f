"""What becomes of latents: small frozen edits, each a rule for a difference `z' - z`."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class OfMax:
    """`factor` times the largest activation of the latent that evaluation recorded (`sae.feature_stats["maximum"]`)."""

    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _finite(self.factor, "OfMax"))


@dataclass(frozen=True)
class OfNorm:
    """The latent value at which `value * W_dec[j]` is as long as `factor` times the activation at that token.

    For [`add`] this is the length of the difference itself. The sign of `factor` is the sign of the value.
    """

    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _finite(self.factor, "OfNorm"))


Strength = float | OfMax | OfNorm


@dataclass(frozen=True)
class Trigger:
    """Where an edit holds: only on tokens on which `latent` is above `above`, before any edit."""

    latent: int
    above: float = 0.0


@dataclass(frozen=True)
class Edit(ABC):
    """An operation on some latents; made by [`add`], [`clamp`], [`scale`] and [`ablate`].

    Args:
        strengths (`tuple`): pairs of a latent and how strongly.
        trigger ([`Trigger`], *optional*): restricts it to some tokens; set by [`when`].
    """

    strengths: tuple[tuple[int, Strength], ...]
    trigger: Trigger | None = None
    reads_latents: ClassVar[bool] = True

    @property
    def latents(self) -> tuple[int, ...]:
        """The latents that it may change."""
        return tuple(latent for latent, _ in self.strengths)

    @property
    def needs_latents(self) -> bool:
        """Whether the activation has to be encoded for it."""
        return self.reads_latents or self.trigger is not None

    def times(self, factor: float) -> Edit:
        """The same edit, `factor` times as strong: 0 does nothing where the operation has such a strength."""
        return replace(self, strengths=tuple((latent, _times(value, factor)) for latent, value in self.strengths))

    @abstractmethod
    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        """`z' - z` for latents `[tokens, n]`, with strengths in latent units that broadcast against them."""


class Add(Edit):
    """`z' = z + strength`, whether the latent fires or not."""

    reads_latents = False

    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        """`strength`."""
        return strength.expand_as(latents)


class Clamp(Edit):
    """`z' = strength`, whether the latent fires or not."""

    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        """`strength - z`."""
        return strength - latents


class Raise(Edit):
    """`z' = max(z, strength)`: a clamp that never weakens; `min(z, strength)` for a strength below zero."""

    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        """`max(strength - z, 0)`, or `min(strength - z, 0)` for a strength below zero."""
        away = strength.sign()  # the recorded maximum of a latent that fires with both signs may be a negative number
        return away * torch.relu(away * (strength - latents)) + (away == 0) * torch.relu(-latents)


class Scale(Edit):
    """`z' = strength * z`: nothing happens where the latent does not fire."""

    def times(self, factor: float) -> Edit:
        """The same edit with its distance from 1, the factor that changes nothing, `factor` times as large."""
        plain = ((j, value) for j, value in self.strengths if isinstance(value, float))  # `scale` takes no others
        return replace(self, strengths=tuple((j, 1 + (value - 1) * factor) for j, value in plain))

    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        """`(strength - 1) * z`."""
        return (strength - 1) * latents


class Ablate(Edit):
    """`z' = 0`."""

    def times(self, factor: float) -> Edit:
        """The same edit: there is no zeroing twice as much."""
        return self

    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        """`-z`."""
        return -latents


def add(strengths: Mapping[int, Strength]) -> Edit:
    """Adds to latents on every token that is steered.

    Args:
        strengths (`dict`): from latent to strength: a float in latent units, [`OfMax`] or [`OfNorm`].

    Raises:
        TypeError: if it is not such a mapping.
        ValueError: for a negative latent, or a strength that is not a finite number.
    """
    return Add(_pairs(strengths, "add"))


def clamp(strengths: Mapping[int, Strength], *, only_raise: bool = False) -> Edit:
    """Sets latents to a value on every token that is steered.

    Args:
        strengths (`dict`): from latent to value: a float in latent units, [`OfMax`] or [`OfNorm`].
        only_raise (`bool`): leave a latent alone where it is beyond the value already: above it, or below it if it is negative.

    Raises:
        TypeError: if it is not such a mapping.
        ValueError: for a negative latent, or a value that is not a finite number.
    """
    return (Raise if only_raise else Clamp)(_pairs(strengths, "clamp"))


def scale(factors: Mapping[int, float]) -> Edit:
    """Multiplies latents, where they fire.

    Args:
        factors (`dict`): from latent to factor.

    Raises:
        TypeError: if it is not such a mapping, or a factor is given as [`OfMax`] or [`OfNorm`].
        ValueError: for a negative latent, or a factor that is not a finite number.
    """
    pairs = _pairs(factors, "scale")
    for latent, factor in pairs:
        if isinstance(factor, (OfMax, OfNorm)):
            raise TypeError(
                f"scale({{{latent}: {factor}}}): a factor has no unit. Give a plain number, or use clamp for a value."
            )
    return Scale(pairs)


def ablate(latents: Iterable[int] | int) -> Edit:
    """Sets latents to zero.

    Args:
        latents (`list` of `int`): which; one alone needs no list.

    Raises:
        TypeError: if one of them is not an integer.
        ValueError: if one of them is negative.
    """
    several = latents if isinstance(latents, Iterable) else (latents,)
    return Ablate(tuple((latent, 0.0) for latent in dict.fromkeys(_latent(each, "ablate") for each in several)))


def when(edit: Edit, latent: int, above: float = 0.0) -> Edit:
    """The same edit, only on tokens on which a latent of the same autoencoder fires more than `above`.

    The latent is looked at as the autoencoder has it before any edit: an edit cannot trigger another one.

    Args:
        edit ([`Edit`]): what to do there.
        latent (`int`): which latent has to fire.
        above (`float`): its least activation, in latent units.

    Raises:
        TypeError: if `edit` is not an edit, or the latent or number is none.
        ValueError: for a negative latent, or a number that is not finite.
    """
    (one,) = as_edits(edit)
    return replace(one, trigger=Trigger(_latent(latent, "when"), _finite(above, "when")))


def as_edits(edits: Any) -> tuple[Edit, ...]:
    """One edit, several or none as a tuple.

    Raises:
        TypeError: if something in it is not an edit.
    """
    several = () if edits is None else (edits,) if isinstance(edits, Edit) else edits
    if not isinstance(several, Sequence) or not all(isinstance(edit, Edit) for edit in several):
        raise TypeError(
            f"{edits!r} is not an edit. Give add({{…}}), clamp({{…}}), scale({{…}}) or ablate([…]), or a list of them."
        )
    return tuple(several)


def _times(strength: Strength, factor: float) -> Strength:
    if isinstance(strength, (OfMax, OfNorm)):
        return type(strength)(strength.factor * factor)
    return strength * factor


def _pairs(strengths: Any, name: str) -> tuple[tuple[int, Strength], ...]:
    if not isinstance(strengths, Mapping):
        raise TypeError(
            f"{name}({strengths!r}): give a dictionary from latent to strength, such as {name}({{4011: 2.0}})."
        )
    return tuple(
        (_latent(latent, name), strength if isinstance(strength, (OfMax, OfNorm)) else _finite(strength, name))
        for latent, strength in strengths.items()
    )


def _latent(latent: Any, name: str) -> int:
    try:
        index = operator.index(latent)
    except TypeError as error:
        raise TypeError(f"{name}: {latent!r} is not the index of a latent. Give an integer.") from error
    if index < 0:
        raise ValueError(f"{name}: latent {index} is negative. Latents are counted from 0.")
    return index


def _finite(strength: Any, name: str) -> float:
    try:
        value = float(strength)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: {strength!r} is not a strength. Give a number, OfMax(…) or OfNorm(…).") from error
    if not math.isfinite(value):
        raise ValueError(f"{name}: the strength {value} is not finite. Give a finite number.")
    return value
