"""What a context of a latent is, and rows of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .markup import text
from .token_strip import AROUND, token_strip


@dataclass(frozen=True)
class ContextView:
    """A piece of text with the activations of one latent.

    Args:
        tokens (`list` of `str`): texts of the tokens.
        activations (`list` of `float`): one per token.
        token_ids (`list` of `int`, *optional*): their ids.
        peak (`int`, *optional*): which token it was chosen for; otherwise the strongest.
        special (`set` of `int`): which tokens are special ones.
        document (`str`, *optional*): where it is from.
        note (`str`): what else is to be said, such as the interval of activations.
    """

    tokens: Sequence[str]
    activations: Sequence[float]
    token_ids: Sequence[int] | None = None
    peak: int | None = None
    special: Collection[int] = ()
    document: str | None = None
    note: str = ""


def distinct(contexts: Sequence[ContextView]) -> list[ContextView]:
    """The first of those that have the same tokens, in order."""
    return list({tuple(context.tokens): context for context in reversed(contexts)}.values())[::-1]


def context_rows(
    contexts: Sequence[ContextView],
    maximum: float | None,
    *,
    latent: int | None = None,
    sae_id: str | None = None,
    clickable: bool = False,
    around: int | None = AROUND,
    first_row: int = 0,
) -> str:
    """An ordered list of contexts, each with where it is from.

    Args:
        contexts (`list` of [`ContextView`]): in order.
        maximum (`float`, *optional*): the activation of full shade.
        latent (`int`, *optional*), sae_id (`str`, *optional*): whose activations they are.
        clickable (`bool`), around (`int`, *optional*): as in [`token_strip`].
        first_row (`int`): `data-row` of the first.
    """
    rows = []
    for row, context in enumerate(contexts, start=first_row):
        strip = token_strip(
            context.tokens,
            context.activations,
            maximum=maximum,
            token_ids=context.token_ids,
            special=context.special,
            peak=context.peak,
            around=around,
            clickable=clickable,
            latent=latent,
            sae_id=sae_id,
            row=row,
        )
        said = " · ".join(text(part) for part in (context.document, context.note) if part)
        source = f'<p class="hs-source">{said}</p>' if said else ""
        rows.append(f"<li>{strip}{source}</li>")
    return f'<ol class="hs-contexts">{"".join(rows)}</ol>'
