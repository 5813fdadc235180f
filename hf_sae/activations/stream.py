"""Activations of a host as shuffled batches of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..data import Positions, TokenDataset
from ..errors import DataError
from ..hooks import HookPoint
from .intake import Intake
from .interface import BatchStream, Rows
from .reading import HostReader, Reader
from .ring import ShuffleRing
from .rows import RowShuffle


ROWS_SHARE = 16  # the part of ring_bytes that shuffles rows of tokens before the host


class ActivationStream(BatchStream):
    """Batches of activations from one or several places of a host, shuffled token by token.

    The host runs without gradients, in eval mode and only as far as the last place. Beside the activations of a place
    `"<place>/gradient"` serves the gradient of the frozen host's next-token loss there, in float32 (the sum over the row's
    positions, so that batch sizes change nothing; see [`hf_sae.activations.gradients`]): the host then runs to its loss and
    back, which costs about three times as much and memory for one batch's logits. Its kept tokens go through a
    shuffle ring of fixed size with one permutation for all places, so row i of one place and row i of another are the
    same token. Each kept token is served once per pass over the dataset. Tokens whose activations are not finite are left
    out and counted, and stop the stream where they are a whole host batch, or more than 1 % after 8192 tokens; norm
    outliers are counted and served.

    Args:
        host (`nn.Module`): any model that reads `input_ids`; it is never moved.
        tokenizer: of the host.
        dataset: see [`hf_sae.data.TokenDataset`].
        hook_points (`str`, [`HookPoint`] or several): the places; `"resid_post.8/gradient"` for the gradient there.
        context_length (`int`, *optional*, defaults to 128): tokens per row of the host's input.
        batch_size (`int`, *optional*, defaults to 16): rows per forward of the host.
        ring_bytes (`int`, *optional*, defaults to 256 MiB): size of the shuffle ring, on the device of the activations; a
            sixteenth of it shuffles whole rows before the host.
        packed, truncation, positions, column, split, repeat, rank, world_size: see [`hf_sae.data.TokenDataset`]. Each conversation
            has a row of its own by default; `truncation=True` and the shuffle ring then feed as FAST does (Li et al. 2025).
        dtype (`torch.dtype`, *optional*): of the activations; otherwise that of the host.
        seed (`int`, *optional*, defaults to 0): of the order of documents and of tokens.

    Raises:
        HookPointError: if a place does not exist or has no fixed width, or gradients are wanted of a host that has no
            next-token loss, is quantised or offloaded.
        DataError: if the dataset cannot be read, the rows are longer than the host allows, or `ring_bytes` is too small.
    """

    def __init__(
        self,
        host: nn.Module,
        tokenizer: Any,
        dataset: Any,
        hook_points: str | HookPoint | Sequence[str | HookPoint],
        *,
        context_length: int = 128,
        batch_size: int = 16,
        ring_bytes: int = 256 * 2**20,
        packed: bool | None = None,
        truncation: bool = False,
        positions: Positions = "all",
        column: str | None = None,
        split: str = "train",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.host, self.seed, self.ring_bytes = host, seed, ring_bytes
        self.reader = self.open_reader(host, hook_points, dtype)
        self.reader.check_length(context_length)
        self.data = TokenDataset(
            dataset,
            tokenizer,
            context_length=context_length,
            batch_size=batch_size,
            packed=packed,
            truncation=truncation,
            positions=positions,
            column=column,
            split=split,
            seed=seed,
            repeat=repeat,
            rank=rank,
            world_size=world_size,
        )
        own_seed = seed * world_size + rank
        self.rows = RowShuffle(self.data, ring_bytes // ROWS_SHARE, own_seed)
        self.ring = ShuffleRing(self.widths, self.reader.dtype, ring_bytes - ring_bytes // ROWS_SHARE, own_seed)
        self._check_ring(batch_size * context_length, f"one host batch of {batch_size} x {context_length} tokens")
        self._begin()

    def open_reader(
        self, host: nn.Module, points: str | HookPoint | Sequence[str | HookPoint], dtype: torch.dtype | None
    ) -> Reader:
        """What turns tokens into activations."""
        return HostReader(host, points, dtype)

    def _begin(self) -> None:
        self.intake = Intake(self.reader.places, self.reader.dtype)
        self._ended, self._whole = False, True

    @property
    def widths(self) -> dict[str, int]:
        """Size of the activations at each place, keyed by the place as written."""
        return self.reader.widths

    @property
    def world_size(self) -> int:
        """Into how many shares the documents are divided, of which this stream reads one."""
        return self.data.source.world_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.reader.dtype

    @property
    def counts(self) -> dict[str, int]:
        """Tokens seen, left out and served so far, and host batches: see `Intake`."""
        return dict(self.intake.counts)

    @property
    def largest_batch(self) -> int:
        """The most tokens that a batch may have: half of the ring."""
        return self.ring.half

    def batches(self, tokens_per_batch: int, total: int | None = None) -> Iterator[Rows]:
        """The next batches, `{hook point: [tokens, width]}`; the last one may be smaller.

        Goes on where the previous call stopped. The state is valid whenever a batch has been received.

        Args:
            tokens_per_batch (`int`): of each batch.
            total (`int`, *optional*): tokens of all of them. The ring then runs empty towards the end, and the host does not read
                what nobody takes.

        Raises:
            DataError: if a batch is larger than half the ring, the data is at its end, no token is kept, or too many
                activations are not finite.
        """
        if tokens_per_batch < 1:
            raise DataError(f"tokens_per_batch={tokens_per_batch}: give at least 1.")
        self._check_ring(
            2 * tokens_per_batch, f"batches of {tokens_per_batch} tokens, which take half of the ring at most"
        )
        if total is not None and total < 1:
            return iter(())
        self._start(total)
        if self._ended and not self.ring.remaining:
            raise DataError(
                f"the dataset is at its end: all {self.intake.counts['served']} tokens have been served. Pass repeat=True to go "
                "on with the next epoch, a larger dataset, or make a new stream."
            )
        return self._batches(tokens_per_batch, total)

    def _batches(self, tokens_per_batch: int, left: int | None) -> Iterator[Rows]:
        while left is None or left > 0:
            missing = None if left is None else max(left - self.ring.remaining, 0)
            used_up = self.ring.cursor + tokens_per_batch > self.ring.half or self.ring.remaining < tokens_per_batch
            if used_up and missing != 0 and not self._ended:
                self._refill(missing)
            count = min(tokens_per_batch, self.ring.remaining, *(() if left is None else (left,)))
            if not count:
                return
            rows = self.ring.take(count)
            self.intake.counts["served"] += count
            left = None if left is None else left - count
            yield rows

    def sample(self, n_tokens: int) -> Rows:
        """The next tokens, `{hook point: [n, width]}`, without serving them; fewer if the ring holds fewer. Those that an empty ring
        will get, before they are shuffled."""
        self._start()
        if not self.ring.remaining and not self._ended:
            self._whole = False
            behind = self.ring.peek_behind(n_tokens, self._next_rows)
            self._whole = True
            if behind is not None:
                return behind
        return self.ring.peek(n_tokens)

    def _start(self, total: int | None = None) -> None:
        if self.ring.draws:
            return
        self._refill(total)
        if not self.ring.remaining:
            raise DataError(
                f"of {self.counts['seen']} tokens none is kept under positions={self.data.info()['positions']!r} "
                f"({self.counts['non_finite']} are not finite). Loosen positions= or choose another dataset."
            )

    def _refill(self, most: int | None = None) -> None:
        self._whole = False
        self._ended = not self.ring.refill(self._next_rows, most)
        self._whole = True

    def _next_rows(self) -> Rows | None:
        """The kept activations of the next host batch that has any."""
        for batch in self.rows:
            kept = batch.keep.flatten().nonzero().squeeze(1)
            self.intake.see(int(batch.attention_mask.sum()), len(kept))
            if len(kept):
                rows = self.intake.admit(self.reader(batch, kept))
                if rows.count:
                    return rows
            if self.data.epoch > 1 and self.intake.none_kept:
                return None  # a repeated dataset without a kept token would be searched for ever
        return None

    def _check_ring(self, tokens: int, what: str) -> None:
        if tokens > self.ring.capacity:
            needed = math.ceil(tokens * self.ring.slot_bytes * ROWS_SHARE / (ROWS_SHARE - 1))
            raise DataError(
                f"ring_bytes={self.ring_bytes} holds {self.ring.capacity} tokens of {self.ring.slot_bytes} bytes, too few for "
                f"{what}. Give at least ring_bytes={needed}."
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what is served next, flat: tensors (in main memory) and JSON values.

        Raises:
            DataError: if the stream was interrupted while it was reading the host.
        """
        if not self._whole:
            raise DataError(
                "the stream was interrupted inside a host batch and has no valid state: use the last saved one."
            )
        state: dict[str, Any] = {f"ring.{key}": value for key, value in self.ring.state_dict().items()}
        state |= {f"rows.{key}": value for key, value in self.rows.state_dict().items()}
        return state | self.intake.state_dict() | {"ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit.

        Raises:
            DataError: if hook points, widths, dtype, ring size, dataset or its settings differ.
        """
        parts: dict[str, dict[str, Any]] = {"ring": {}, "rows": {}}
        for key, value in state.items():
            owner, _, name = key.partition(".")
            if owner in parts:
                parts[owner][name] = value
        self.ring.load_state_dict(parts["ring"], self.reader.devices())
        self.rows.load_state_dict(parts["rows"])
        self._ended, self._whole = state["ended"], True
        self.intake.load_state_dict(state)

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where another number of processes stopped, given the state of each.

        The documents that they have read are not read again in this epoch. The tokens that waited in their rings and buffers
        are lost: a new ring is filled before the next batch.

        Raises:
            DataError: if the dataset or its settings differ, or it is a stream that gives whole files to each process.
        """
        prefix = "rows."
        self.rows.load_states(
            [{k.removeprefix(prefix): v for k, v in s.items() if k.startswith(prefix)} for s in states]
        )
        size = self.ring_bytes - self.ring_bytes // ROWS_SHARE
        self.ring = ShuffleRing(self.widths, self.reader.dtype, size, self.ring.seed)
        self._begin()
        self.intake.counts["served"] = sum(state["counts"]["served"] for state in states) // len(states)

    def info(self) -> dict[str, Any]:
        """Where the activations come from, as JSON values: data, host, places, what was left out."""
        return {
            "data": self.data.info(),
            **self.reader.info(self.data.tokenizer),
            "ring_bytes": self.ring_bytes,
            "ring_tokens": self.ring.capacity,
            "seed": self.seed,
            "counts": self.counts,
        }
