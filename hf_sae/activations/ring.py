"""A shuffle buffer of activations: fixed memory, one permutation for all hook points, every token exactly once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .columns import dtype_of
from .interface import Rows


_SLOT_INDEX_BYTES, _IDS_BYTES = 8, 8
_IDS = "/ids"  # beside the hook points, whose names never begin so: token id and document number of each slot


class ShuffleRing:
    """Slots that hold one token each, served in a random order; what has been served is overwritten in place.

    Each draw orders all tokens in the ring anew, and at most half of them are served before the next one, so a token
    stays for about two draws and meets tokens from far apart.

    Args:
        widths (`dict[str, int]`): width of each hook point.
        dtype (`torch.dtype`): of the stored activations; gradients are stored in float32.
        ring_bytes (`int`): bytes for the slots and their order; what does not fit of the latest host batch comes on top.
        seed (`int`): of the order.
    """

    def __init__(self, widths: Mapping[str, int], dtype: torch.dtype, ring_bytes: int, seed: int = 0) -> None:
        self.widths, self.dtype, self.seed = dict(widths), dtype, seed
        columns = {column: (width, dtype_of(column, dtype)) for column, width in widths.items()}
        self.slot_bytes = (
            sum(width * kind.itemsize for width, kind in columns.values()) + _IDS_BYTES + _SLOT_INDEX_BYTES
        )
        self.capacity = ring_bytes // self.slot_bytes
        self.columns = columns | {_IDS: (2, torch.int32)}
        self.slots: dict[str, Tensor] = {}
        self.pending: dict[str, Tensor] = {}
        self.order = torch.empty(0, dtype=torch.long)
        self.cursor = self.filled = self.draws = 0

    @property
    def half(self) -> int:
        """Tokens that are served before the next draw."""
        return self.capacity // 2

    @property
    def remaining(self) -> int:
        """Tokens that wait in the slots."""
        return len(self.order) - self.cursor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(t.nbytes for t in (*self.slots.values(), *self.pending.values(), self.order))

    def refill(self, next_rows: Callable[[], Rows | None], most: int | None = None) -> bool:
        """Fill the free slots and draw a new order.

        Args:
            next_rows: gives [`Rows`] with ids and n > 0, or `None` at the end of the data.
            most (`int`, *optional*): tokens to add at most.

        Returns:
            Whether there may be more data.
        """
        free, used, more = torch.cat([self.order[: self.cursor], self._never_ordered()])[:most], 0, True
        while used < len(free):
            rows = self.pending or _with_ids(next_rows())
            if not rows:
                more = False
                break
            self._allocate(rows)
            free = free.to(self.order.device)
            taken = min(len(next(iter(rows.values()))), len(free) - used)
            for point, slots in self.slots.items():
                slots.index_copy_(0, free[used : used + taken].to(slots.device), rows[point][:taken])
            self.pending = {p: r[taken:] for p, r in rows.items()} if taken < len(rows[point]) else {}
            used += taken
        self._draw(torch.cat([self.order[self.cursor :], free[:used]]))
        return more

    def _never_ordered(self) -> Tensor:
        """Slots that no order has, ascending: all at first, and what an earlier call left free."""
        rest = torch.ones(self.capacity, dtype=torch.bool, device=self.order.device)
        rest[self.order] = False
        return rest.nonzero().squeeze(1)

    def _allocate(self, rows: dict[str, Tensor]) -> None:
        if not self.slots:
            self.slots = {
                name: torch.empty(self.capacity, width, dtype=dtype, device=rows[name].device)
                for name, (width, dtype) in self.columns.items()
            }
            self.order = self.order.to(next(iter(rows.values())).device)

    def _draw(self, live: Tensor) -> None:
        # a generator of its own for each draw: the number of draws is its whole state
        generator = torch.Generator(live.device).manual_seed((self.seed * 1_000_003 + self.draws) % 2**63)
        self.order = live[torch.randperm(len(live), generator=generator, device=live.device)]
        self.cursor, self.draws, self.filled = 0, self.draws + 1, max(self.filled, len(live))

    def peek(self, count: int) -> Rows:
        """The next tokens, at most `count`, without serving them."""
        slots = self.order[self.cursor : self.cursor + count]
        found = {name: rows.index_select(0, slots.to(rows.device)) for name, rows in self.slots.items()}
        ids = found.pop(_IDS, None)
        return Rows(found, ids)

    def peek_behind(self, count: int, next_rows: Callable[[], Rows | None]) -> Rows | None:
        """Tokens that no slot has yet, at most `count`; they are read if need be, and come into free slots before all others."""
        while not self.pending or len(self.pending[_IDS]) < count:
            rows = _with_ids(next_rows())
            if not rows:
                break
            self.pending = (
                {name: torch.cat([self.pending[name], x]) for name, x in rows.items()} if self.pending else rows
            )
        if not self.pending:
            return None
        found = {name: rows[:count] for name, rows in self.pending.items()}
        return Rows({name: rows for name, rows in found.items() if name != _IDS}, found[_IDS])

    def take(self, count: int) -> Rows:
        """Serve the next tokens, at most `count`."""
        rows = self.peek(count)
        self.cursor += min(count, self.remaining)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Everything, as a copy in main memory; slots that were never filled are left out."""
        state: dict[str, Any] = {"order": _copy(self.order), **self._geometry()}
        state |= {"cursor": self.cursor, "filled": self.filled, "draws": self.draws}
        for number, point in enumerate(self.columns):
            if point in self.slots:
                state[f"slots.{number}"] = _copy(self.slots[point][: self.filled])
            if point in self.pending:
                state[f"pending.{number}"] = _copy(self.pending[point])
        return state

    def load_state_dict(self, state: Mapping[str, Any], devices: Mapping[str, torch.device]) -> None:
        """Restore what [`state_dict`] gave.

        Args:
            state: of a ring with the same hook points, widths, dtype and capacity.
            devices: where each hook point's activations are.

        Raises:
            DataError: if the rings differ.
        """
        for name, here in self._geometry().items():
            if state.get(name) != here:
                raise DataError(
                    f"the state was saved with {name}={state.get(name)!r}, and this stream has {here!r}. Resume with the "
                    "hook points, dtype and ring_bytes of the first run, or start afresh."
                )
        self.cursor, self.filled, self.draws = state["cursor"], state["filled"], state["draws"]
        self.slots, self.pending = {}, {}
        for number, (point, (width, dtype)) in enumerate(self.columns.items()):
            device = devices.get(point, next(iter(devices.values())))  # the ids are where the order is
            if f"slots.{number}" in state:
                self.slots[point] = torch.empty(self.capacity, width, dtype=dtype, device=device)
                self.slots[point][: self.filled] = state[f"slots.{number}"].to(device)
            if f"pending.{number}" in state:
                self.pending[point] = state[f"pending.{number}"].to(device, copy=True)
        self.order = state["order"].to(next(iter(devices.values())), copy=True)

    def _geometry(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        # the order counts too: slots are saved by number, and dictionaries compare without order
        return {"points": list(self.widths), "widths": self.widths, "dtype": dtype, "capacity": self.capacity}


def _with_ids(rows: Rows | None) -> dict[str, Tensor]:
    """All columns of new rows; the ids go where the order is, so that nothing waits for a transfer of slots."""
    if rows is None:
        return {}
    if rows.ids is None:
        raise DataError("rows without ids= cannot go through the ring: give token ids and document numbers.")
    return {**rows, _IDS: rows.ids.to(next(iter(rows.values())).device)}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
