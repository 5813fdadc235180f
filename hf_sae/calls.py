"""What an edit is told about the forward call it is in: tokens, positions, prompt or generated, original rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import HookPointError


# what models have called the argument; transformers 5.24 renamed it, so that a cache under any name is known by what it can
CACHES = ("past_key_values", "cache_params", "cache")


@dataclass(frozen=True, eq=False)
class Call:
    """One forward call of the model that a hook point is in (the encoder's own for a point in an encoder).

    Args:
        input_ids (`Tensor`, *optional*): `[B, T]`, the tokens of this call; `None` where the model gets no ids.
        attention_mask (`Tensor`, *optional*): `[B, T_total]`, also over cached tokens; `None` means that there is no
            padding (`generate` drops a mask of ones).
        positions (`Tensor`, *optional*): `[B, T]`, position ids of the tokens of this call; `None` for images and
            audio.
        phase (`str`): `"generated"` once any token of the call is a generated one, else `"prompt"`.
        generated_mask (`Tensor`, *optional*): `[B, T]` bool, which of the tokens are generated ones, with and
            without a cache; `None` for images and audio. Outside `generate`, all tokens of a call that continues a
            filled cache count as generated, and all others as prompt.
        rows (`Tensor`): `[B]` long, the row of the batch given to `generate` that each current row stems from, under
            beams and `num_return_sequences`; outside `generate`, 0 to B - 1.
    """

    input_ids: Tensor | None
    attention_mask: Tensor | None
    positions: Tensor | None
    phase: Literal["prompt", "generated"]
    generated_mask: Tensor | None
    rows: Tensor


@dataclass
class Generation:
    """One running `generate`: its batch size, its prompt's length where known, and the tokens seen."""

    batch: int | None
    prompt_length: int
    prompt_end: int | None = None
    seen: int = 0


class CallTracker:
    """Builds the [`Call`] of each forward from what the root and the model around the hook point receive."""

    def __init__(self, root: nn.Module) -> None:
        config = getattr(root, "config", None)
        self._merge_root = not getattr(config, "is_encoder_decoder", False)
        self._root_inputs: dict[str, Any] = {}
        self._generation: Generation | None = None
        self._call: Call | None = None

    @property
    def call(self) -> Call:
        """The running call.

        Raises:
            HookPointError: if a part inside the model was run by itself.
        """
        if self._call is None:
            raise HookPointError(
                "an edited module ran outside a forward call of its model, so there is no call to describe. Run the "
                "host, or the encoder or decoder that the point is in."
            )
        return self._call

    def begin_generate(self, arguments: Mapping[str, Any]) -> None:
        """Starts a new prompt: called with the arguments of `generate`."""
        names = ("inputs", "input_ids", "inputs_embeds", "input_features", "input_values", "pixel_values")
        given = next((arguments[n] for n in names if isinstance(arguments.get(n), Tensor)), None)
        tokens = given is not None and self._merge_root and not (given.is_floating_point() and given.dim() != 3)
        self._generation = Generation(
            batch=given.shape[0] if given is not None else None,
            prompt_length=given.shape[1] if given is not None and tokens and given.dim() > 1 else 0,
        )

    def end_generate(self) -> None:
        """Forgets the prompt."""
        self._generation = None

    def enter_root(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remembers the root's inputs for the models inside it."""
        self._root_inputs = bind(module, args, kwargs)

    def leave_root(self) -> None:
        """Forgets them."""
        self._root_inputs = {}

    def enter_owner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Describes the call that starts."""
        own = bind(module, args, kwargs)
        first = next((own[n] for n in ("input_ids", "inputs_embeds") if isinstance(own.get(n), Tensor)), None)
        if first is None:
            self._call = self._without_tokens(own)
            return
        batch, tokens = first.shape[:2]
        past = self._past(own, tokens)
        end = self._prompt_end(past, tokens)
        index = torch.arange(past, past + tokens, device=first.device).expand(batch, tokens)
        ids = self._find(own, "input_ids", (batch, tokens))
        self._call = Call(
            input_ids=ids,
            attention_mask=self._find(own, "attention_mask", (batch, None)),
            positions=_positions(self._find(own, "position_ids", None), index),
            phase="generated" if past + tokens > end else "prompt",
            generated_mask=index >= end,
            rows=self._rows(batch, first.device),
        )

    def leave_owner(self) -> None:
        """Forgets the call."""
        self._call = None

    def _without_tokens(self, own: dict[str, Any]) -> Call:
        given = next((v for v in own.values() if isinstance(v, Tensor)), torch.empty(0))
        mask = own.get("attention_mask")
        return Call(
            None,
            mask if isinstance(mask, Tensor) else None,
            None,
            "prompt",
            None,
            torch.arange(len(given), device=given.device),
        )

    def _find(self, own: dict[str, Any], name: str, shape: tuple[int, int | None] | None) -> Tensor | None:
        for inputs in (own, self._root_inputs if self._merge_root else {}):
            value = inputs.get(name)
            if isinstance(value, Tensor) and (shape is None or _fits(value, shape)):
                return value
        return None

    def _past(self, own: dict[str, Any], tokens: int) -> int:
        named = (value for name, value in own.items() if name in CACHES or hasattr(value, "get_seq_length"))
        cache = next((value for value in named if value is not None), None)
        past = 0 if cache is None else _cached_tokens(cache)
        if past is None:
            past = self._generation.seen if self._generation else 0
        if self._generation:
            self._generation.seen = past + tokens
        return past

    def _prompt_end(self, past: int, tokens: int) -> int:
        if self._generation is None:
            return past if past else tokens
        if self._generation.prompt_end is None:
            self._generation.prompt_end = max(self._generation.prompt_length, past + tokens)
        return self._generation.prompt_end

    def _rows(self, batch: int, device: torch.device) -> Tensor:
        start = self._generation.batch if self._generation and self._generation.batch else batch
        if batch % start:
            raise HookPointError(
                f"generate was given {start} rows and runs {batch}, which is no multiple: rows cannot be told apart."
            )
        return torch.arange(start, device=device).repeat_interleave(batch // start)


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a forward call by name."""
    if not args:
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def bind_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a bound function by name."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs


def _cached_tokens(cache: Any) -> int | None:
    """How many tokens a cache holds, where it knows: a state space model's does not."""
    length = getattr(cache, "get_seq_length", None)
    try:
        return int(length()) if callable(length) else None
    except ValueError:
        return None


def _fits(value: Tensor, shape: tuple[int, int | None]) -> bool:
    return value.dim() == 2 and value.shape[0] == shape[0] and shape[1] in (None, value.shape[1])


def _positions(given: Tensor | None, index: Tensor) -> Tensor:
    if given is None:
        return index
    # Rotary embeddings of images and video carry one row of positions per axis; the first is time.
    given = given[0] if given.dim() == 3 else given
    return given.expand_as(index) if given.shape[-1:] == index.shape[-1:] else index
