"""The processes of a run: what they tell each other, and what is said when one of them is gone.

Every method is a collective: all processes make the same calls in the same order. Alone, each gives back what it was given.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch import distributed as dist

from ...errors import DistributedError


BUCKET_BYTES = 25 * 2**20  # small tensors are summed together, so that each does not wait for the network
# torch 2.15 gave the function another name
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
PATIENCE = 3.0  # seconds to wait for the operating system to notice a death


class Processes:
    """This process among those of the run.

    Args:
        accelerator (`Accelerator`): which has started the process group.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.size, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device
        self._control: Any = None
        self._pids: list[tuple[str, int]] = []
        if self.size > 1:
            with self.watched():
                # short messages go over the CPU: they do not wait for the device, and a closed connection is seen at once
                gloo = dist.get_backend() == "gloo"
                self._control = dist.group.WORLD if gloo else dist.new_group(backend="gloo")
            atexit.register(_close, self._control)
            self._pids = self.objects((socket.gethostname(), os.getpid()))

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @contextmanager
    def watched(self) -> Generator[None]:
        """Within it, what torch says of a connection that broke becomes a [`DistributedError`]."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DistributedError(
                f"process {self.rank} of {self.size} stops: {self._gone()} Its own output says why. All processes have to "
                "be started again: resume_from_checkpoint=True goes on from the newest checkpoint."
            ) from error

    def _gone(self) -> str:
        deadline = time.monotonic() + PATIENCE
        here, found = socket.gethostname(), []
        while not found and time.monotonic() < deadline:
            found = [str(r) for r, (host, pid) in enumerate(self._pids) if host == here and not _alive(pid)]
            time.sleep(0.05)
        if found:
            return f"process {', '.join(found)} has ended."
        return "another process has ended, or its connection broke."

    def exchange(self, *numbers: int) -> list[list[int]]:
        """The numbers of each process, `[processes][numbers]`."""
        if self.size == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.long)
        out = [torch.empty_like(own) for _ in range(self.size)]
        with self.watched():
            dist.all_gather(out, own, group=self._control)
        return [row.tolist() for row in out]

    def objects(self, value: Any) -> list[Any]:
        """What each process gave: anything that pickle takes, between processes of one run only."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        with self.watched():
            dist.all_gather_object(out, value, group=self._control)
        return out

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1 and tensor.numel():
            with self.watched():
                dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The largest over the processes of each entry, in place."""
        if self.size > 1 and tensor.numel():
            with self.watched():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def sum_all_(self, tensors: Sequence[Tensor]) -> None:
        """[`sum_`] of many tensors, the small ones in buckets."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.nbytes >= BUCKET_BYTES and tensor.is_contiguous():
                self.sum_(tensor)
            else:
                by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for same in by_dtype.values():
            bucket = self.sum_(torch.cat([tensor.reshape(-1) for tensor in same]))
            for tensor, part in zip(same, bucket.split([t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """`[sum of counts, ...]`: the rows of all processes in their order; process r gives `counts[r]`."""
        if self.size == 1:
            return rows
        longest = max(counts)
        own = rows.new_zeros(longest, *rows.shape[1:])
        own[: len(rows)] = rows
        out = own.new_empty(self.size * longest, *rows.shape[1:])
        with self.watched():
            _all_gather(_bytes(out), _bytes(own))
        if len(set(counts)) == 1:
            return out
        parts = out.view(self.size, longest, *rows.shape[1:])
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def scatter_bytes(self, outgoing: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Sends `outgoing[r]` (bytes) to process r and returns what came, `sizes[r]` bytes from process r."""
        if self.size == 1:
            return list(outgoing)
        out = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        with self.watched():
            dist.all_to_all_single(out, torch.cat(list(outgoing)), list(sizes), [len(part) for part in outgoing])
        return list(out.split(list(sizes)))

    def send_to_main(self, source: int, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """On the main process a tensor of process `source`, of the given shape; elsewhere the tensor itself."""
        if source == 0 or self.rank not in (0, source):
            return tensor
        with self.watched():
            if self.rank == source:
                dist.send(_bytes(tensor.contiguous()), 0)
                return tensor
            received = tensor.new_empty(shape)
            dist.recv(_bytes(received), source)
        return received

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """The tensor of one process, in place."""
        if self.size > 1 and tensor.numel():
            with self.watched():
                dist.broadcast(tensor, source)
        return tensor


def _close(group: Any) -> None:
    # a connection that is open when Python ends may abort the process, whatever its exit status was to be
    if dist.is_initialized():
        with suppress(ValueError, RuntimeError):
            dist.destroy_process_group(group)


def _bytes(tensor: Tensor) -> Tensor:
    # not every backend knows every dtype; all know bytes
    return tensor.view(-1).view(torch.uint8)


def _alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        if state.exists():
            return state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
        os.kill(pid, 0)
    except (OSError, IndexError):
        return False
    return True
