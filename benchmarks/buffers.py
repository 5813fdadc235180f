"""What each library spends on shuffling a batch: its own buffer, fed with activations from memory.

A buffer is an iterator of shuffled batches, made from an endless iterator of host outputs `[tokens, d]`. sparsify has none:
it trains on whole sequences as they come.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor


Buffer = Callable[[Iterator[Tensor], int, int], Iterator[Tensor]]
HOST_BATCH = 4096  # tokens of one forward pass of a host


def ours(source: Iterator[Tensor], capacity: int, batch: int) -> Iterator[Tensor]:
    """The ring of `ActivationStream`, `capacity` tokens."""
    from hf_sae.activations.interface import Rows
    from hf_sae.activations.ring import ShuffleRing

    def with_ids(x: Tensor) -> Rows:
        return Rows({"x": x}, torch.zeros(len(x), 2, dtype=torch.int32))

    first = next(source)
    source = itertools.chain([first], source)
    ring = ShuffleRing({"x": first.shape[1]}, first.dtype, 0)
    ring.capacity = capacity
    while True:
        if not ring.draws or ring.cursor + batch > ring.half:
            ring.refill(lambda: with_ids(next(source)))
        yield ring.take(batch)["x"]


def saelens(source: Iterator[Tensor], capacity: int, batch: int) -> Iterator[Tensor]:
    """`mixing_buffer`."""
    from sae_lens.training.mixing_buffer import mixing_buffer

    return mixing_buffer(capacity, batch, source)


def dictionary_learning(source: Iterator[Tensor], capacity: int, batch: int) -> Iterator[Tensor]:
    """`ActivationBuffer` whose host is a stand-in: its refresh, without the language model, and its sampling."""
    from dictionary_learning.buffer import ActivationBuffer

    class Fed(ActivationBuffer):
        def refresh(self) -> None:
            kept = self.activations[~self.read]
            fresh = torch.empty(self.activation_buffer_size, self.d_submodule, dtype=kept.dtype)
            fresh[: len(kept)] = kept
            filled = len(kept)
            while filled < len(fresh):
                rows = next(source)[: len(fresh) - filled]
                fresh[filled : filled + len(rows)] = rows
                filled += len(rows)
            self.activations, self.read = fresh, torch.zeros(len(fresh), dtype=torch.bool)

    first = next(source)
    model = SimpleNamespace(dtype=first.dtype)
    length = 128
    return iter(
        Fed(None, model, None, first.shape[1], n_ctxs=capacity // length, ctx_len=length, out_batch_size=batch)
    )


BUFFERS: dict[str, Buffer] = {"hf_sae": ours, "saelens": saelens, "dictionary_learning": dictionary_learning}


def seconds_per_batch(buffer: Buffer, x: Tensor, capacity: int, batch: int) -> float:
    """Mean seconds per batch, refills included, while three buffers' worth of `x` `[tokens, d]` is served after the first fill."""
    source = itertools.cycle(x.split(HOST_BATCH)) if len(x) >= HOST_BATCH else itertools.cycle([x])
    batches = buffer(source, capacity, batch)
    next(batches)
    count = max(2, 3 * capacity // batch)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - start) / count
