"""The style sheet: what it looks like, and the colours of the light and the dark theme."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .levels import DARK_PAPER, ramp_rules, ramp_variables


LIGHT = {
    "ink": "#1B1E22",
    "paper": "#FFFFFF",
    "quiet": "#5A626C",
    "line": "#D5DAE0",
    "hair": "#ECEEF1",
    "soft": "#EFF1F4",
    "accent": "#08519C",
    "accent-soft": "#E3EDF7",
    "mark": "#4A1602",
    "warm": "#E6550D",
    "cool": "#3182BD",
    "bad": "#A8201A",
}
DARK = {
    "ink": "#E4E7EB",
    "paper": DARK_PAPER,
    "quiet": "#A0A8B2",
    "line": "#383E47",
    "hair": "#262B32",
    "soft": "#2A2F37",
    "accent": "#8EC5F2",
    "accent-soft": "#1D3247",
    "mark": "#FFE9D2",
    "warm": "#F0772F",
    "cool": "#5BA3DB",
    "bad": "#FF9A8F",
}
# pages that say themselves which theme they show: Gradio, JupyterLab, VS Code, Colab
_SAY_LIGHT = (".gradio-container .hs", "[data-jp-theme-light=true] .hs", ".vscode-light .hs", "html[theme=light] .hs")
_SAY_DARK = (".dark .hs", "[data-jp-theme-light=false] .hs", ".vscode-dark .hs", "html[theme=dark] .hs")
_TABS = 8


@cache
def style() -> str:
    """The whole style sheet; every rule is about `.hs` and what is in it."""
    light, dark = _variables(LIGHT, dark=False), _variables(DARK, dark=True)
    rules = [
        f".hs{{color-scheme:light;{light}}}",
        f"@media (prefers-color-scheme:dark){{.hs{{color-scheme:dark;{dark}}}}}",
        f"{','.join(_SAY_LIGHT)}{{color-scheme:light;{light}}}",
        f"{','.join(_SAY_DARK)}{{color-scheme:dark;{dark}}}",
        (Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
        ramp_rules(),
        *(_tab(number) for number in range(_TABS)),
    ]
    return "\n".join(rules) + "\n"


def _variables(colours: dict[str, str], dark: bool) -> str:
    return ";".join(f"--hs-{name}:{colour}" for name, colour in colours.items()) + ";" + ramp_variables(dark)


def _tab(number: int) -> str:
    picked = f".hs .hs-pick{number}"
    return (
        f"{picked}:checked~.hs-panel{number}{{display:block}}"
        f"{picked}:checked~.hs-tabs .hs-tab{number}{{color:var(--hs-ink);border-bottom-color:var(--hs-accent);font-weight:600}}"
        f"{picked}:focus-visible~.hs-tabs .hs-tab{number}{{outline:2px solid var(--hs-accent);outline-offset:2px}}"
    )
