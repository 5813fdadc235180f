"""All that a dataset knows of one feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FeatureRecord:
    """All that a dataset knows of one feature.

    Args:
        sae_id (`str`), feature (`int`): which.
        facts (`dict`): its row of `features`.
        examples (`list[dict]`): its rows of `examples`, in order.
        explanations (`list[dict]`): its rows of `explanations`, in order.
    """

    sae_id: str
    feature: int
    facts: dict[str, Any]
    examples: list[dict[str, Any]]
    explanations: list[dict[str, Any]]
