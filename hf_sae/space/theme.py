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

    from ..views.themes import DARK, LIGHT

    blue = gr.themes.Color(
        c50="#f0f7fc", c100="#deebf7", c200="#c6dbef", c300="#9ecae1", c400="#6baed6", c500="#3182bd",
        c600="#2171b5", c700="#135a97", c800="#08458a", c900="#08306b", c950="#041c40", name="ink blue",
    )  # fmt: skip
    theme = gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue=gr.themes.colors.gray,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_sm,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
    )
    return theme.set(
        body_background_fill=LIGHT["paper"],
        body_background_fill_dark=DARK["paper"],
        body_text_color=LIGHT["ink"],
        body_text_color_dark=DARK["ink"],
        body_text_color_subdued=LIGHT["quiet"],
        body_text_color_subdued_dark=DARK["quiet"],
        border_color_primary=LIGHT["line"],
        border_color_primary_dark=DARK["line"],
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="500",
        input_background_fill=LIGHT["paper"],
        input_background_fill_dark=DARK["soft"],
        input_border_color=LIGHT["line"],
        input_border_color_dark=DARK["line"],
        input_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill=LIGHT["paper"],
        button_secondary_background_fill_dark=DARK["soft"],
        button_secondary_border_color=LIGHT["line"],
        button_secondary_border_color_dark=DARK["line"],
        button_secondary_text_color_dark=DARK["ink"],
        button_border_width="1px",
        link_text_color=LIGHT["accent"],
        link_text_color_dark=DARK["accent"],
    )


def style() -> str:
    """The CSS of the views and of the page around them."""
    from ..views import STYLE

    return STYLE + "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("space.css", "steer.css"))


def head() -> str:
    """The page's own scripts, as markup for its head, and the rules that Gradio would lose.

    It moves what stands in a media query below its own container: rules for what is around that go another way.
    """
    outer = (ASSETS / "phone.css").read_text(encoding="utf-8")
    scripts = (f"<script>{(ASSETS / name).read_text(encoding='utf-8')}</script>" for name in ("script.js", "steer.js"))
    return f"<style>{outer}</style>{''.join(scripts)}"
