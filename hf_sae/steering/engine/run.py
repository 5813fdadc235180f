"""`SteeringRun`: the caller's end of a request; what the engine's thread writes and any other thread reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from .streams import Stream, all_ended


class SteeringRun:
    """A running request. Iterating gives its streams whenever they have grown; leaving the loop stops it.

    Get one from [`SteeringEngine.start`].

    Args:
        streams (`list` of [`Stream`]): one for each variant, waiting.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = tuple(streams)
        self._changed = threading.Condition()
        self._version = 0
        self._stopped = threading.Event()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """As they are now."""
        with self._changed:
            return self._streams

    @property
    def stopped(self) -> bool:
        """Whether the caller wants no more."""
        return self._stopped.is_set()

    def __iter__(self) -> Generator[tuple[Stream, ...]]:
        seen = 0
        try:
            while True:
                seen, streams = self._newer(seen)
                yield streams
                if all_ended(streams):
                    return
        finally:
            self.stop()

    def _newer(self, seen: int) -> tuple[int, tuple[Stream, ...]]:
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen)
            return self._version, self._streams

    def stop(self) -> None:
        """Ends the streams where they are, at once; the engine frees their rows before its next step."""
        self._stopped.set()
        self.write(lambda stream: stream if stream.ended else replace(stream, state="stopped", note="stopped"))

    def result(self, timeout: float | None = None) -> tuple[Stream, ...]:
        """The streams once they have ended.

        Args:
            timeout (`float`, *optional*): seconds to wait.

        Raises:
            TimeoutError: if they have not ended by then; the run goes on.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: all_ended(self._streams), timeout):
                raise TimeoutError(f"the streams have not ended after {timeout} s. Wait longer, or stop() the run.")
            return self._streams

    def write(self, change: Callable[[Stream], Stream], index: int | None = None) -> None:
        """Replaces a stream, or all of them; what has ended stays as it is."""
        with self._changed:
            streams = [
                change(stream) if index in (None, place) and not stream.ended else stream
                for place, stream in enumerate(self._streams)
            ]
            self._streams = tuple(streams)
            self._version += 1
            self._changed.notify_all()

    def fail(self, error: BaseException, index: int | None = None) -> None:
        """Ends a stream, or all of them, with the words of an error."""
        words: Any = str(error) or type(error).__name__
        self.write(lambda stream: replace(stream, state="failed", note=words), index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
