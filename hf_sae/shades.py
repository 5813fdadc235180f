"""The colours of activations, the same in notebooks, terminals and pages: a warm ramp, and a cool one for negative values."""

from __future__ import annotations

from collections.abc import Sequence


WARM = ("#FFFFFF", "#FEE8C8", "#FDBB84", "#E6550D", "#7F2704")
COOL = ("#FFFFFF", "#DEEBF7", "#9ECAE1", "#3182BD", "#08306B")
INK, PAPER = "#000000", "#FFFFFF"
READABLE = 4.5  # contrast that WCAG 2 asks of text

_CUBE = (0, 95, 135, 175, 215, 255)  # the levels of the 6 x 6 x 6 colours of a 256-colour terminal


def shade(share: float) -> str:
    """The background `#RRGGBB` for an activation that is `share` of full strength, from -1 to 1."""
    return mix(WARM if share >= 0 else COOL, min(abs(share), 1.0))


def mix(ramp: Sequence[str], share: float) -> str:
    """The colour at `share` of the way, 0 to 1, along colours that stand at equal distances."""
    place = share * (len(ramp) - 1)
    left = min(int(place), len(ramp) - 2)
    pairs = zip(_channels(ramp[left]), _channels(ramp[left + 1]), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * (place - left)):02X}" for low, high in pairs)


def text_on(background: str) -> str:
    """Black, or white where black would be hard to read."""
    return INK if contrast(background, INK) >= READABLE else PAPER


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours as WCAG 2 defines it, 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def terminal_colour(colour: str) -> tuple[int, str]:
    """The nearest of the 216 cube colours of a 256-colour terminal: its number, and what it looks like."""
    levels = [min(range(6), key=lambda i: abs(_CUBE[i] - channel)) for channel in _channels(colour)]
    return 16 + 36 * levels[0] + 6 * levels[1] + levels[2], "#" + "".join(f"{_CUBE[i]:02X}" for i in levels)


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    shares = [channel / 255 for channel in _channels(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
