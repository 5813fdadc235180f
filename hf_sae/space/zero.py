"""ZeroGPU: calls that touch the host run in a process forked for them, which has the device for some seconds.

The package `spaces` is on such Spaces only. A forked process gets plain values and gives plain values back, and so do the
functions of the service; the words of an error are handed over as a value, since only those of Gradio's own errors would
arrive.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .limits import RequestError


if TYPE_CHECKING:
    from .service import Service

SECONDS = 20  # of the device for one call
ON_GPU = ("inspect_text", "activations_on", "top_features_for_prompt", "contrast_texts", "finished_streams")


def is_zero() -> bool:
    """Whether this process runs on ZeroGPU hardware."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(service: Service, names: tuple[str, ...] = ON_GPU, seconds: int = SECONDS) -> None:
    """Makes these functions of a service take the device for their time."""
    spaces: Any = importlib.import_module("spaces")
    service.streams_here = False
    for name in names:
        function = getattr(service, name)
        setattr(service, name, _handed_over(function, spaces.GPU(duration=seconds)(_in_words(function))))


def _in_words(function: Callable[..., Any]) -> Callable[..., tuple[Any, str | None]]:
    """The function, with the words of its error beside its value."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> tuple[Any, str | None]:
        try:
            return function(*args, **kwargs), None
        except RequestError as error:
            return None, str(error)

    return call


def _handed_over(function: Callable[..., Any], remote: Callable[..., tuple[Any, str | None]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        value, words = remote(*args, **kwargs)
        if words is not None:
            raise RequestError(words)
        return value

    return call
