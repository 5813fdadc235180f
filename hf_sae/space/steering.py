"""Steering requests from plain values, each of them bounded; and what came of them as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import limits
from .limits import RequestError
from .records import Json, finite


if TYPE_CHECKING:
    from ..steering import SteeringPlan, SteeringRequest, Stream
    from ..steering.recipes import EditRow

MAX_FACTORS = 6
MAX_LATENT_UNITS = 1e5
POSITIONS = ("all", "prompt", "generated", "assistant")
TRACE = 5  # strongest features shown of each generated token


@dataclass(frozen=True)
class Ask:
    """What somebody wants to see, as it arrives from a page or a program.

    Args:
        prompt (`str`): text to continue, or a user's message where `chat`.
        edits (`list` of `dict`): see [`EditRow`].
        max_new_tokens, temperature, top_p, seed: of all texts.
        sweep (`list` of `float`): multiples of the strengths to show as well.
        ablation (`bool`): show the texts without the features as well.
        instruction (`str`): show what the host says without edits when it is told this.
        positions (`str`): `all`, `prompt`, `generated` or `assistant`.
        chat (`bool`): read the prompt through the chat template of the host.
        trace (`bool`): look up the strongest features of every generated token.
    """

    prompt: Any
    edits: Any
    max_new_tokens: Any = 40
    temperature: Any = 0.0
    top_p: Any = 1.0
    seed: Any = 0
    sweep: Any = ()
    ablation: Any = False
    instruction: Any = ""
    positions: Any = "all"
    chat: Any = False
    trace: bool = False

    def request(self, known: Sequence[str], sae: str) -> SteeringRequest:
        """The request, checked.

        Args:
            known (`list` of `str`): autoencoders of the engine.
            sae (`str`): the one that an edit without a name means.

        Raises:
            RequestError: for anything that cannot be.
        """
        from ..steering import Sampling, SteeringRequest

        prompt: Any = limits.readable(self.prompt, "prompt")
        rows = edit_rows(self.edits, known, sae)
        plan = _plan(rows, limits.one_of(self.positions, "positions", POSITIONS))
        sampling = Sampling(
            limits.real(self.temperature, "temperature", 0.0, 2.0),
            top_p=limits.real(self.top_p, "top_p", 0.01, 1.0),
            seed=limits.whole(self.seed, "seed", 0, 2**31 - 1),
        )
        if self.chat is True:
            prompt = [{"role": "user", "content": prompt}]
        tokens = limits.whole(self.max_new_tokens, "max_new_tokens", 1, limits.MAX_NEW_TOKENS)
        return SteeringRequest(prompt, self._variants(plan), tokens, sampling, TRACE if self.trace else 0)

    def _variants(self, plan: SteeringPlan) -> tuple[Any, ...]:
        from ..steering import Variant, sweep

        told = limits.readable(self.instruction, "instruction", limits.MAX_QUERY, empty=True).strip()
        variants = [Variant("Baseline")]
        variants += [Variant("Steered", plan)] if plan else []
        variants += [Variant("Ablated", plan.ablated())] if plan and self.ablation is True else []
        variants += [Variant("Prompt only", instruction=told)] if told else []
        factors = _factors(self.sweep) if plan else []
        if len(variants) == 1 and not factors:
            raise RequestError("there is nothing to steer with: add a feature first.")
        return (*variants, *sweep(plan, factors))


def edit_rows(edits: Any, known: Sequence[str], sae: str) -> list[EditRow]:
    """Edits with bounded strengths, each with the name of its autoencoder.

    Raises:
        RequestError: for anything that cannot be.
    """
    from ..errors import DataError
    from ..steering.recipes import rows_from_json

    try:
        rows = rows_from_json(edits)
    except DataError as error:
        raise RequestError(str(error)) from error
    for row in rows:
        most = MAX_LATENT_UNITS if row.unit == "latent" else limits.MAX_STRENGTH
        limits.real(row.strength, "strength", -most, most)
        if (row.sae or sae) not in known:
            raise RequestError(f"{limits.shown(row.sae)} reads another host, or is not loaded yet: open it first.")
    return [replace(row, sae=row.sae or sae) for row in rows]


def stream_json(stream: Stream) -> Json:
    """One continuation."""
    return _finite(stream.to_dict())


def _finite(value: Any) -> Any:
    """The same without what JSON has no number for: a host that rules tokens out has infinite surprise."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return finite(value) if isinstance(value, float) else value


def _plan(rows: list[EditRow], positions: str) -> SteeringPlan:
    from ..steering.recipes import plan_of

    return plan_of(rows, positions)


def _factors(values: Any) -> list[float]:
    given = values or []
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) > MAX_FACTORS:
        raise RequestError(f"sweep is a list of at most {MAX_FACTORS} multiples, such as [0.5, 2, 4].")
    return [limits.real(value, "a multiple of the sweep", -20.0, 20.0) for value in given]
