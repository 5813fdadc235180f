"""`Row`: one text of the shared batch, with its plan."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from ..plan import SteeringPlan
from .prompts import Tokens


@dataclass(eq=False)
class Row:
    """One text as the host reads it.

    Args:
        prompt ([`Tokens`]): its beginning.
        plan ([`SteeringPlan`]): what is edited while it is read.
        trace (`int`): how many of the strongest latents of its last token are wanted, in each call.
        generated (`list` of `int`): what was added to the prompt.
    """

    prompt: Tokens
    plan: SteeringPlan = field(default_factory=SteeringPlan)
    trace: int = 0
    generated: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt.ids) + len(self.generated)

    def last(self, n: int) -> list[int]:
        """Its last `n` ids."""
        if n <= len(self.generated):
            return self.generated[len(self.generated) - n :]
        return [*self.prompt.ids, *self.generated][len(self) - n :]

    def steered(self, n: int, bos: Set[int]) -> list[bool]:
        """Which of its last `n` tokens are edited; BOS is not, unless the plan asks for it."""
        start = len(self) - n
        wanted = (self._holds(place) for place in range(start, len(self)))
        if self.plan.include_special:
            return list(wanted)
        return [holds and index not in bos for holds, index in zip(wanted, self.last(n), strict=True)]

    def _holds(self, place: int) -> bool:
        in_prompt = place < len(self.prompt.ids)
        match self.plan.positions:
            case "prompt":
                return in_prompt
            case "generated":
                return not in_prompt
            case "assistant":
                return not in_prompt or self.prompt.assistant[place]
        return True
