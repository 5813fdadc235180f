"""One batch of tokens through a host: the activations of the kept tokens, checked."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data import TokenBatch
from ..errors import DataError, HookPointError
from ..hooks import HookPoint
from ..hosts import fingerprint, resolve, unwrap, width_of
from ..hosts.towers import host_device
from .columns import dtype_of, is_gradient, place_of
from .gradients import read_columns, require_loss
from .interface import Rows


class Reader(Protocol):
    """What a stream needs to turn a batch of tokens into activations: [`HostReader`], or several of them."""

    widths: dict[str, int]
    places: list[str]  # without the columns of gradients
    dtype: torch.dtype

    def check_length(self, context_length: int) -> None:
        """Refuses rows that are too long."""
        ...

    def __call__(self, batch: TokenBatch, kept: Tensor) -> Rows:
        """The activations of the kept tokens."""
        ...

    def devices(self) -> dict[str, torch.device]:
        """Where the activations of each place are."""
        ...

    def info(self, tokenizer: Any) -> dict[str, Any]:
        """Hosts and places, as JSON values."""
        ...


class HostReader:
    """Runs a host in eval mode: without gradients and only as far as the last place, or, where a column of gradients is wanted
    (`"<place>/gradient"`), to its loss and back.

    Args:
        host (`nn.Module`): any model that reads `input_ids`; it is never moved.
        points (`str`, [`HookPoint`] or several): the places, and `"<place>/gradient"` for the gradient of the host's
            next-token loss there (see [`hf_sae.activations.gradients`]).
        dtype (`torch.dtype`, *optional*): of the activations; otherwise that of the host's parameters.

    Attributes:
        widths (`dict[str, int]`): size of the activations at each place, keyed by the place as written.

    Raises:
        HookPointError: if there is no place, one does not exist or has no fixed width, or gradients are wanted of a host
            without a next-token loss.
    """

    def __init__(
        self, host: nn.Module, points: str | HookPoint | Sequence[str | HookPoint], dtype: torch.dtype | None
    ) -> None:
        points = [points] if isinstance(points, (str, HookPoint)) else points
        if not points:
            raise HookPointError("no hook points were given: name at least one place, such as 'resid_post.2'.")
        model = unwrap(host)
        self.host, self.config = host, getattr(model, "config", None)
        self.widths = {str(point): width_of(host, place_of(str(point))) for point in points}
        self.places = list(dict.fromkeys(point for point in self.widths if not is_gradient(point)))
        if any(map(is_gradient, self.widths)):
            require_loss(host)
        own = next((p.dtype for p in host.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = dtype or own
        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
        self.vocabulary: int | None = getattr(embeddings, "num_embeddings", None)
        self.options: dict[str, Any] = {}
        if "use_cache" in inspect.signature(model.forward).parameters:
            self.options["use_cache"] = False

    def check_length(self, context_length: int) -> None:
        """Raises [`DataError`] if the host has fewer positions than a row has tokens."""
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        limit = getattr(text, "max_position_embeddings", None)
        if isinstance(limit, int) and 0 < limit < context_length:
            raise DataError(
                f"context_length={context_length}, and the host has {limit} positions: give at most {limit}."
            )

    def __call__(self, batch: TokenBatch, kept: Tensor) -> Rows:
        """The activations `{place: [n, width]}` and ids of the tokens whose positions in the flattened batch are `kept` `[n]`.

        Raises:
            DataError: if an id has no embedding in the host.
            HookPointError: if a place does not give one vector per token.
        """
        largest = int(batch.input_ids.max())
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise DataError(
                f"the id {largest} is not among the host's {self.vocabulary} embeddings. Use the tokenizer of this host."
            )
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **self.options}
        found, rows = self._read(inputs), {}
        for point, width in self.widths.items():
            if found[point].numel() != batch.input_ids.numel() * width:
                raise HookPointError(
                    f"{point!r} gives the shape {list(found[point].shape)}, and a stream needs one vector of {width} for "
                    f"each of {list(batch.input_ids.shape)} tokens. Choose a place of the text model."
                )
            flat = found[point].reshape(-1, width)
            rows[point] = flat.index_select(0, kept.to(flat.device)).to(dtype_of(point, self.dtype))
        ids = [part.flatten()[kept].to(torch.int32) for part in (batch.input_ids, batch.documents)]
        return Rows(rows, torch.stack(ids, dim=1))

    def _read(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        with evaluating(self.host):
            return read_columns(self.host, list(self.widths), **inputs)

    def devices(self) -> dict[str, torch.device]:
        """Where the activations of each place are."""
        found = {}
        for point in self.widths:
            parameter = next(resolve(self.host, place_of(point)).module.parameters(), None)
            known = parameter is not None and parameter.device.type != "meta"
            found[point] = parameter.device if known else host_device(self.host)
        return found

    def info(self, tokenizer: Any) -> dict[str, Any]:
        """The host and the places, as JSON values."""
        sites = {point: resolve(self.host, place_of(point)).place for point in self.widths}
        return {
            "hook_points": {point: f"{place.path}:{place.side}" for point, place in sites.items()},
            "widths": dict(self.widths),
            "host": fingerprint(self.host, tokenizer),
            "base_model": getattr(self.config, "_name_or_path", None) or None,
            "base_revision": getattr(self.config, "_commit_hash", None),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


@contextmanager
def evaluating(host: nn.Module) -> Generator[None]:
    """Eval mode inside the `with`; afterwards each module is in the mode that it was in."""
    training = [module for module in host.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
