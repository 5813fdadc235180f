"""What is known of one latent, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .contexts import ContextView
from .labels import LabelView


GROUPS = ("Top", "Middle", "Low", "Random", "Not firing")


@dataclass(frozen=True)
class RelatedView:
    """Another latent that is near.

    Args:
        latent (`int`): which.
        value (`float`): the cosine, or the tokens on which both fired.
        label (`str`, *optional*): what it is called.
        href (`str`, *optional*): where it is shown.
    """

    latent: int
    value: float
    label: str | None = None
    href: str | None = None


@dataclass(frozen=True)
class FeatureView:
    """All that a feature page shows; whatever is not known is left out.

    Args:
        sae_id (`str`), latent (`int`): which.
        density (`float`, *optional*): share of the tokens on which it fires.
        maximum (`float`, *optional*): its strongest activation, what full shade means.
        tokens_read (`int`, *optional*): how many tokens were read for both.
        mean (`float`, *optional*): activation on the tokens on which it fires.
        labels (`list` of [`LabelView`]): the best first.
        contexts (`dict`): [`ContextView`]s by group, `Top`, `Middle`, `Low`, `Random`, `Not firing` or other names, in the order of tabs.
        promoted (`list` of `(str, float)`), suppressed (`list` of `(str, float)`): tokens and the logit per unit of activation.
        effects_note (`str`): how these logits were made, the final norm above all, or why there are none.
        counts (`list` of `int`), edges (`list` of `float`): histogram of the activations that are not zero.
        logit_counts (`list` of `int`), logit_edges (`list` of `float`): histogram of the effects on all logits.
        nearest (`list` of [`RelatedView`]), together (`list` of [`RelatedView`]): by cosine of the decoder rows; firing on the same tokens.
        place (`str`, *optional*), place_out (`str`, *optional*): hook points that are read and, for a transcoder, written.
        architecture (`str`, *optional*), d_sae (`int`, *optional*), base_model (`str`, *optional*): of the autoencoder.
        clickable (`bool`): tokens and latents take clicks, which the page listens for.
    """

    sae_id: str
    latent: int
    density: float | None = None
    maximum: float | None = None
    tokens_read: int | None = None
    mean: float | None = None
    labels: Sequence[LabelView] = ()
    contexts: Mapping[str, Sequence[ContextView]] = field(default_factory=dict)
    promoted: Sequence[tuple[str, float]] = ()
    suppressed: Sequence[tuple[str, float]] = ()
    effects_note: str = ""
    counts: Sequence[float] = ()
    edges: Sequence[float] = ()
    logit_counts: Sequence[float] = ()
    logit_edges: Sequence[float] = ()
    nearest: Sequence[RelatedView] = ()
    together: Sequence[RelatedView] = ()
    place: str | None = None
    place_out: str | None = None
    architecture: str | None = None
    d_sae: int | None = None
    base_model: str | None = None
    clickable: bool = False
