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
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.int32, torch.int64, torch.float32, torch.float64, torch.uint8)}


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
        if self.size == 1:
            return
        with _company():
            for rank in range(1, self.size):
                if self.rank == rank:
                    self._send(states, digest)
                elif self.is_first:
                    self._receive(states, digest, rank)

    def _send(self, states: Mapping[str, LatentState], digest: str) -> None:
        for state in states.values():
            tensors = {name: tensor.contiguous() for name, tensor in state.tensors().items()}
            facts = {name: [*_plain(tensor)] for name, tensor in tensors.items()}
            self._send_text(json.dumps({"digest": digest, "tensors": facts}))
            for tensor in tensors.values():
                if tensor.numel():
                    torch.distributed.send(_sendable(tensor), 0, group=self._group)

    def _receive(self, states: Mapping[str, LatentState], digest: str, rank: int) -> None:
        for state in states.values():
            facts = json.loads(self._receive_text(rank))
            if facts["digest"] != digest:
                raise DataError(
                    f"process {rank} read other text than process 0: give data that has the same order in every process "
                    "(no shuffling without a seed)."
                )
            found = {}
            for name, (shape, kind, is_bool) in facts["tensors"].items():
                tensor = torch.empty(shape, dtype=_DTYPES[kind])
                if tensor.numel():
                    torch.distributed.recv(tensor, rank, group=self._group)
                found[name] = tensor.bool() if is_bool else tensor
            other = state.empty()
            other.load(found)
            state.merge(other)

    def _send_text(self, text: str) -> None:
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        torch.distributed.send(torch.tensor([len(data)]), 0, group=self._group)
        torch.distributed.send(data, 0, group=self._group)

    def _receive_text(self, rank: int) -> str:
        length = torch.zeros(1, dtype=torch.long)
        torch.distributed.recv(length, rank, group=self._group)
        data = torch.zeros(int(length), dtype=torch.uint8)
        torch.distributed.recv(data, rank, group=self._group)
        return data.numpy().tobytes().decode()


def _sendable(tensor: Tensor) -> Tensor:
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor


def _plain(tensor: Tensor) -> tuple[list[int], str, bool]:
    return list(tensor.shape), str(_sendable(tensor[:0] if tensor.dim() else tensor).dtype)[6:], tensor.dtype == torch.bool


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
