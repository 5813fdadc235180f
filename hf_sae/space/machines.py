"""Hosts and the one thread that each is used by: everything that touches a host or its autoencoders runs there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .limits import RequestError


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models import SAE

T = TypeVar("T")
SECONDS = 60.0  # that somebody waits for the host, which others use too


class HostThread:
    """Runs functions one after the other in a thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "host")

    def call(self, function: Callable[[], T]) -> T:
        """What a function returns, once its turn has come.

        Raises:
            RequestError: if that takes more than a minute.
        """
        job = self._executor.submit(function)
        try:
            return job.result(timeout=SECONDS)
        except TimeoutError as error:
            job.cancel()
            raise RequestError("the host is busy. Try again in a moment, or with a shorter text.") from error

    def close(self) -> None:
        """Lets the thread end; what waits is not run."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@dataclass
class Machine:
    """A host with the autoencoders that read it.

    Args:
        host (`PreTrainedModel`), tokenizer: the model.
        name (`str`): of the host.
        saes (`dict[str, SAE]`): by the name under which they are served.
    """

    host: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    saes: dict[str, SAE] = field(default_factory=dict)
    engine: Any = field(default_factory=HostThread)
    _pid: int = field(default_factory=os.getpid)

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the thread of the host. In a process that was forked for one call (ZeroGPU), which has no
        threads but its own, at once."""
        return function() if os.getpid() != self._pid else self.engine.call(function)

    def close(self) -> None:
        """Ends the thread."""
        self.engine.close()


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
        machine.call(lambda: machine.saes.update({name: sae}))
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
