"""Numbers and rates as people say them, with sensible digits."""

from __future__ import annotations

import math


_PLACES = {
    "embed": "the token embeddings",
    "resid_pre": "the residual stream before block {}",
    "resid_mid": "the residual stream between attention and MLP of block {}",
    "resid_post": "the residual stream after block {}",
    "attn_in": "the input of attention in block {}",
    "attn_z": "the concatenated heads of attention in block {}",
    "attn_out": "what attention of block {} adds to the residual stream",
    "mlp_in": "the input of the MLP of block {}",
    "mlp_out": "what the MLP of block {} adds to the residual stream",
    "final": "the residual stream after the last block",
}
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def number(value: float | None) -> str:
    """Three significant digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e").replace("-", "−")
    shown = f"{float(f'{value:.3g}'):,.10g}" if size >= 1000 else f"{value:.3g}"
    return shown.replace("-", "−")


def aligned(value: float) -> str:
    """As [`number`], with zeros behind so that digits stand below one another: `4.60`."""
    return f"{value:#.3g}".replace("-", "−") if 0.01 <= abs(value) < 99.95 else number(value)


def count(value: float) -> str:
    """How many: `850`, `9,999`, `12k`, `1.0M`."""
    if not math.isfinite(value):
        return number(value)
    for size, unit in _UNITS:
        if abs(value) >= max(size * 0.9995, 10_000):
            amount = value / size
            return f"{amount:.1f}{unit}" if abs(amount) < 9.95 else f"{amount:.0f}{unit}"
    return f"{value:,.0f}"


def rate(density: float | None) -> str:
    """How often a latent fires: `1 in 850 tokens`, `12 % of tokens`, `never fired`."""
    if density is None or math.isnan(density):
        return "density not known"
    if density <= 0:
        return "never fired"
    if density >= 1:
        return "every token"
    if density >= 0.1:
        return f"{100 * density:.3g} % of tokens" if density > 0.995 else f"{100 * density:.2g} % of tokens"
    return f"1 in {float(f'{1 / density:.3g}'):,.0f} tokens"


def silence(density: float | None) -> str:
    """The share of tokens on which a latent is zero, as a sentence; empty where it is not known."""
    if density is None or math.isnan(density):
        return ""
    if density <= 0:
        return "Zero on every token."
    percent = 100 * (1 - min(density, 1.0))
    digits = max(0, min(6, math.ceil(-math.log10(density)) - 1)) if density < 0.1 else 0
    shown = f"{percent:.{digits}f}"
    return f"Zero on {'nearly all' if float(shown) == 100 else f'{shown} % of'} tokens."


def strength(maximum: float | None, tokens: float | None) -> str:
    """What full shade means: `max 12.4 over 1.0M tokens`."""
    over = f" over {count(tokens)} tokens" if tokens else ""
    return f"max {number(maximum)}{over}"


def place(point: str | None) -> str:
    """A hook point in words with its name behind: `the residual stream after block 3 (resid_post.3)`."""
    if not point:
        return "a place that is not recorded"
    words = meaning(point)
    return f"{words} ({point})" if words else point


def meaning(point: str) -> str:
    """The words of a place that is named by meaning, with its tower; empty for a module path."""
    tower, _, rest = point.rpartition(":") if not point.endswith((":input", ":output")) else ("", "", point)
    name, _, layer = rest.partition(".")
    words = _PLACES.get(name, "")
    if ("{}" in words) != layer.isdigit() or ("{}" not in words and layer):
        return ""
    return words.format(layer) + (f" of the {tower} tower" if words and tower else "")


def ordinal(amount: int, singular: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{amount:,} {singular}{'' if amount == 1 else 's'}"
