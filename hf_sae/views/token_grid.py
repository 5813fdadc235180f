"""Tokens across, latents down: where each latent fires in one text."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from .levels import level, step_class
from .markup import attributes, handle, text
from .token_strip import shown
from .words import number


@dataclass(frozen=True)
class GridView:
    """The activations of some latents on the tokens of one text.

    Args:
        tokens (`list` of `str`): their texts.
        latents (`list` of `int`): in the order of rows.
        activations (`list` of `list` of `float`): one list per latent, one value per token; 0 where it does not fire.
        token_ids (`list` of `int`, *optional*): said on hover.
        special (`set` of `int`): positions of special tokens.
        labels (`dict`): labels by latent.
        maxima (`dict`): the activation of full shade by latent; otherwise the strongest of the grid.
        hrefs (`dict`): pages by latent.
        order (`str`): how the rows are sorted, in words.
        scale (`str`): what full shade means, in words.
        position (`int`, *optional*), latent (`int`, *optional*): the token and the latent that were chosen.
        sae_id (`str`): of which autoencoder.
        clickable (`bool`): tokens and latents take clicks, which the page listens for.
    """

    tokens: Sequence[str]
    latents: Sequence[int]
    activations: Sequence[Sequence[float]]
    token_ids: Sequence[int] | None = None
    special: Collection[int] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    maxima: Mapping[int, float] = field(default_factory=dict)
    hrefs: Mapping[int, str] = field(default_factory=dict)
    order: str = ""
    scale: str = ""
    position: int | None = None
    latent: int | None = None
    sae_id: str = ""
    clickable: bool = False

    @property
    def strongest(self) -> float:
        """The largest activation of all, by its size."""
        return max((abs(a) for row in self.activations for a in row if math.isfinite(a)), default=0.0)


def token_grid(grid: GridView) -> str:
    """A table that scrolls sideways, with latents and their labels standing still.

    Args:
        grid ([`GridView`]): what to show.

    Raises:
        ValueError: if the lists differ in length.
    """
    if len(grid.activations) != len(grid.latents) or any(len(row) != len(grid.tokens) for row in grid.activations):
        raise ValueError(
            f"{len(grid.latents)} latents, {len(grid.tokens)} tokens and {len(grid.activations)} rows of activations: give "
            "one row for each latent, with one value for each token."
        )
    if not grid.tokens or not grid.latents:
        return '<div class="hs hs-grid"><p class="hs-note">No latent fires on this text.</p></div>'
    heads = "".join(_head(grid, i) for i in range(len(grid.tokens)))
    strongest = grid.strongest
    rows = "".join(_row(grid, i, strongest) for i in range(len(grid.latents)))
    said = [f"Sorted by {grid.order}" if grid.order else "", f"shade: {grid.scale}" if grid.scale else ""]
    words = "; ".join(part for part in said if part)
    caption = f'<p class="hs-note">{text(words[:1].upper() + words[1:])}.</p>' if words else ""
    return (
        f'<div class="hs hs-grid"{attributes(data_sae=grid.sae_id or None)}>{caption}<div class="hs-scroll" tabindex="0" role="region"'
        f' aria-label="Latents by tokens"><table><thead><tr><th class="hs-corner" scope="col">latent</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _head(grid: GridView, i: int) -> str:
    tip = (
        f"“{grid.tokens[i]}”"
        + (f" · id {grid.token_ids[i]}" if grid.token_ids is not None else "")
        + f" · position {i}"
    )
    content = shown(grid.tokens[i], i in grid.special).replace("\n", "")
    chosen = i == grid.position
    content = handle(content, None, grid.clickable, data_position=i, title=tip)
    marks = attributes(class_="hs-chosen" if chosen else None, aria_sort="descending" if chosen else None)
    return f'<th scope="col"{marks}>{content}{"▾" if chosen else ""}</th>'


def _row(grid: GridView, i: int, strongest: float) -> str:
    latent, values = grid.latents[i], grid.activations[i]
    full = grid.maxima.get(latent) or strongest
    best = max((abs(a) for a in values if not math.isnan(a)), default=0.0)
    label = grid.labels.get(latent)
    name = f'<span class="hs-index">{latent:d}</span>' + (
        f' <span class="hs-name">{text(label)}</span>' if label else ""
    )
    name = handle(
        name, grid.hrefs.get(latent), grid.clickable, data_latent=latent, data_sae=grid.sae_id or None, title=label
    )
    cells = "".join(_cell(grid, latent, place, a, full, best) for place, a in enumerate(values))
    chosen = attributes(class_="hs-chosen" if latent == grid.latent else None)
    return f'<tr{chosen}><th scope="row">{name}</th>{cells}</tr>'


def _cell(grid: GridView, latent: int, place: int, activation: float, full: float, best: float) -> str:
    step = level(activation, full)
    if not step:
        return "<td></td>"
    peak = abs(activation) == best
    kind = f"hs-t {step_class(step)}" + " hs-peak" * peak
    tip = f"latent {latent} on “{grid.tokens[place]}”: {number(activation)}"
    value = number(float(f"{activation:.2g}")) if math.isfinite(activation) else number(activation)
    return (
        f'<td><span class="{kind}"{attributes(data_latent=latent, data_position=place, title=tip)}>{value}</span></td>'
    )
