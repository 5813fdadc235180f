"""All that is gathered of the latents of one autoencoder while text streams by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import TokenBatch
from ..errors import DataError
from .coactivation import FrequentPairs, PairTable, pair_bytes, pair_counter
from .contexts import ContextStore
from .histograms import GrowingHistograms
from .sampling import ContextPool, RandomContexts
from .sums import ExactSums


_FIXED = ("latents", "column")  # say which latents there are: all


@dataclass(frozen=True)
class ExampleCounts:
    """How many contexts are kept of each latent.

    Args:
        top (`int`): the strongest.
        random (`int`): at random, of those where it fires.
        bins (`int`), per_bin (`int`): intervals of activations, and contexts of each, other ones than `random`.
        zero (`int`): where it does not fire.
        window (`int`): tokens on each side of the peak.
        pool (`int`): windows among which those where a latent does not fire are looked for.
    """

    top: int = 20
    random: int = 10
    bins: int = 4
    per_bin: int = 5
    zero: int = 10
    window: int = 12
    pool: int = 256

    def __post_init__(self) -> None:
        if min(self.top, self.bins, self.pool) < 1 or min(self.random, self.per_bin, self.zero, self.window) < 0:
            raise ValueError(f"{self}: top, bins and pool have to be at least 1, and no number may be negative.")

    @property
    def reservoir(self) -> int:
        """Random contexts kept: twice what the intervals need, because chance does not fill them evenly."""
        return max(1, self.random + 2 * self.bins * self.per_bin)


class LatentState:
    """What is kept of every latent; its size does not depend on how many tokens were read.

    Args:
        d_sae (`int`): how many latents there are.
        counts ([`ExampleCounts`]): how many contexts.
        seed (`int`): of the random ones.

    Attributes:
        top ([`ContextStore`]), random ([`RandomContexts`]), pool ([`ContextPool`]): contexts.
        histograms ([`GrowingHistograms`]): of the activations.
        sums ([`ExactSums`]): of the activations.
        pairs ([`PairTable`] or [`FrequentPairs`]): which fire together.
    """

    def __init__(self, d_sae: int, counts: ExampleCounts, seed: int) -> None:
        latents = torch.arange(d_sae)
        self.d_sae, self.counts, self.seed = d_sae, counts, seed
        self.top = ContextStore(latents, d_sae, counts.top, counts.window)
        self.random = RandomContexts(latents, d_sae, counts.reservoir, counts.window, seed)
        self.pool = ContextPool(d_sae, counts.pool, counts.window, seed)
        self.histograms = GrowingHistograms(d_sae)
        self.sums = ExactSums(d_sae)
        self.pairs: PairTable | FrequentPairs = pair_counter(d_sae)

    @property
    def tokens(self) -> int:
        """How many were read, BOS and padding not counted."""
        return self.top.tokens

    @property
    def fired(self) -> Tensor:
        """`[d_sae]`: on how many tokens each latent fired."""
        return self.top.fired

    @property
    def maxima(self) -> Tensor:
        """`[d_sae]`: the activation furthest from zero; 0 if it never fired."""
        return self.top.values[:, 0]

    def add(self, batch: TokenBatch, tokens: Tensor, latents: Tensor, values: Tensor) -> None:
        """Takes in one batch.

        Args:
            batch ([`TokenBatch`]): on the CPU.
            tokens (`Tensor`): `[nnz]`, position in the flattened batch of each non-zero latent, ascending.
            latents (`Tensor`): `[nnz]`, which latent.
            values (`Tensor`): `[nnz]`, its activation.

        Raises:
            DataError: for an activation that is not finite.
        """
        values = values.float()
        if not values.isfinite().all():
            wrong = int(latents[~values.isfinite()][0])
            raise DataError(
                f"latent {wrong} has an activation that is not finite: load the host in float32 or bfloat16."
            )
        self.sums.add(latents, values)
        self.histograms.add(latents, values)
        for store in (self.top, self.random):
            store.add(batch, tokens, latents, values)
        self.pool.add(batch, tokens, latents)
        self.pairs.add(tokens, latents)

    def merge(self, other: LatentState) -> None:
        """Takes in what was gathered of other text: the state is then that of one pass over both, in any order.

        Only counts of pairs that were forgotten on the way ([`hf_sae.features.coactivation`]) may depend on the split.

        Args:
            other ([`LatentState`]): of as many latents, with the same counts and seed.

        Raises:
            ValueError: if it is of another kind.
        """
        mine, its = ((state.d_sae, state.counts, state.seed) for state in (self, other))
        if mine != its:
            raise ValueError(f"states of different kinds cannot be merged: {mine} and {its}.")
        for name, part in self._parts().items():
            part.merge(other._parts()[name])

    def empty(self) -> LatentState:
        """One of the same kind that has seen nothing."""
        return LatentState(self.d_sae, self.counts, self.seed)

    def tensors(self) -> dict[str, Tensor]:
        """All that was gathered, by name; [`LatentState.load`] takes it back."""
        found = {f"{part}.{name}": tensor for part, name, tensor in self._tensors() if name not in _FIXED}
        found |= {f"{name}.tokens": torch.tensor(getattr(self, name).tokens) for name in ("top", "random")}
        return found | {"pairs.exact": torch.tensor(self.pairs.exact)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Becomes what [`LatentState.tensors`] gave; the tensors are taken, not copied.

        Raises:
            DataError: if they are not those of such a state.
        """
        here, parts = self.tensors(), self._parts(with_strengths=True)
        for name, tensor in here.items():
            given = tensors.get(name)
            same = given is not None and given.dtype == tensor.dtype and given.dim() == tensor.dim()
            # the pool and the table of frequent pairs grow with what is read
            fits = same and (name.startswith(("pool.", "pairs.")) or given.shape == tensor.shape)
            if given is None or not fits or tensors.keys() != here.keys():
                raise DataError(f"the tensors are not of a state with {self.d_sae} latents: {name!r} does not fit.")
        for name, tensor in tensors.items():
            part, _, attribute = name.partition(".")
            setattr(parts[part], attribute, tensor.item() if tensor.dim() == 0 else tensor)

    def nbytes(self) -> int:
        """Bytes of all tensors that are kept."""
        tensors = {id(tensor): tensor for _, _, tensor in self._tensors()}
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    def _parts(self, with_strengths: bool = False) -> dict[str, Any]:
        names = ("top", "random", "pool", "histograms", "sums", "pairs")
        strengths = {"strengths": self.random.strengths} if with_strengths else {}
        return {name: getattr(self, name) for name in names} | strengths

    def _tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        for part, holder in self._parts(with_strengths=True).items():
            yield from ((part, name, value) for name, value in vars(holder).items() if isinstance(value, Tensor))


def kept_bytes(d_sae: int, counts: ExampleCounts) -> int:
    """An upper bound of [`LatentState.nbytes`], however many tokens are read.

    Per context 20 bytes and 8 for each of its `2 * window + 1` tokens; per latent `top + reservoir` contexts, two histograms
    of 1032 bytes, 136 bytes of counts and sums, and a byte for each window of the pool; for the pairs of latents, 4 bytes each up to 1
    GiB, else 16 bytes for each of 256 partners.
    """
    width = 2 * counts.window + 1
    contexts = (counts.top + counts.reservoir) * (20 + 8 * width)
    return d_sae * (contexts + 2 * 1032 + 136 + counts.pool) + counts.pool * (16 + 4 * width) + pair_bytes(d_sae)
