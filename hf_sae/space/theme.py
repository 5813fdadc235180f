"""How the page looks: neutral paper and ink, one blue for what can be clicked, fonts that every system has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import gradio as gr

ASSETS = Path(__file__).parent / "assets"
SANS = ["system-ui", "Segoe UI", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]


def make_theme() -> gr.themes.Base:
    """The theme; no font is asked of anybody."""
    import gradio as gr

    blue = gr.themes.Color(
        c50="#f0f7fc", c100="#deebf7", c200="#c6dbef", c300="#9ecae1", c400="#6baed6", c500="#3182bd",
        c600="#2171b5", c700="#135a97", c800="#08458a", c900="#08306b", c950="#041c40", name="ink blue",
    )  # fmt: skip
    theme = gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue=gr.themes.colors.stone,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_sm,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
    )
    return theme.set(
        body_background_fill="#fdfcfa",
        body_background_fill_dark="#151412",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1e1c1a",
        input_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#262421",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
    )


def style() -> str:
    """The CSS of the views and of the page around them."""
    from ..views import STYLE

    return STYLE + (ASSETS / "space.css").read_text(encoding="utf-8")


def script() -> str:
    """The page's own script, as markup for its head."""
    return f"<script>{(ASSETS / 'script.js').read_text(encoding='utf-8')}</script>"
