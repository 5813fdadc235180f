"""The contexts in which latents are strongest, gathered in one pass and bounded memory.

* What is kept does not grow with the number of tokens read: per latent `n_examples` windows of 25 tokens and two counts.
* Equal windows count once: the header of a licence that stands in a thousand files is one example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data import TokenBatch, TokenDataset
from ..errors import DataError
from ..terminal import Strip
from .contexts import ABSENT, ContextStore
from .tokens import special_ids, token_texts
from .top import hidden_at


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.modeling_sae import SAE


@dataclass(frozen=True)
class Example:
    """One context of a latent.

    Args:
        tokens (`list` of `str`): the tokens around the peak, all of one document.
        token_ids (`list` of `int`): their ids.
        activations (`list` of `float`): of the latent, 0 where it does not fire or was not read (BOS).
        peak (`int`): index of the strongest token in this list.
        document (`int`): number of the record in the dataset.
        special (`set` of `int`): indices of special tokens.
    """

    tokens: list[str]
    token_ids: list[int]
    activations: list[float]
    peak: int
    document: int
    special: frozenset[int]

    @property
    def is_negative(self) -> bool:
        """Whether the latent is below zero at the peak."""
        return bool(self.activations) and self.activations[self.peak] < 0

    def __str__(self) -> str:
        return str(Strip(self.tokens, self.activations, peak=self.peak, special=self.special))


@dataclass(frozen=True)
class LatentExamples:
    """The strongest contexts of a latent and how often it fires.

    Args:
        latent (`int`): which.
        examples (`list` of [`Example`]): strongest first (by absolute activation); half of them of either sign where the
            latent fires with both.
        density (`float`): share of the tokens on which it fires.
        maximum (`float`): its strongest activation, with its sign; 0 if it never fired.
        tokens (`int`): how many tokens were read.
    """

    latent: int
    examples: list[Example]
    density: float
    maximum: float
    tokens: int

    def ends(self) -> list[list[Example]]:
        """The examples of each sign that there is, those of the strongest first."""
        signs = dict.fromkeys(example.is_negative for example in self.examples)
        return [[example for example in self.examples if example.is_negative == sign] for sign in signs]

    def strongest(self, n: int) -> list[Example]:
        """`n` examples; the other sign takes half of the places where there is one."""
        ends = self.ends()
        if len(ends) == 2:
            other = min(len(ends[1]), n // 2)
            return [*ends[0][: n - other], *ends[1][:other]]
        return self.examples[:n]


class TopContexts(Mapping[int, LatentExamples]):
    """[`LatentExamples`] by latent; texts are made when one is looked at.

    Args:
        store ([`ContextStore`]): what was gathered.
        tokenizer: of the host.
    """

    def __init__(self, store: ContextStore, tokenizer: Any) -> None:
        self.store, self.tokenizer = store, tokenizer
        self.column = {latent: column for column, latent in enumerate(store.latents.tolist())}

    def __iter__(self) -> Iterator[int]:
        return iter(self.column)

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, latent: int) -> LatentExamples:
        column, store = self.column[latent], self.store
        examples = [self._example(column, rank) for rank in range(store.n_examples) if store.values[column, rank] != 0]
        density = float(store.fired[column]) / max(store.tokens, 1)
        return LatentExamples(latent, examples, density, float(store.values[column, 0]), store.tokens)

    def _example(self, column: int, rank: int) -> Example:
        store, special = self.store, special_ids(self.tokenizer)
        inside = (store.windows[column, rank] != ABSENT).tolist()
        ids = [i for i, here in zip(store.windows[column, rank].tolist(), inside, strict=True) if here]
        activations = [a for a, here in zip(store.activations[column, rank].tolist(), inside, strict=True) if here]
        return Example(
            token_texts(self.tokenizer, ids),
            ids,
            activations,
            sum(inside[: store.window]),
            int(store.documents[column, rank]),
            frozenset(place for place, index in enumerate(ids) if index in special),
        )


@torch.no_grad()
def top_contexts(
    sae: SAE,
    host: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    latents: Sequence[int] | None = None,
    *,
    n_tokens: int = 100_000,
    n_examples: int = 10,
    window: int = 12,
    progress: bool = True,
    **data: Any,
) -> TopContexts:
    """Reads text and keeps the contexts in which each latent is strongest, one per document and row, without repeats.

    Memory: about `8 * len(latents) * n_examples * (2 * window + 1)` bytes, however many tokens are read.

    Args:
        sae ([`SAE`]): the autoencoder; its `hook_in` is read.
        host (`PreTrainedModel`): the model it belongs to.
        tokenizer: of the host.
        dataset: what [`TokenDataset`] takes: a Hub id, a file, a list of texts…
        latents (`list` of `int`, *optional*): which; `None` gives all that fired.
        n_tokens (`int`): read so many and the rest of their batch, BOS and padding not counted.
        n_examples (`int`): contexts per latent.
        window (`int`): tokens shown on each side of the peak.
        progress (`bool`): show a bar, in tokens.
        data: for [`TokenDataset`]: `context_length`, `batch_size`, `packed`, `positions`, `column`, `split`, `seed`.

    Raises:
        DataError: if the dataset is empty.
        HookPointError: if the host has no such place of that width.
        ValueError: for a latent that does not exist, or no examples to keep.
    """
    store = ContextStore(_chosen(latents, sae.config.d_sae), sae.config.d_sae, n_examples, window)
    with tqdm(total=n_tokens, desc="features", unit="tok", disable=not progress) as bar:
        for batch in TokenDataset(dataset, tokenizer, **data):
            _add(store, sae, host, batch)
            bar.update(min(store.tokens, n_tokens) - bar.n)
            if store.tokens >= n_tokens:
                break
    if store.tokens == 0:
        raise DataError("the dataset has no tokens apart from BOS and padding. Give some text.")
    return TopContexts(store.without_silent() if latents is None else store, tokenizer)


def _chosen(latents: Sequence[int] | None, d_sae: int) -> Tensor:
    if latents is None:
        return torch.arange(d_sae)
    outside = [latent for latent in latents if not 0 <= latent < d_sae]
    if outside:
        raise ValueError(
            f"latent {outside[0]} does not exist: this autoencoder has d_sae={d_sae}. Give 0 to {d_sae - 1}."
        )
    return torch.tensor(list(dict.fromkeys(latents)), dtype=torch.long)


def _add(store: ContextStore, sae: SAE, host: PreTrainedModel, batch: TokenBatch) -> None:
    hidden = hidden_at(host, sae, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    where = batch.keep.flatten().nonzero().squeeze(1)
    if len(where):
        kept = hidden.flatten(0, 1)[where.to(hidden.device)]
        rows, latents, values = (part.cpu() for part in sae.encode_sparse(kept).flat())
        store.add(batch, where[rows], latents, values)
