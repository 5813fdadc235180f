"""Every latent before and after, on the same tokens: sums over tokens, and over documents of the change in each.

* Memory grows with the latents and with what fires in the documents that are not yet read to their end, never with tokens times
  latents or documents times latents: a document that is complete becomes three sums per latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.sparse_code import SparseCode
from .samples import Sample
from .significance import Clusters


MEASURES = ("rate", "mean")  # whether a latent fires, and its activation


class PairedSums:
    """What is accumulated about the latents of two runs over one sample.

    Args:
        sample ([`Sample`]): all of its batches, which are then added in their order.
        d_sae (`int`): number of latents.

    Attributes:
        clusters ([`Clusters`]): the documents.
        totals (`Tensor`): `[2, 2, d_sae]`, by run (before, after) and measure, over all kept tokens.
        energy (`Tensor`): `[2, d_sae]`, squared activations by run.
        squares, products (`Tensor`): `[2, d_sae]` by measure, as [`Clusters.standard_error`] takes them.
    """

    def __init__(self, sample: Sample, d_sae: int) -> None:
        kept = [batch.documents_known[batch.keep_known] for batch in sample.batches]
        self.documents, counts = torch.cat(kept).unique(return_counts=True)
        self.clusters = Clusters(counts.double())
        self._last = torch.zeros(len(counts), dtype=torch.long)  # the batch that a document ends in
        for number, documents in enumerate(kept):
            self._last[torch.searchsorted(self.documents, documents.unique())] = number
        self.d_sae, self._added = d_sae, 0
        self.totals = torch.zeros(2, 2, d_sae, dtype=torch.float64)
        self.energy, self.squares, self.products = torch.zeros(3, 2, d_sae, dtype=torch.float64)
        self._open = torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.float64)

    def add(self, documents: Tensor, before: SparseCode, after: SparseCode) -> None:
        """Take in the next batch of the sample.

        Args:
            documents (`Tensor`): `[tokens]`, the document of each kept token.
            before, after ([`SparseCode`]): of these tokens.
        """
        document = torch.searchsorted(self.documents, documents)
        keys, changes = [self._open[0]], [self._open[1]]
        for run, code in enumerate((before, after)):
            rows, latents, values = (part.cpu() for part in code.flat())
            values = values.double()
            measures = torch.stack([torch.ones_like(values), values], dim=-1)
            self.totals[run].index_add_(1, latents, measures.T)
            self.energy[run].index_add_(0, latents, values.square())
            keys.append(document[rows] * self.d_sae + latents)
            changes.append(measures if run else -measures)
        found, inverse = torch.cat(keys).unique(return_inverse=True)
        sums = torch.zeros(len(found), 2, dtype=torch.float64).index_add_(0, inverse, torch.cat(changes))
        ended = self._last[found // self.d_sae] <= self._added
        self._close(found[ended], sums[ended])
        self._open = found[~ended], sums[~ended]
        self._added += 1

    def _close(self, keys: Tensor, changes: Tensor) -> None:
        document, latents = keys // self.d_sae, keys % self.d_sae
        weights, sizes = self.clusters.weights[document, None], self.clusters.sizes[document, None]
        self.squares.index_add_(1, latents, (weights * changes.square()).T)
        self.products.index_add_(1, latents, (weights * changes * sizes).T)

    @property
    def fired(self) -> Tensor:
        """`[d_sae]`: whether a latent fired at all, before or after."""
        return self.totals[:, 0].sum(0) > 0

    def standard_errors(self) -> Tensor:
        """`[2, d_sae]`, of the change per token of each measure."""
        return self.clusters.standard_error(self.totals[1] - self.totals[0], self.squares, self.products)

    def effect(self) -> Tensor:
        """`[d_sae]`: the change of the mean activation in standard deviations over tokens (Cohen's d).

        The variance is the average of those before and after. 0 where nothing changed.
        """
        n = self.clusters.tokens
        means = self.totals[:, 1] / n
        change = means[1] - means[0]
        variance = (self.energy / n - means.square()).clamp_min(0).mean(0)
        return torch.where(change == 0, 0.0, change / variance.sqrt())
