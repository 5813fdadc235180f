"""All that a dataset knows of one feature."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

from .manifest import SAESource


_shown = count(1)  # of this process, so that two pages of one feature in one notebook have tabs of their own


@dataclass(frozen=True)
class FeatureRecord:
    """All that a dataset knows of one feature; renders as a page in a notebook.

    Args:
        sae_id (`str`), feature (`int`): which.
        facts (`dict`): its row of `features`.
        examples (`list[dict]`): its rows of `examples`, in order.
        explanations (`list[dict]`): its rows of `explanations`, in order.
        source ([`SAESource`], *optional*): the autoencoder.
        effects_note (`str`): how the effects on logits were made.
    """

    sae_id: str
    feature: int
    facts: dict[str, Any]
    examples: list[dict[str, Any]]
    explanations: list[dict[str, Any]]
    source: SAESource | None = None
    effects_note: str = ""

    def _repr_html_(self) -> str:
        from ..views import feature_page, notebook
        from .showing import feature_view

        return notebook(feature_page(feature_view(self), uid=f"notebook {next(_shown)}"))
