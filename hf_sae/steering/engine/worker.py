"""`Worker`: the one thread that owns a host. Functions run on it one after another, and in between it works on."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar


T = TypeVar("T")


class Worker:
    """Runs functions in one thread, in the order in which they come; while none wait it calls `work` as long as there is some.

    The thread starts with the first call, and anew in a process that was forked since: threads do not survive a fork.

    Args:
        work (`Callable`): does one step, and says whether there is more to do.
        name (`str`): of the thread.
    """

    def __init__(self, work: Callable[[], bool], name: str) -> None:
        self._work, self._name = work, name
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Asks for a function to be run.

        Raises:
            RuntimeError: if the worker was closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed. Make another one.")
            self._start()
            self._inbox.put((function, future))
        return future

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function between two steps and returns what it returns, or raises what it raises."""
        if threading.current_thread() is self._thread:
            return function()
        return self.submit(function).result()

    def close(self) -> None:
        """Runs what was asked for already, and ends the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread if self._process == os.getpid() else None
            if thread is not None:
                self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        if self._process != os.getpid():
            self._process, self._thread, self._inbox = os.getpid(), None, queue.SimpleQueue()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        busy = False
        while True:
            try:
                item = self._inbox.get(block=not busy)
            except queue.Empty:
                busy = self._work()
                continue
            if item is None:
                return
            function, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            busy = True  # it may have brought work
