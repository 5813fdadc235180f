"""Hosts and the one thread that each is used by: everything that touches a host or its autoencoders runs there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models import SAE

T = TypeVar("T")


@dataclass
class Machine:
    """A host with the autoencoders that read it.

    Args:
        host (`PreTrainedModel`), tokenizer: the model.
        name (`str`): of the host.
    """

    host: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    def __post_init__(self) -> None:
        from ..steering import SteeringEngine

        self.engine = SteeringEngine(self.host, self.tokenizer, max_rows=64)

    def call(self, function: Callable[[], T]) -> T:
        """What a function returns that runs in the thread of the host, between two steps of whatever is decoded there."""
        return self.engine.call(function)

    def close(self) -> None:
        """Stops what runs and ends the thread."""
        self.engine.close()

    @property
    def saes(self) -> dict[str, SAE]:
        """The autoencoders by the name under which they are served, which is also their name in steering plans."""
        return self.engine.saes


class Machines:
    """The hosts in memory: each is loaded once, however many autoencoders read it, and goes with the last of them."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Machine] = {}
        self._lock = threading.Lock()

    def add(self, key: Hashable, name: str, sae: SAE, load: Callable[[], Machine]) -> Machine:
        """The machine of a host with one more autoencoder; called by the loading thread only."""
        machine = self._by_key.get(key)
        if machine is None:
            machine = load()
        sae.to(machine.host.device)
        machine.call(lambda: machine.engine.add(name, sae))
        with self._lock:
            self._by_key[key] = machine
        return machine

    def drop(self, name: str) -> None:
        """Takes an autoencoder out, and its host where no other reads it."""
        with self._lock:
            for key, machine in list(self._by_key.items()):
                machine.saes.pop(name, None)
                if not machine.saes:
                    del self._by_key[key]
                    machine.close()

    def close(self) -> None:
        """Ends all threads."""
        with self._lock:
            for machine in self._by_key.values():
                machine.close()
            self._by_key.clear()
