"""Steps of shade: a token's class says how strong it is, and one style sheet gives each step its colours in both themes.

The light ramp runs from white paper to dark colours. On dark paper the same colours run the other way, from dark to light, so
that strong stands out from the paper in both, and in greyscale.
"""

from __future__ import annotations

import math

from ..shades import COOL, WARM, mix, shade, text_on


STEPS = 20
THICKEST = 4  # px, of the line under the strongest token
DARK_PAPER = "#14161A"
DARK_WARM, DARK_COOL = (DARK_PAPER, *reversed(WARM[1:])), (DARK_PAPER, *reversed(COOL[1:]))


def level(activation: float, maximum: float | None) -> int:
    """Which step, -20 to 20: 0 does not fire, 20 is full strength and beyond; whatever fires is at least one step.

    Args:
        activation (`float`): of the token; what is not a number does not fire.
        maximum (`float`, *optional*): of full strength, by its size.
    """
    if not activation or math.isnan(activation):
        return 0
    full = abs(maximum or 0.0)
    share = 1.0 if not full or math.isnan(full) or math.isinf(activation) else min(abs(activation) / full, 1.0)
    return int(math.copysign(max(1, round(share * STEPS)), activation))


def underline(step: int) -> int:
    """Thickness in px of the line under a token of a step: 0 to 4, at least 1 where it fires."""
    return max(1, round(abs(step) * THICKEST / STEPS)) if step else 0


def step_class(step: int, scale: str = "f") -> str:
    """The class of a step: `hs-f12` for 12, `hs-fn12` for -12; `scale` is `f` (of the feature) or `r` (of the row)."""
    return f"hs-{scale}{'n' * (step < 0)}{abs(step)}"


def background(step: int, dark: bool) -> str:
    """The colour `#RRGGBB` of a step in a theme."""
    if not dark:
        return shade(step / STEPS)
    return mix(DARK_WARM if step >= 0 else DARK_COOL, abs(step) / STEPS)


def ramp_variables(dark: bool) -> str:
    """Declarations of the colours of every step and of the text on them, for one theme."""
    cells = []
    for step in _all_steps():
        colour = background(step, dark)
        name = f"{'n' * (step < 0)}{abs(step)}"
        cells.append(f"--hs-b{name}:{colour};--hs-t{name}:{text_on(colour)}")
    return ";".join(cells)


def ramp_rules() -> str:
    """The rules that give the classes of steps their colours and lines; where the scale is each row's own, that of the row."""
    rules = []
    for step in _all_steps():
        name = f"{'n' * (step < 0)}{abs(step)}"
        look = f"background-color:var(--hs-b{name});color:var(--hs-t{name});border-bottom-width:{underline(step)}px"
        look += ";border-bottom-style:dashed" if step < 0 else ""
        rules.append(f".hs .hs-f{name},.hs .hs-by-row:checked~* .hs-r{name}{{{look}}}")
    return "\n".join(rules)


def _all_steps() -> list[int]:
    return [step for step in range(-STEPS, STEPS + 1) if step]
