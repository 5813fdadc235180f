"""Where attention and MLP of a block read and write, from the values seen in one small probe forward.

Nothing is looked up by architecture. Going back from the block's output, each step finds which earlier values add up
to it - a state of the residual stream and what was written - until the block's input is reached. Attention and MLP in
parallel are one step of three values; a norm on the stream itself (post-LN) is stepped over.
"""

from __future__ import annotations

import re
import weakref
from typing import Literal

from torch import Tensor, nn

from ..errors import HookPointError
from .hook_points import HookPoint, Place
from .probe import run_probe
from .towers import Tower
from .values import Event, Sum, Values, common_parent, is_heavy, is_projection, outermost


Kind = Literal["attention", "cross-attention", "mixer", "mlp", "other"]
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MIXER = re.compile(r"mixer|mamba|ssm|recurrent|conv|lstm|delta|time_mix", re.IGNORECASE)
_NOT_ATTENTION = re.compile(r"rwkv", re.IGNORECASE)  # calls its recurrence attention
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert", re.IGNORECASE)
_NAMES = ("resid_mid", "attn_in", "attn_z", "attn_out", "mlp_in", "mlp_out")


class Found:
    """A place relative to its block; the fields are those of a [`Site`]."""

    def __init__(self, values: Values, event: Event, stream: bool = False) -> None:
        self.path, self.side, self.stream = event.path, event.side, stream
        self.width = values.width(event.node)
        self.flat = event.dims < values.events[0].dims


class _Unexplained(Exception):  # noqa: N818
    """Why a block has no such place; never leaves this file."""


class Wiring(dict[str, Found | str]):
    """The places of one block by name; a string says why there is none."""

    def place(self, point: HookPoint) -> Found:
        """The place of a point.

        Raises:
            HookPointError: if the block has no such place, or the probe could not explain it.
        """
        found = self[str(point.name)]
        if isinstance(found, str):
            have = ["resid_pre", *(name for name, value in self.items() if not isinstance(value, str)), "resid_post"]
            raise HookPointError(
                f"{point.text!r}: {found}. This block has {', '.join(have)}; a module path reaches everything else."
            )
        return found


_cache: weakref.WeakKeyDictionary[nn.Module, dict[object, Wiring]] = weakref.WeakKeyDictionary()


def wiring_of(host: nn.Module, tower: Tower, layer: int) -> Wiring:
    """The places inside one block of an unwrapped host, probed once per kind of block.

    Raises:
        HookPointError: if the host cannot be probed.
    """
    block = host.get_submodule(tower.block_path(layer))
    modules = dict(block.named_modules())
    # Blocks with the same modules are wired alike; an adapter changes the modules, and with them the key.
    key = (tower.path, tuple((name, type(module)) for name, module in modules.items()))
    known = _cache.setdefault(host, {})
    if key not in known:
        values = Values(block)
        run_probe(host, tower, modules, values.add)
        known[key] = _explain(values)
    return known[key]


def probe_width(host: nn.Module, tower: Tower | None, module: nn.Module, place: Place) -> int:
    """Width of a place, from one probe forward of the tower it is in.

    Raises:
        HookPointError: if the host cannot be probed or its probe does not pass through the place.
    """
    width: list[int] = []

    def visit(_: str, side: str, tensor: Tensor) -> bool:
        if side == place.side:
            width.append(tensor.shape[-1])
        return bool(width)

    run_probe(host, tower, {place.path: module}, visit)
    return width[0]


def _explain(values: Values) -> Wiring:
    wiring = Wiring()
    try:
        block = _Block(values)
    except _Unexplained as reason:
        return Wiring(dict.fromkeys(_NAMES, str(reason)))
    for name in _NAMES:
        try:
            event, stream = getattr(block, name)()
            wiring[name] = Found(values, event, stream)
        except _Unexplained as reason:
            wiring[name] = str(reason)
    return wiring


class _Block:
    """One method per place: where it was seen, and whether it bypasses the stream (see [`Site`])."""

    def __init__(self, values: Values) -> None:
        self.values, self.modules = values, values.modules
        self.sums = self._walk_back()
        self.producers = {total.written: self._producers(total.written) for total in self.sums}
        self.kinds = {total.written: self._kind(total) for total in self.sums}

    def resid_mid(self) -> tuple[Event, bool]:
        """The residual stream that the MLP's norm (or the MLP) reads; what enters the block where it runs in parallel."""
        total = self._only("mlp")
        if total.before == self.values.entered:
            return self.values.events[0], False
        # The stream as a module returns it is all that anything later sees of it.
        if outputs := self.values.seen(total.before, "output"):
            return outputs[-1], False
        readers = outermost([event.path for event in self.values.seen(total.before, "input")])
        event = self.values.input_of(readers[0]) if len(readers) == 1 else None
        if event is None:
            raise _Unexplained(f"the stream before the MLP is read by {len(readers)} modules, not by one norm")
        if total.after != self.values.left:
            raise _Unexplained("the MLP is not the last to write to the stream, so an edit could not reach the rest")
        return event, True

    def attn_out(self) -> tuple[Event, bool]:
        """What attention adds to the residual stream."""
        return self._written(self._only("attention")), False

    def mlp_out(self) -> tuple[Event, bool]:
        """What the MLP adds to the residual stream."""
        return self._written(self._only("mlp")), False

    def attn_z(self) -> tuple[Event, bool]:
        """The concatenated heads: what the attention's output projection reads."""
        event = self.values.input_of(self._output_projection())
        if event is None:
            raise _Unexplained("the input of the attention's output projection was not seen")
        return event, False

    def attn_in(self) -> tuple[Event, bool]:
        """What queries, keys and values are projected from."""
        out = self._output_projection()
        scope = self._scope(out)
        inside = [p for p in self._projections() if p.startswith(f"{scope}.") and p != out]
        return self._read_by(inside, within=scope), False

    def mlp_in(self) -> tuple[Event, bool]:
        """What the MLP reads, after its norm."""
        total = self._only("mlp")
        path = self.producers[total.written][0]
        if not is_projection(self.modules[path]):
            event = self.values.input_of(path)
            if event is None or self.values.rows(event.node) != self.values.rows(self.values.entered):
                raise _Unexplained(f"the input of {path!r} is not one vector per token")
            return event, False
        # No module holds the whole MLP: its first matrix is the first one after the stream that it reads.
        others = [self._scope(paths[0]) for written, paths in self.producers.items() if written != total.written]
        start = self.values.first(total.before)
        inside = [
            p
            for p in self._projections()
            if self._order(p) > start and p != path and not any(f"{p}.".startswith(f"{o}.") for o in others)
        ]
        return self._read_by(inside, within=""), False

    def _walk_back(self) -> list[Sum]:
        """All writes to the residual stream, the last one first."""
        values, sums, node = self.values, [], self.values.left
        for _ in range(len(values.nodes)):
            if node == values.entered:
                return sums
            found = values.add_up_to(node)
            if isinstance(found, tuple):
                return [*sums, *found]
            if found is not None:
                sums.append(found)
                node = found.before
                continue
            norms = [event.path for event in values.seen(node, "output") if not is_heavy(self.modules[event.path])]
            event = values.input_of(norms[0]) if norms else None
            if event is None:
                break
            node = event.node
        raise _Unexplained("no sum of what its modules return gives what the block returns, so its wiring is unknown")

    def _kind(self, total: Sum) -> Kind:
        path = self.producers[total.written][0]
        segments = path.split(".")
        inner = [".".join(segments[: depth + 1]) for depth in range(len(segments))]
        classes = " ".join(type(self.modules[p]).__name__ for p in inner)
        if _MLP.search(classes):
            return "mlp"
        if _NOT_ATTENTION.search(classes):
            return "mixer"
        if _ATTENTION.search(f"{path} {classes}"):
            rows = self.values.rows(self.values.entered)
            read = [self.values.input_of(p) for p in self._projections() if p.startswith(f"{self._scope(path)}.")]
            foreign = any(event is not None and self.values.rows(event.node) != rows for event in read)
            return "cross-attention" if foreign else "attention"
        return "mixer" if _MIXER.search(f"{path} {classes}") else "other"

    def _only(self, kind: Kind) -> Sum:
        fitting = [total for total in self.sums if self.kinds[total.written] == kind]
        if not fitting and kind == "mlp":  # what has no telling name, as in fc1 and fc2, is one if it is alone
            fitting = [total for total in self.sums if self.kinds[total.written] == "other"]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise _Unexplained(f"{len(fitting)} modules of kind {kind} write to the residual stream in this block")
        raise _Unexplained(f"nothing of kind {kind} writes to the residual stream in this block")

    def _written(self, total: Sum) -> Event:
        event = self.values.seen(total.written, "output")[-1]
        if total.scale != 1.0:
            raise _Unexplained(
                f"what is added is {total.scale:.4g} times the output of {event.path!r} and leaves no module"
            )
        return event

    def _producers(self, node: int) -> list[str]:
        """Paths of the modules with matrices whose output, up to norms and scales, a value is."""
        for _ in range(len(self.values.nodes)):
            outputs = [event.path for event in self.values.seen(node, "output")]
            if heavy := [path for path in outputs if is_heavy(self.modules[path])]:
                return outermost(heavy)
            event = self.values.input_of(outputs[0]) if outputs else None
            if event is None:
                break
            node = event.node
        raise _Unexplained("what is added to the residual stream comes from no module with a matrix")

    def _output_projection(self) -> str:
        """The matrix whose output, up to norms and scales, attention adds to the residual stream."""
        node = self._only("attention").written
        for _ in range(len(self.values.nodes)):
            outputs = [event.path for event in self.values.seen(node, "output")]
            if matrices := [path for path in outputs if is_projection(self.modules[path])]:
                return outermost(matrices)[0]
            light = [path for path in outputs if not is_heavy(self.modules[path])]
            event = self.values.input_of(light[0]) if light else None
            if event is None:
                break
            node = event.node
        raise _Unexplained("attention has no output projection of its own")

    def _projections(self) -> list[str]:
        return outermost([path for path, module in self.modules.items() if path and is_projection(module)])

    def _order(self, path: str) -> int:
        event = self.values.input_of(path)
        return -1 if event is None else event.order

    def _scope(self, path: str) -> str:
        """The outermost module around a path in which nothing else that writes to the stream is."""
        others = [paths[0] for paths in self.producers.values() if not f"{path}.".startswith(f"{paths[0]}.")]
        segments = path.split(".")
        for depth in range(1, len(segments)):
            scope = ".".join(segments[:depth])
            if not any(f"{other}.".startswith(f"{scope}.") for other in others):
                return scope
        return path

    def _read_by(self, projections: list[str], within: str) -> Event:
        """The first value that some of the matrices read, at the module that holds all its readers."""
        rows = self.values.rows(self.values.entered)
        events = [event for p in projections if (event := self.values.input_of(p)) is not None]
        events = [event for event in events if self.values.rows(event.node) == rows]
        if not events:
            raise _Unexplained("no matrix that reads one vector per token was seen there")
        node = min(events, key=lambda event: event.order).node
        readers = [event.path for event in events if event.node == node]
        path = common_parent(readers)
        parent = path.rpartition(".")[0]
        if len(readers) == 1 and parent and f"{parent}.".startswith(f"{within}." if within else ""):
            above = self.values.input_of(parent)
            path = parent if above is not None and above.node == node else path
        event = self.values.input_of(path) if path else None
        if event is None or event.node != node:
            raise _Unexplained(f"{', '.join(readers)} read it and no module around just them does")
        return event
