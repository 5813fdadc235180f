"""The next batches while a step runs: a thread reads the host or the disk ahead of the trainer."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .interface import BatchStream, Rows


@dataclass
class _Ready:
    """A batch that waits, the counts once it is served, and the inner stream's state then where that is small."""

    rows: Rows
    counts: dict[str, int]
    state: dict[str, Any] | None = None
    arrived: torch.cuda.Event | None = field(default=None, repr=False)


class Prefetched(BatchStream):
    """A stream whose next batches are made in a background thread.

    What is saved is consistent with what was *served*: batches that wait are part of the state, or, where the inner stream's state
    is a few numbers, its state before them is (so that a [`CachedStream`]'s goes on with or without prefetching, on any number of
    processes). An error of the inner stream is raised when its batch is due. The thread ends with the iterator, however that ends.

    On a CUDA device the thread has a stream of its own for the host and the copies, from pinned memory, and the consumer's stream
    waits for a batch's copy only. The host may be on another device than the autoencoder. Nothing else may run the host meanwhile.

    Args:
        stream ([`BatchStream`]): what to read ahead.
        device (`torch.device` or `str`, *optional*): where batches are put; otherwise they stay where they are.
        depth (`int`, *optional*, defaults to 2): batches that wait at most.
    """

    def __init__(self, stream: BatchStream, device: torch.device | str | None = None, depth: int = 2) -> None:
        self.stream, self.depth = stream, max(depth, 1)
        self.device = None if device is None else torch.device(device)
        self.state_is_small = stream.state_is_small
        self._change = threading.Condition()
        self._ready: deque[_Ready] = deque()
        self._busy = self._held = self._stopping = self._finished = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._counts: dict[str, int] | None = None  # as of what was served, while the inner stream is ahead
        self._state: dict[str, Any] | None = None
        own = self.device is not None and self.device.type == "cuda"
        self._cuda = torch.cuda.Stream(self.device) if own else None

    @property
    def widths(self) -> dict[str, int]:
        """Size of the activations at each place, keyed by the place as written."""
        return self.stream.widths

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.stream.dtype

    @property
    def largest_batch(self) -> int | None:
        """The most tokens that a batch may have."""
        return self.stream.largest_batch

    @property
    def counts(self) -> dict[str, int]:
        """As of the latest batch that was served."""
        return self.stream.counts if self._counts is None else dict(self._counts)

    def info(self) -> dict[str, Any]:
        """What the inner stream says, with these counts."""
        return {**self.stream.info(), "counts": self.counts}

    def batches(self, tokens_per_batch: int, total: int | None = None) -> Iterator[Rows]:
        """The next batches, of `total` tokens where that is given; goes on where the previous call stopped, with what waited then
        first, and whole.

        Raises:
            What the inner stream raises.
        """
        self._stop()
        # at its end the inner stream refuses, which is no error while batches of it wait
        left = None if total is None else total - sum(item.rows.count for item in self._ready)
        more = (left is None or left > 0) and (not self._ready or self.stream.sample(1).count)
        inner = self.stream.batches(tokens_per_batch, left) if more else iter(())
        if self._counts is None:
            self._counts, self._state = self.stream.counts, self.stream.state_dict() if self.state_is_small else None
        return self._serve(inner)

    def _serve(self, inner: Iterator[Rows]) -> Iterator[Rows]:
        self._stopping, self._finished, self._error = False, False, None
        self._thread = threading.Thread(target=self._work, args=(inner,), name="hf-sae-prefetch", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # no thread may run torch while the interpreter goes down
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._ready or self._finished or self._error is not None)
                    if not self._ready:
                        break
                    item = self._ready.popleft()
                    self._counts, self._state = item.counts, item.state
                    self._change.notify_all()
                yield self._received(item)
            if self._error is not None:
                raise self._error
        finally:
            self._stop()

    def _work(self, inner: Iterator[Rows]) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or (not self._held and len(self._ready) < self.depth))
                if self._stopping:
                    return
                self._busy = True
            item, error = None, None
            try:
                item = self._next(inner)
            except BaseException as caught:
                error = caught
            with self._change:
                self._busy, self._error = False, error
                if item is not None:
                    self._ready.append(item)
                self._finished = item is None and error is None
                self._change.notify_all()
                if item is None:
                    return

    def _next(self, inner: Iterator[Rows]) -> _Ready | None:
        with self._on_own_stream():
            rows = next(inner, None)
            if rows is None:
                return None
            rows, arrived = self._moved(rows), None
            if self._cuda is not None:
                arrived = torch.cuda.Event()
                arrived.record(self._cuda)
            return _Ready(rows, self.stream.counts, self.stream.state_dict() if self.state_is_small else None, arrived)

    def _on_own_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._cuda is None else torch.cuda.stream(self._cuda)

    def _moved(self, rows: Rows) -> Rows:
        if self.device is None:
            return rows
        return Rows({point: self._to_device(x) for point, x in rows.items()}, rows.ids)

    def _to_device(self, x: Tensor) -> Tensor:
        if self._cuda is None:
            return x.to(self.device)
        return (x.pin_memory() if x.device.type == "cpu" else x).to(self.device, non_blocking=True)

    def _received(self, item: _Ready) -> Rows:
        if item.arrived is not None and self._cuda is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(item.arrived)
            for x in item.rows.values():
                x.record_stream(current)  # its memory is not given to another batch while a step reads it
        return item.rows

    def _stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        atexit.unregister(self._stop)

    def sample(self, n_tokens: int) -> Rows:
        """The next tokens without serving them: those that wait, then the inner stream's."""
        with self._paused(full=True):
            if not self._ready:
                return self._moved(self.stream.sample(n_tokens))
            waiting = Rows.join([self._received(item) for item in self._ready])
            rest = n_tokens - waiting.count
            if rest <= 0:
                return waiting.part(0, min(n_tokens, waiting.count))
            return Rows.join([waiting, self._moved(self.stream.sample(rest))])

    def _paused(self, full: bool = False) -> _Pause:
        return _Pause(self, full)

    def state_dict(self) -> dict[str, Any]:
        """The position after the latest batch that was served.

        Raises:
            What the inner stream raises.
        """
        with self._paused():
            if self._state is not None:
                return dict(self._state)
            state = self.stream.state_dict()
            if not self._ready:
                return state
            for number, item in enumerate(self._ready):
                tensors = [item.rows[point] for point in self.widths]
                tensors += [] if item.rows.ids is None else [item.rows.ids]
                state |= {f"waiting.{number}.{place}": x.to("cpu", copy=True) for place, x in enumerate(tensors)}
            facts = {"served": self._counts, "after": [item.counts for item in self._ready]}
            return state | {"waiting": facts}

    @property
    def world_size(self) -> int:
        """Of the inner stream, which a stream of another kind need not have."""
        return getattr(self.stream, "world_size", 1)

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """As the inner stream; what waited here is lost.

        Raises:
            What the inner stream raises.
        """
        self._stop()
        self._ready.clear()
        self._counts = self._state = self._error = None
        self.stream.load_states([{k: v for k, v in s.items() if not k.startswith("waiting")} for s in states])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit; a state of the inner stream alone will do.

        Raises:
            What the inner stream raises.
        """
        self._stop()
        self._ready.clear()
        self._counts = self._state = self._error = None
        self.stream.load_state_dict({k: v for k, v in state.items() if not k.startswith("waiting")})
        if "waiting" not in state:
            return
        facts = state["waiting"]
        self._counts = facts["served"]
        for number, counts in enumerate(facts["after"]):
            tensors = [state[f"waiting.{number}.{place}"] for place in range(len(self.widths))]
            ids = state.get(f"waiting.{number}.{len(self.widths)}")
            self._ready.append(_Ready(self._moved(Rows(dict(zip(self.widths, tensors, strict=True)), ids)), counts))


class _Pause:
    """Within it the thread is between two batches; with `full` it has first made all that may wait, so that no clock decides."""

    def __init__(self, owner: Prefetched, full: bool) -> None:
        self.owner, self.full = owner, full

    def __enter__(self) -> None:
        owner = self.owner
        with owner._change:
            if self.full and owner._thread is not None:
                owner._change.wait_for(
                    lambda: len(owner._ready) >= owner.depth or owner._finished or owner._error is not None
                )
            owner._held = True
            owner._change.wait_for(lambda: not owner._busy)
        if owner._cuda is not None:
            owner._cuda.synchronize()

    def __exit__(self, *_: object) -> None:
        with self.owner._change:
            self.owner._held = False
            self.owner._change.notify_all()
