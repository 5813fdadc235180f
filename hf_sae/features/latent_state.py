"""All that is gathered of the latents of one autoencoder while text streams by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import TokenBatch
from ..errors import DataError
from .coactivation import FrequentPairs, PairTable, pair_bytes, pair_counter
from .contexts import ContextStore
from .histograms import GrowingHistograms
from .sampling import ContextPool, RandomContexts


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
        sums (`Tensor`): `[d_sae]`, of the activations.
        pairs ([`PairTable`] or [`FrequentPairs`]): which fire together.
    """

    def __init__(self, d_sae: int, counts: ExampleCounts, seed: int) -> None:
        latents = torch.arange(d_sae)
        self.d_sae = d_sae
        self.top = ContextStore(latents, d_sae, counts.top, counts.window)
        self.random = RandomContexts(latents, d_sae, counts.reservoir, counts.window, seed)
        self.pool = ContextPool(d_sae, counts.pool, counts.window, seed)
        self.histograms = GrowingHistograms(d_sae)
        self.sums = torch.zeros(d_sae, dtype=torch.float64)
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
        self.sums.scatter_add_(0, latents, values.double())
        self.histograms.add(latents, values)
        for store in (self.top, self.random):
            store.add(batch, tokens, latents, values)
        self.pool.add(batch, tokens, latents)
        self.pairs.add(tokens, latents)

    def nbytes(self) -> int:
        """Bytes of all tensors that are kept."""
        kept = (self, self.top, self.random, self.random.strengths, self.pool, self.histograms, self.pairs)
        tensors = {id(t): t for holder in kept for t in vars(holder).values() if isinstance(t, Tensor)}
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def kept_bytes(d_sae: int, counts: ExampleCounts) -> int:
    """An upper bound of [`LatentState.nbytes`], however many tokens are read.

    Per context 20 bytes and 8 for each of its `2 * window + 1` tokens; per latent `top + reservoir` contexts, two histograms
    of 1032 bytes, 64 bytes of counts and a byte for each window of the pool; for the pairs of latents, 4 bytes each up to 1
    GiB, else 16 bytes for each of 256 partners.
    """
    width = 2 * counts.window + 1
    contexts = (counts.top + counts.reservoir) * (20 + 8 * width)
    return d_sae * (contexts + 2 * 1032 + 64 + counts.pool) + counts.pool * (16 + 4 * width) + pair_bytes(d_sae)
