"""Steering as a function of the Space: many people share the batch of one engine, each with plans of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .catalog import PATIENCE, Catalog
from .later import Later
from .limits import RequestError, words
from .steering import Ask, stream_json


if TYPE_CHECKING:
    from ..steering import SteeringRun, Stream
    from ..steering.recipes import Preset

MAX_SECONDS = 120.0  # of one request of a program


class Steered:
    """What the service knows of a catalog, and how it steers.

    Args:
        catalog ([`Catalog`]): what is served.
        patience (`float`): seconds to wait for what is still loading.
    """

    def __init__(self, catalog: Catalog, patience: float = PATIENCE) -> None:
        self.catalog, self.patience = catalog, patience
        self.streams_here = True  # not on ZeroGPU: there the host decodes in another process

    def steer(
        self,
        prompt: str,
        edits: list[dict[str, Any]],
        sae: str = "",
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        sweep: list[float] | None = None,
        instruction: str = "",
        positions: str = "all",
        chat: bool = False,
    ) -> dict[str, Any]:
        """Continues a text with features turned up, down or off, beside the unsteered text, with how fluent each still is.

        Args:
            prompt: Text to continue, or a user's message with chat=true.
            edits: What to change: a list such as [{"feature": 12, "operation": "add", "strength": 2.0, "unit": "max"}]. Operations: add, clamp, raise, scale, ablate. Units: max (times the feature's maximum), norm (times the activation's norm), latent. "when": only where that other feature fires.
            sae: Name of the autoencoder as list_saes gives it, or a repo of the Hub as user/repo or user/repo/folder. Empty: the first one.
            max_new_tokens: Length of the continuation, 1 to 256 tokens.
            temperature: 0 takes the likeliest token; up to 2.
            top_p: Choose among the likeliest tokens that together have this probability.
            seed: Of sampling, the same for all texts.
            sweep: Also show these multiples of the strengths, at most 6, such as [0.5, 2].
            instruction: Also show the unsteered host with this written before the prompt.
            positions: Tokens that are steered: all, prompt, generated or assistant.
            chat: Read the prompt through the chat template of the host.
        """
        ask = Ask(prompt, edits, max_new_tokens, temperature, top_p, seed, sweep, False, instruction, positions, chat)
        streams = self.finished_streams(ask, sae)
        return {"sae": self.catalog.find(sae).name, "prompt": prompt, "streams": [stream_json(s) for s in streams]}

    def finished_streams(self, ask: Ask, sae: str = "") -> tuple[Stream, ...]:
        """The texts of a request once they have ended; on ZeroGPU this is what runs on the device."""
        with self.start_steering(ask, sae) as run:
            try:
                return run.result(MAX_SECONDS)
            except TimeoutError as error:
                raise RequestError(
                    f"it took more than {MAX_SECONDS:.0f} s. Ask for fewer tokens or variants."
                ) from error

    def start_steering(self, ask: Ask, sae: str = "") -> SteeringRun:
        """The running texts of a request; leaving its `with` stops them."""
        served = self.catalog.find(sae)
        machine = self._part(served.machine)
        request = ask.request(list(machine.saes), served.name)
        with words():
            return machine.engine.start(request)

    def presets(self, sae: str = "") -> list[Preset]:
        """Edits that the author of an autoencoder recommends."""
        served = self.catalog.find(sae)
        with words():
            return served.presets

    def recorded_maximum(self, feature: int, sae: str = "") -> float | None:
        """What strengths in maxima are multiples of, where the autoencoder is there and has one recorded that is not 0."""
        served = self.catalog.find(sae)
        stats = None if served.sae is None else served.sae.feature_stats
        if stats is None or not 0 <= feature < len(stats["maximum"]):
            return None
        return float(stats["maximum"][feature]) or None

    def _part(self, part: Later[Any]) -> Any:
        return part.get(self.patience)
