"""Grey boxes of the final size, for what is still to come."""

from __future__ import annotations

from .markup import hidden


def feature_skeleton() -> str:
    """In place of a feature page."""
    rows = "".join(_box(44) for _ in range(8))
    aside = "".join(_box(height) for height in (210, 160, 150))
    return (
        f'<div class="hs hs-feature" aria-busy="true">{hidden("Loading the feature.")}<div class="hs-head">{_box(28, 60)}{_box(18, 80)}'
        f'{_box(20, 50)}</div><div class="hs-columns"><div class="hs-main hs-aside">{rows}</div><div class="hs-aside">{aside}</div></div></div>'
    )


def hit_skeleton(hits: int = 5) -> str:
    """In place of so many hits."""
    cards = "".join(f'<li><div class="hs-card">{_box(22, 50)}{_box(18, 70)}{_box(60)}</div></li>' for _ in range(hits))
    return f'<section class="hs hs-hits" aria-busy="true">{hidden("Searching.")}<ol>{cards}</ol></section>'


def _box(height: int, width: int = 100) -> str:
    return f'<div class="hs-skeleton" style="height:{height}px;width:{width}%"></div>'
