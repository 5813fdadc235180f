"""What is asked of the engine: one prompt, continued in several ways at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..plan import SteeringPlan


Prompt = str | Sequence[Mapping[str, str]]
MAX_TEMPERATURE = 10.0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, the same for all variants of a request.

    They share their random numbers too: two variants part where their distributions do, not by chance.

    Args:
        temperature (`float`): 0 takes the likeliest token; at most 10.
        top_k (`int`): choose among the `top_k` likeliest tokens; 0 for all.
        top_p (`float`): choose among the likeliest tokens that together have this probability.
        seed (`int`): of the random numbers.

    Raises:
        ValueError: for numbers that cannot be.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MAX_TEMPERATURE:  # false for NaN too
            raise ValueError(
                f"temperature={self.temperature}: give a number from 0 (likeliest token) to {MAX_TEMPERATURE:g}."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a probability above 0, at most 1.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: give a number of tokens, or 0 for all.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: give a number from 0 to 2**63 - 1.")


@dataclass(frozen=True)
class Variant:
    """One way of continuing the prompt: a column that people compare.

    Args:
        name (`str`): its title.
        plan ([`SteeringPlan`], *optional*): what is edited; nothing by default.
        instruction (`str`): put before the prompt, as a system message in a chat: what wording alone does.
    """

    name: str
    plan: SteeringPlan | None = None
    instruction: str = ""


def sweep(plan: SteeringPlan, factors: Sequence[float]) -> tuple[Variant, ...]:
    """A variant for each strength, as a multiple of the plan's.

    Raises:
        ValueError: for a factor that is not a finite number.
    """
    for factor in factors:
        if not math.isfinite(factor):
            raise ValueError(f"the factor {factor} of a sweep is not finite. Give a finite number.")
    return tuple(Variant(f"{factor:g}×", plan.times(factor)) for factor in factors)


@dataclass(frozen=True)
class SteeringRequest:
    """One prompt and the ways to continue it.

    Args:
        prompt (`str` or `list`): text, or the messages of a chat, `{"role": …, "content": …}` each.
        variants (`tuple` of [`Variant`]): at least one; decoded in lock-step.
        max_new_tokens (`int`): length of the continuations.
        sampling ([`Sampling`]): how tokens are chosen.
        trace (`int`): for each generated token, as many of its strongest latents; 0 for none.
        gauge (`bool`): read every edited text without the edits too, for KL and surprise: twice the rows.

    Raises:
        ValueError: without variants, or for numbers that cannot be.
    """

    prompt: Prompt
    variants: tuple[Variant, ...]
    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    trace: int = 0
    gauge: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", tuple(self.variants))
        if not self.variants:
            raise ValueError("the request has no variants. Give one at least, such as Variant('Steered', plan).")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: give 1 at least.")
        if self.trace < 0:
            raise ValueError(f"trace={self.trace}: give a number of latents per token, or 0.")

    def plans(self) -> list[Any]:
        """The plans that edit something."""
        return [variant.plan for variant in self.variants if variant.plan]
