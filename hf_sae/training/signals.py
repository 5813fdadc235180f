"""SIGINT and SIGTERM while training: finish the step, save, then stop."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType


logger = logging.getLogger(__name__)


class StopSignals:
    """Within its `with` block the first Ctrl-C or SIGTERM is remembered; a second one stops at once.

    Outside the main thread, where Python does not allow handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        logger.warning(
            "%s received: finishing this step, then saving. Again to stop at once.", signal.Signals(number).name
        )

    def stop(self, number: int, saved: str) -> None:
        """Raises `KeyboardInterrupt` (Ctrl-C) or `SystemExit(143)` (SIGTERM) for the signal of that number; nothing for 0."""
        if not number:
            return
        logger.warning("stopped by %s: %s", signal.Signals(number).name, saved)
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(saved)
