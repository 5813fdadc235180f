"""What a probe saw in a block: values as nodes, where each was seen, and which of them add up to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .hook_points import Side


# Relative to what was written. Rounding of the sum itself is undone by adding in the block's own dtype first.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
LOW_PRECISION = 5e-2


@dataclass(frozen=True)
class Event:
    """A value seen at one side of a module; `order` counts from the block's input."""

    order: int
    path: str
    side: Side
    node: int
    dims: int


@dataclass(frozen=True)
class Sum:
    """`after = before + scale * written`, all nodes of the residual stream."""

    after: int
    before: int
    written: int
    scale: float = 1.0


class Values:
    """Collects the events of one block's forward; equal values are one node.

    Args:
        block (`nn.Module`): its own input and output have the path `""`.
    """

    def __init__(self, block: nn.Module) -> None:
        self.modules = dict(block.named_modules())
        self.events: list[Event] = []
        self.nodes: list[Tensor] = []
        self._first: list[int] = []
        self._runs: Counter[tuple[str, str]] = Counter()

    def add(self, path: str, side: str, value: Tensor) -> bool:
        """Takes one value (a copy, since some blocks work in place); `True` once the block is done."""
        whole = getattr(value, "full_tensor", None)
        value = value if whole is None else whole()  # of a host whose weights are spread over processes
        if value.is_floating_point() and value.dim() >= 2:
            flat = value.detach().reshape(-1, value.shape[-1])
            known = (i for i, node in enumerate(self.nodes) if node.shape == flat.shape and torch.equal(node, flat))
            node = next(known, len(self.nodes))
            if node == len(self.nodes):
                self.nodes.append(flat.clone())
                self._first.append(len(self.events))
            which: Side = "input" if side == "input" else "output"
            self._runs[path, side] += 1
            self.events.append(Event(len(self.events), path, which, node, value.dim()))
        return path == "" and side == "output"

    @property
    def entered(self) -> int:
        """The node that entered the block."""
        return self.events[0].node

    @property
    def left(self) -> int:
        """The node that left it."""
        return self.events[-1].node

    def first(self, node: int) -> int:
        """When a value was first seen."""
        return self._first[node]

    def width(self, node: int) -> int:
        """Size of its last dimension."""
        return self.nodes[node].shape[-1]

    def rows(self, node: int) -> int:
        """Number of tokens in it."""
        return self.nodes[node].shape[0]

    def seen(self, node: int, side: Side) -> list[Event]:
        """Where a value entered or left modules inside the block; no dropouts, and no modules that run twice."""
        return [
            event
            for event in self.events
            if (event.node, event.side) == (node, side)
            and event.path
            and self._runs[event.path, side] == 1
            and not isinstance(self.modules[event.path], nn.Dropout)
        ]

    def input_of(self, path: str) -> Event | None:
        """The main input of a module."""
        return next((e for e in self.events if e.path == path and e.side == "input"), None)

    def add_up_to(self, after: int) -> Sum | tuple[Sum, Sum] | None:
        """The pair, scaled pair or triple of earlier values that gives a value of the residual stream."""
        like = [n for n, value in enumerate(self.nodes) if value.shape == self.nodes[after].shape and n != after]
        written = [n for n in like if self.seen(n, "output")]
        pairs = [(b, w) for w in written for b in like if self.first(b) < self.first(w)]
        best = min(((self._error(after, (b, w)), b, w) for b, w in pairs), default=None)
        if best and best[0] <= self._tolerance:
            return Sum(after, best[1], best[2])
        x = self.entered
        found = [
            (self._error(after, (x, a, w)), a, w) for a in written for w in written if x != a and a < w and x != w
        ]
        best = min(found, default=None)
        if best and best[0] <= self._tolerance:
            return Sum(after, x, best[1]), Sum(after, x, best[2])
        scaled = [(*self._scaled(after, b, w), b, w) for b, w in pairs]
        nearest = min(scaled, default=None)
        if nearest and nearest[0] <= self._tolerance:
            return Sum(after, nearest[2], nearest[3], nearest[1])
        return None

    @property
    def _tolerance(self) -> float:
        return TOLERANCE.get(self.nodes[self.entered].dtype, LOW_PRECISION)

    def _error(self, after: int, parts: tuple[int, ...]) -> float:
        """How far a sum is from a value, in units of the smallest part; zero if some order of adding gives it exactly."""
        target, values = self.nodes[after], [self.nodes[p] for p in parts]
        smallest = min(v.float().norm().item() for v in values)
        if smallest == 0:
            return float("inf")
        rotations = [values[i:] + values[:i] for i in range(len(values))]
        if any(torch.equal(target, sum(order[1:], start=order[0])) for order in rotations):
            return 0.0
        return (target.double() - sum(v.double() for v in values)).norm().item() / smallest

    def _scaled(self, after: int, before: int, written: int) -> tuple[float, float]:
        change = self.nodes[after].double() - self.nodes[before].double()
        direction = self.nodes[written].double()
        scale = (change * direction).sum() / direction.square().sum().clamp_min(1e-30)
        error = (change - scale * direction).norm() / change.norm().clamp_min(1e-30)
        return error.item(), scale.item()


def is_heavy(module: nn.Module) -> bool:
    """Whether a module mixes the dimensions of its input: it has a matrix somewhere (a norm or scale has none)."""
    if any(parameter.dim() >= 2 for parameter in module.parameters()):
        return True
    return any("linear" in type(part).__name__.lower() for part in module.modules())  # packed, quantised weights


def is_projection(module: nn.Module) -> bool:
    """Whether a module is one matrix, possibly quantised or with an adapter around it."""
    wrapped = "base_layer" in module._modules or "_packed_params" in module._modules  # PEFT's, torch's quantiser's
    return is_heavy(module) and (wrapped or not any(is_heavy(child) for child in module.children()))


def outermost(paths: Iterator[str] | list[str]) -> list[str]:
    """The paths that are inside no other of the paths."""
    chosen: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(path.startswith(f"{known}.") for known in chosen):
            chosen.append(path)
    return chosen


def common_parent(paths: list[str]) -> str:
    """The innermost path that contains all of them, or the path itself where there is one."""
    split = [path.split(".") for path in paths]
    shared = []
    for segments in zip(*split, strict=False):
        if len(set(segments)) > 1:
            break
        shared.append(segments[0])
    return ".".join(shared)
