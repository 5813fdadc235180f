"""Where the trainer's batches come from: this process's share of each, taken by all processes together."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch

from ..errors import DataError, DistributedError
from .arguments import SAETrainingArguments
from .parallel import Batch, Processes


ENDED, FAILED = -1, -2  # instead of a number of tokens


class Stream(Protocol):
    """Batches with a position that can be saved, such as [`ActivationStream`]."""

    @property
    def widths(self) -> dict[str, int]:
        """Size of the activations at each place."""
        ...

    def batches(self, tokens_per_batch: int, total: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """The next batches by place, of `total` tokens where that is given."""
        ...

    def sample(self, n_tokens: int) -> dict[str, torch.Tensor]:
        """The next tokens without serving them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its position: tensors and JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        ...

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where another number of processes stopped, given the state of each."""
        ...

    def info(self) -> dict[str, Any]:
        """Where the activations come from, as JSON values."""
        ...


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's share of a batch, the tokens of each process's share, and a signal that any of them received."""

    batch: Batch
    counts: list[int]
    signal: int = 0


class Feed:
    """The batches of a stream or an iterable.

    Args:
        source ([`ActivationStream`], an iterable of batches or `None`): of this process.
        args ([`SAETrainingArguments`]): of the run.
        processes ([`Processes`]): of the run.
    """

    def __init__(
        self, source: Stream | Iterable[Batch] | None, args: SAETrainingArguments, processes: Processes
    ) -> None:
        self.source, self.args, self.processes = source, args, processes
        self.skipped = 0
        self._batches: Iterator[Batch] | None = None

    @property
    def stream(self) -> Stream | None:
        """The source, where it has a position of its own."""
        return cast(Stream, self.source) if hasattr(self.source, "batches") else None

    def open(self, tokens: int = 0) -> None:
        """Starts, or goes on after what was loaded.

        Args:
            tokens (`int`): trained on so far.

        Raises:
            DataError: if there is no source.
        """
        if self.source is None:
            raise DataError("train() needs stream=: an ActivationStream, or an iterable of batches.")
        if self.stream is not None:
            steps = -(-(self.args.total_tokens - tokens) // self.args.tokens_per_batch)
            self._batches = self._shares(self.stream, steps)
            return
        self._batches = iter(cast(Iterable[Batch], self.source))
        for _ in range(self.skipped):  # a plain iterable has no position of its own to restore
            next(self._batches, None)

    def close(self) -> None:
        """Ends what is read ahead; the stream stays where it is."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        self._batches = None

    def _shares(self, stream: Stream, steps: int) -> Iterator[Batch]:
        whole, extra = divmod(self.args.tokens_per_batch, self.processes.size)
        if self.divided:
            own = max(1, whole + (self.processes.rank < extra))
            yield from stream.batches(own, steps * own)
            return
        for batch in stream.batches(self.args.tokens_per_batch, steps * self.args.tokens_per_batch):
            yield self._part(batch)

    @property
    def divided(self) -> bool:
        """Whether the processes read different documents; otherwise all read the same, and each takes its part of a batch.

        Raises:
            DataError: for a stream that is divided among another number of processes.
        """
        count = getattr(self.stream, "world_size", self.processes.size)
        if count not in (1, self.processes.size):
            raise DataError(
                f"the stream is divided among {count} processes, and {self.processes.size} are running. Give it rank= and "
                "world_size= of this run, or neither: then all read the same, and each takes its part."
            )
        return count == self.processes.size

    def _part(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """This process's rows of a batch that all processes have."""
        rank, size = self.processes.rank, self.processes.size
        return {place: x[len(x) * rank // size : len(x) * (rank + 1) // size] for place, x in batch.items()}

    def sample(self, n_tokens: int) -> Share | None:
        """This process's share of the next tokens, which stay to be served; `None` where the source cannot look ahead."""
        if self.stream is None:
            return None
        if self.divided:
            return self.share(self.stream.sample(n_tokens // self.processes.size))
        return self.share(self._part(self.stream.sample(n_tokens)))

    def next(self, tokens: int, signal: int = 0) -> Share:
        """The next share. All processes get one, or all raise.

        Args:
            tokens (`int`): trained on so far, for the message.
            signal (`int`): that this process has received, or 0.

        Raises:
            DataError: if the data is at its end in any process, or cannot be read in this one.
            DistributedError: if it cannot be read in another one.
        """
        batch, count, failure = None, ENDED, None
        try:
            batch = next(self._batches or iter(()), None)
            count = ENDED if batch is None else tokens_of(batch)
        except Exception as error:  # the others wait to hear of whatever it is
            failure, count = error, FAILED
        found = self.processes.exchange(count, signal)
        if failure is not None:
            raise failure
        counts = [row[0] for row in found]
        if FAILED in counts:
            raise DistributedError(
                f"process {self.processes.rank} stops: process {counts.index(FAILED)} could not read its data, and says why. "
                "Repair it, then resume_from_checkpoint=True goes on."
            )
        if batch is None or ENDED in counts:
            where = "" if self.processes.size == 1 else f" in process {counts.index(ENDED)} of {self.processes.size}"
            raise DataError(
                f"the data ended{where} after {tokens:,} of {self.args.total_tokens:,} tokens. Give more text, pass "
                "repeat=True to the stream, or lower total_tokens."
            )
        return Share(batch, counts, max(row[1] for row in found))

    def share(self, batch: Batch) -> Share:
        """A batch that was given by hand, in every process its share."""
        return Share(batch, [row[0] for row in self.processes.exchange(tokens_of(batch))])


def tokens_of(batch: Batch) -> int:
    """Rows of a batch; 0 for what is no batch (it is refused where its places are looked up)."""
    first = (
        next(iter(batch.values()), None) if isinstance(batch, dict) else batch if torch.is_tensor(batch) else batch[0]
    )
    return 0 if first is None or not first.ndim else first.shape[0]
