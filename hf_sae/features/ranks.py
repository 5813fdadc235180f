"""The processes that share a pass over text: which one this is, waiting for all, and handing states to the first."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError
from .latent_state import LatentState


if TYPE_CHECKING:
    from accelerate import Accelerator

_PATIENCE = timedelta(hours=6)  # a process that dies is noticed at once, by its closed connection
_DTYPES = {str(kind): kind for kind in (torch.int32, torch.int64, torch.float32, torch.float64, torch.uint8)}


class Ranks:
    """This process among those that Accelerate started; alone without one.

    States go over a group of its own, on the CPU: device memory is not needed, and merging may take long.

    Args:
        accelerator (`Accelerator` or `PartialState`, *optional*): of the run; every one of its processes has to make the same calls.
    """

    def __init__(self, accelerator: Accelerator | Any = None) -> None:
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self.size = 1 if accelerator is None else int(accelerator.num_processes)
        self._group: Any = None
        if self.size > 1:
            with _company():
                self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all have come here.

        Raises:
            DataError: if another process has ended.
        """
        if self.size > 1:
            with _company():
                torch.distributed.barrier(group=self._group)

    def merge(self, states: Mapping[str, LatentState], digest: str) -> None:
        """The states of the first process become those of all; one foreign state is in memory at a time.

        Args:
            states (`dict[str, LatentState]`): of this process, by autoencoder.
            digest (`str`): of the text that was read, the same in all.

        Raises:
            DataError: if another process has ended, or read other text.
        """
        for rank in range(1, self.size):
            if self.rank == rank:
                self._send(states, digest)
            elif self.is_first:
                self._receive(states, digest, rank)

    def _send(self, states: Mapping[str, LatentState], digest: str) -> None:
        for state in states.values():
            # gloo knows no truth values
            tensors = {name: t.to(torch.uint8) if t.dtype == torch.bool else t for name, t in state.tensors().items()}
            facts = {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()}
            text = torch.frombuffer(bytearray(json.dumps([digest, facts]).encode()), dtype=torch.uint8)
            for tensor in (torch.tensor(len(text)), text, *tensors.values()):
                if tensor.numel():
                    with _company():
                        torch.distributed.send(tensor.contiguous(), 0, group=self._group)

    def _receive(self, states: Mapping[str, LatentState], digest: str, rank: int) -> None:
        for state in states.values():
            length = int(self._tensor(rank, [], torch.long))
            found, facts = json.loads(self._tensor(rank, [length], torch.uint8).numpy().tobytes())
            if found != digest:
                raise DataError(
                    f"process {rank} read other text than process 0: give data that has the same order in every process "
                    "(no shuffling without a seed)."
                )
            other, like = state.empty(), state.tensors()
            given = {name: self._tensor(rank, shape, _DTYPES[kind]) for name, (shape, kind) in facts.items()}
            other.load({name: tensor.to(like[name].dtype) for name, tensor in given.items()})
            state.merge(other)

    def _tensor(self, rank: int, shape: list[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.zeros(shape, dtype=dtype)
        if tensor.numel():
            with _company():
                torch.distributed.recv(tensor, rank, group=self._group)
        return tensor


@contextmanager
def _company() -> Generator[None]:
    """Within it, what torch says of a process that is gone becomes a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(
            f"another process of this pass has ended, or cannot be reached ({str(error).splitlines()[0][:200]}). See what it "
            "said; nothing was written. Run the same command again, with resume where a state was saved."
        ) from error
