"""Choosing the next token of all variants of a request with the same random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from .request import Sampling


COLD = 1e-6  # below it noise decides between logits within 4e-5 only, and float32 cannot divide by it for long


class Sampler:
    """Adds the same Gumbel noise to every variant's log-probabilities (the Gumbel-max trick: Gumbel, 1954).

    The largest of log-probability + noise is a sample of the distribution. Variants with the same distribution take the same token,
    and those with similar ones mostly do, so a difference between two texts is one that the edits made.

    Args:
        sampling ([`Sampling`]): how.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> list[int]:
        """One token for each row of `logits` `[variants, vocabulary]`; call it once per step, in order."""
        if self.sampling.temperature < COLD:
            return logits.argmax(-1).tolist()
        scores = self._filtered(logits.float().cpu() / self.sampling.temperature)
        uniform = torch.rand(logits.shape[-1], generator=self._generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        return (scores + noise.float()).argmax(-1).tolist()

    def _filtered(self, scores: Tensor) -> Tensor:
        k, p = self.sampling.top_k, self.sampling.top_p
        if 0 < k < scores.shape[-1]:
            least = scores.topk(k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if p < 1:
            ordered, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered  # the first token is always kept
            drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
            scores = scores.masked_fill(drop, -torch.inf)
        return scores
