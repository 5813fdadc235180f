"""A value that a background thread makes: asked for at any time, waited for only where somebody wants to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as NotYet
from typing import Generic, TypeVar

from .limits import RequestError


T = TypeVar("T")


class Later(Generic[T]):
    """One value of the future.

    Args:
        what (`str`): in words, for those who ask too early.
        make (`Callable`): makes it.
        executor (`Executor`): runs that.
    """

    def __init__(self, what: str, make: Callable[[], T], executor: Executor) -> None:
        self.what, self._make, self._executor = what, make, executor
        self._future: Future[T] | None = None

    def start(self) -> None:
        """Begins, unless that was done before; not to be called by several threads at once."""
        if self._future is None:
            self._future = self._executor.submit(self._make)

    @property
    def state(self) -> str:
        """`waiting`, `loading`, `ready` or `failed`."""
        if self._future is None:
            return "waiting"
        if not self._future.done():
            return "loading"
        return "failed" if self._future.cancelled() or self._future.exception() else "ready"

    @property
    def words(self) -> str:
        """The state as a sentence; `""` once it is there."""
        if self._future is None or not self._future.done():
            return f"{self.what} is {'still loading' if self._future else 'not loaded yet'}."
        return f"{self.what} cannot be loaded: {reason(self._future)}" if self.state == "failed" else ""

    def get(self, seconds: float = 0.0) -> T:
        """The value, waited for so long.

        Raises:
            RequestError: if it is not there then, or never will be.
        """
        if self._future is None:
            raise RequestError(self.words)
        try:
            return self._future.result(timeout=seconds)
        except NotYet as error:
            raise RequestError(f"{self.what} is still loading. Try again in a moment.") from error
        except Exception as error:  # whatever stopped the loading thread is told to every one who asks
            raise RequestError(self.words) from error

    def peek(self) -> T | None:
        """The value, or `None` where it is not there."""
        return self._future.result() if self._future is not None and self.state == "ready" else None

    def cancel(self) -> None:
        """Does not begin any more, if that was still to come."""
        if self._future is not None:
            self._future.cancel()


def reason(future: Future[T]) -> str:
    """Why it failed, without a traceback or paths of this machine."""
    if future.cancelled():
        return "the server is closing."
    error = future.exception()
    if isinstance(error, ValueError | OSError) and str(error):  # typed errors of hf_sae are made to be read
        return " ".join(str(error).split())
    return f"{type(error).__name__}."
