"""Which latents tell two sets of texts apart: difference of mean activations, in units of their spread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import DataError
from .firing import firing


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...models.modeling_sae import SAE

MAX_EFFECT = 1000.0  # of a latent that never varies within the sets and differs between them


@dataclass
class Moments:
    """Count of tokens, sums and sums of squares of activations, `[d_sae]` in float64: what is kept of any number of texts.

    Args:
        total (`Tensor`), squares (`Tensor`): of all latents.
        tokens (`int`): BOS not counted.
    """

    total: Tensor
    squares: Tensor
    tokens: int = 0

    @classmethod
    def of(
        cls, texts: Iterable[str], sae: SAE, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> Moments:
        """Reads texts one after the other.

        Raises:
            DataError: if there are fewer than two tokens, a text is empty or longer than the host reads.
        """
        if isinstance(texts, str):
            raise DataError(f"{name}= is one text: give a list of texts, such as [{texts[:20]!r}].")
        moments = cls(*torch.zeros(2, sae.config.d_sae, dtype=torch.float64))
        for text in tqdm(texts, desc=name, unit="text", delay=2, leave=False):
            found = firing(sae, host, tokenizer, text)
            moments.total += found.sums(found.values)
            moments.squares += found.sums(found.values.double() ** 2)
            moments.tokens += found.read
        if moments.tokens < 2:
            raise DataError(f"{name}= has {moments.tokens} tokens apart from BOS: give at least 2.")
        return moments

    @property
    def mean(self) -> Tensor:
        """`[d_sae]`."""
        return self.total / self.tokens

    @property
    def deviations(self) -> Tensor:
        """`[d_sae]`: sum of squared deviations from the mean."""
        return (self.squares - self.total**2 / self.tokens).clamp(min=0)


def standardised_difference(a: Moments, b: Moments) -> Tensor:
    """`[d_sae]`: difference of the means of two sets over their pooled standard deviation (Cohen's d), tokens as units.

    Tokens of one text depend on one another, so it is a size and no test of significance.
    """
    difference = a.mean - b.mean
    pooled = (
        ((a.deviations + b.deviations) / (a.tokens + b.tokens - 2)).sqrt()
        if a.tokens + b.tokens > 2
        else 0 * difference
    )
    # below it, the spread is rounding of the sums
    rounding = 1e-7 * (a.mean.abs() + b.mean.abs())
    effect = torch.where(pooled > rounding, difference / pooled.clamp(min=1e-300), MAX_EFFECT * difference.sign())
    return effect.clamp(-MAX_EFFECT, MAX_EFFECT)
