"""Which latents fire on a prompt, and four ways to say which of them fires most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tokens import token_texts
from ..top import hidden_at, text_ids


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...models.modeling_sae import SAE

_TOKENS_AT_ONCE = 256


@dataclass(frozen=True)
class Firing:
    """The non-zero latents of one text, BOS left out.

    Args:
        ids (`Tensor`): `[tokens]`, of the whole text.
        rows (`Tensor`), latents (`Tensor`), values (`Tensor`): `[nnz]` each, in the order of tokens; rows count all tokens.
        read (`int`): tokens without BOS.
        d_sae (`int`): number of latents.
    """

    ids: Tensor
    rows: Tensor
    latents: Tensor
    values: Tensor
    read: int
    d_sae: int

    def sums(self, values: Tensor) -> Tensor:
        """`[d_sae]`: for each latent the sum of what `values`, `[nnz]`, has for it."""
        return torch.zeros(self.d_sae, dtype=torch.float64).index_add_(0, self.latents, values.double())

    def peaks(self) -> tuple[Tensor, Tensor]:
        """`[d_sae]` each: the strongest activation of each latent by size, with its sign, and on which token (0 if none)."""
        size = torch.zeros(self.d_sae).scatter_reduce(0, self.latents, self.values.abs(), "amax")
        strongest = self.values.abs() == size[self.latents]
        where = torch.full((self.d_sae,), len(self.ids)).scatter_reduce(
            0, self.latents[strongest], self.rows[strongest], "amin"
        )
        first = strongest & (self.rows == where[self.latents])
        value = torch.zeros(self.d_sae).scatter(0, self.latents[first], self.values[first])
        return value, torch.where(size > 0, where, 0)


@dataclass(frozen=True)
class Activity:
    """What each latent did on a text, beside what is known of it; `[d_sae]` each.

    Args:
        maximum (`Tensor`): size of its strongest activation.
        total (`Tensor`): sum of the sizes of its activations.
        tokens (`int`): how many were read, BOS not counted.
        recorded (`Tensor`): size of its strongest activation in the dataset.
        density (`Tensor`): share of tokens on which it fires in the dataset, above 0.
    """

    maximum: Tensor
    total: Tensor
    tokens: int
    recorded: Tensor
    density: Tensor


Order = Callable[[Activity], Tensor]


class Maximum:
    """By the strongest activation."""

    def __call__(self, activity: Activity) -> Tensor:
        """Scores `[d_sae]`."""
        return activity.maximum


class Total:
    """By the sum over tokens."""

    def __call__(self, activity: Activity) -> Tensor:
        """Scores `[d_sae]`."""
        return activity.total


class Mean:
    """By the mean over tokens, those on which it does not fire included."""

    def __call__(self, activity: Activity) -> Tensor:
        """Scores `[d_sae]`."""
        return activity.total / max(activity.tokens, 1)


class TfIdf:
    """By the strongest activation as a share of the latent's maximum, times minus the logarithm of its density.

    What fires everywhere counts little, as common words do in tf-idf.
    """

    def __call__(self, activity: Activity) -> Tensor:
        """Scores `[d_sae]`."""
        share = activity.maximum / torch.maximum(activity.recorded, activity.maximum).clamp(min=1e-30)
        return share * -activity.density.log()


@torch.no_grad()
def firing(sae: SAE, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Firing:
    """The latents that fire on a text.

    Raises:
        DataError: for an empty text, or one that is longer than the host reads.
        HookPointError: if the host has no such place, or it has another width.
    """
    ids = text_ids(tokenizer, host, text)
    hidden = hidden_at(host, sae, input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    kept = (ids[0] != (-1 if tokenizer.bos_token_id is None else tokenizer.bos_token_id)).nonzero().squeeze(1)
    parts = list(_codes(sae, hidden, kept))
    rows, latents, values = (torch.cat(part) for part in zip(*parts, strict=True)) if parts else _nothing()
    return Firing(ids[0].cpu(), rows, latents, values, len(kept), sae.config.d_sae)


def _codes(sae: SAE, hidden: Tensor, kept: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for where in kept.split(_TOKENS_AT_ONCE):
        if len(where):
            rows, latents, values = (part.cpu() for part in sae.encode_sparse(hidden[where.to(hidden.device)]).flat())
            yield where[rows], latents, values.float()


def _nothing() -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0)


def peak_text(
    tokenizer: PreTrainedTokenizerBase, found: Firing, place: int, window: int = 8
) -> tuple[str, tuple[int, int]]:
    """The text around a token, and where in it the token stands."""
    start = max(0, place - window)
    tokens = token_texts(tokenizer, found.ids[start : place + window + 1].tolist())
    before = "".join(tokens[: place - start])
    return "".join(tokens), (len(before), len(before) + len(tokens[place - start]))
