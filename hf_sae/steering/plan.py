"""`SteeringPlan`: all that is changed in one row of a batch, as a value that is handed from step to step.

A hook that lives as long as a text is streamed would steer everybody's texts, and a context variable is lost where a
generator is resumed elsewhere. A plan belongs to a row, and nothing of it outlives a forward pass.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .edits import Edit, ablate, as_edits


POSITIONS = ("all", "prompt", "generated", "assistant")


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """Edits by autoencoder, and the tokens on which they hold.

    Args:
        edits (`dict`): from the name that the engine knows an autoencoder by to an edit or several; later ones see what earlier
            ones made of the latents. Autoencoders that share a place are applied in the engine's order.
        positions (`str`): `"all"`, `"prompt"`, `"generated"`, or `"assistant"`: what the chat template marks as the assistant's,
            and what is generated.
        include_special (`bool`): steer BOS too.

    Raises:
        TypeError: if something is not an edit.
        ValueError: for other positions.
    """

    edits: Mapping[str, Any] = field(default_factory=dict)
    positions: str = "all"
    include_special: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.edits, Mapping):
            raise TypeError(
                f"SteeringPlan({self.edits!r}): give a dictionary from an autoencoder's name to its edits."
            )
        named = {str(name): as_edits(edits) for name, edits in self.edits.items()}
        object.__setattr__(self, "edits", MappingProxyType({name: edits for name, edits in named.items() if edits}))
        if self.positions not in POSITIONS:
            near = difflib.get_close_matches(str(self.positions), POSITIONS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"positions={self.positions!r} is none of {', '.join(map(repr, POSITIONS))}{hint}.")

    def __bool__(self) -> bool:
        return bool(self.edits)

    def of(self, name: str) -> tuple[Edit, ...]:
        """The edits of one autoencoder."""
        return self.edits.get(name, ())

    def times(self, factor: float) -> SteeringPlan:
        """The same plan, `factor` times as strong: a column of a strength sweep."""
        stronger = {name: tuple(edit.times(factor) for edit in edits) for name, edits in self.edits.items()}
        return SteeringPlan(stronger, self.positions, self.include_special)

    def ablated(self) -> SteeringPlan:
        """The plan that sets every latent named in this one to zero, at the same tokens."""
        latents = {name: [latent for edit in edits for latent in edit.latents] for name, edits in self.edits.items()}
        off = {name: ablate(each) for name, each in latents.items() if each}
        return SteeringPlan(off, self.positions, self.include_special)
