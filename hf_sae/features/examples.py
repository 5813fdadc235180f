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

from ..errors import DataError
from ..terminal import Strip
from .tokens import special_ids, token_texts
from .top import hidden_at


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import TokenBatch
    from ..models.modeling_sae import SAE


_ABSENT = -1


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

    def __str__(self) -> str:
        return str(Strip(self.tokens, self.activations, peak=self.peak, special=self.special))


@dataclass(frozen=True)
class LatentExamples:
    """The strongest contexts of a latent and how often it fires.

    Args:
        latent (`int`): which.
        examples (`list` of [`Example`]): strongest first (by absolute activation).
        density (`float`): share of the tokens on which it fires.
        maximum (`float`): its strongest activation, with its sign; 0 if it never fired.
        tokens (`int`): how many tokens were read.
    """

    latent: int
    examples: list[Example]
    density: float
    maximum: float
    tokens: int


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
        inside = (store.windows[column, rank] != _ABSENT).tolist()
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


class ContextStore:
    """The strongest windows of some latents, merged batch by batch.

    Args:
        latents (`Tensor`): `[n]`, which latents.
        d_sae (`int`): how many there are.
        n_examples (`int`): windows kept per latent.
        window (`int`): tokens on each side of the peak.
    """

    def __init__(self, latents: Tensor, d_sae: int, n_examples: int, window: int) -> None:
        n, width = len(latents), 2 * window + 1
        self.latents, self.n_examples, self.window, self.tokens = latents, n_examples, window, 0
        self.column = torch.full((d_sae,), -1)
        self.column[latents] = torch.arange(n)
        self.fired = torch.zeros(n, dtype=torch.long)
        self.values = torch.zeros(n, n_examples)
        self.documents = torch.full((n, n_examples), _ABSENT)
        self.windows = torch.full((n, n_examples, width), _ABSENT, dtype=torch.int32)
        self.activations = torch.zeros(n, n_examples, width)

    def add(self, batch: TokenBatch, tokens: Tensor, latents: Tensor, values: Tensor) -> None:
        """Takes in one batch.

        Args:
            batch ([`TokenBatch`]): on the CPU.
            tokens (`Tensor`): `[nnz]`, position in the flattened batch of each non-zero latent, kept tokens only.
            latents (`Tensor`): `[nnz]`, which latent.
            values (`Tensor`): `[nnz]`, its activation.
        """
        self.tokens += int(batch.keep.sum())
        columns = self.column[latents]
        wanted = columns >= 0
        tokens, columns, values = tokens[wanted], columns[wanted], values[wanted].float()
        self.fired += torch.bincount(columns, minlength=len(self.fired))
        if not len(columns):
            return
        peaks = _peaks(_contexts(batch), tokens, columns, values)
        where = self._windows(batch, tokens[peaks])
        # one sorted key per non-zero latent finds the activations of a latent along its window
        size = batch.input_ids.numel()
        keys, order = (columns * size + tokens).sort()
        wanted_keys = columns[peaks, None] * size + where
        found = torch.searchsorted(keys, wanted_keys).clamp(max=len(keys) - 1)
        hit = (keys[found] == wanted_keys) & (where != _ABSENT)
        activations = torch.where(hit, values[order[found]], 0.0)
        ids = torch.where(where == _ABSENT, _ABSENT, batch.input_ids.flatten()[where.clamp(min=0)]).int()
        documents = batch.documents.flatten()[tokens[peaks]]
        self._merge(columns[peaks], values[peaks], documents, ids, activations)

    def _windows(self, batch: TokenBatch, peaks: Tensor) -> Tensor:
        """`[peaks, width]`: flat positions around each peak, `_ABSENT` outside its row, its document and the text."""
        length = batch.input_ids.shape[1]
        where = peaks[:, None] + torch.arange(-self.window, self.window + 1)
        inside = (where >= 0) & (where < batch.input_ids.numel()) & (where // length == peaks[:, None] // length)
        safe = where.clamp(0, batch.input_ids.numel() - 1)
        documents, real = batch.documents.flatten(), batch.attention_mask.flatten() != 0
        inside &= (documents[safe] == documents[peaks, None]) & real[safe]
        return torch.where(inside, where, _ABSENT)

    def _merge(self, columns: Tensor, values: Tensor, documents: Tensor, ids: Tensor, activations: Tensor) -> None:
        """Keeps the strongest `n_examples` different windows of what is kept and what is new."""
        touched, group = columns.unique(return_inverse=True)
        kept_group = torch.arange(len(touched)).repeat_interleave(self.n_examples)
        group = torch.cat([kept_group, group])
        values = torch.cat([self.values[touched].flatten(), values])
        documents = torch.cat([self.documents[touched].flatten(), documents])
        ids = torch.cat([self.windows[touched].flatten(0, 1), ids])
        activations = torch.cat([self.activations[touched].flatten(0, 1), activations])
        # stable sorts, least important key first: by group, strongest first, and what was there before the new
        order = values.abs().sort(descending=True, stable=True).indices
        order = order[group[order].sort(stable=True).indices]
        order = order[_first_of_each(group[order], ids[order])]
        rank = _rank_in(group[order])
        order, rank = order[rank < self.n_examples], rank[rank < self.n_examples]
        row = touched[group[order]]
        for kept, fresh, empty in (
            (self.values, values, 0),
            (self.documents, documents, _ABSENT),
            (self.windows, ids, _ABSENT),
            (self.activations, activations, 0),
        ):
            kept[touched] = empty
            kept[row, rank] = fresh[order]


def _contexts(batch: TokenBatch) -> Tensor:
    """`[B * T]`: a number for each stretch of one document in one row."""
    changes = torch.ones_like(batch.documents, dtype=torch.bool)
    changes[:, 1:] = batch.documents[:, 1:] != batch.documents[:, :-1]
    return changes.flatten().cumsum(0) - 1


def _peaks(contexts: Tensor, tokens: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Which entries are the strongest of their latent in their context, the first of equals."""
    keys = columns * (int(contexts[-1]) + 1) + contexts[tokens]
    order = values.abs().sort(descending=True, stable=True).indices
    order = order[keys[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    return order[first]


def _first_of_each(group: Tensor, ids: Tensor) -> Tensor:
    """Mask of the first occurrence of each window in its group; rows that are empty pass."""
    both = torch.cat([group[:, None], ids.long()], dim=1)
    _, inverse = both.unique(dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(inverse)).scatter_reduce(
        0, inverse, torch.arange(len(inverse)), "amin"
    )
    return first[inverse] == torch.arange(len(inverse))


def _rank_in(group: Tensor) -> Tensor:
    """Position of each entry in its group, for sorted groups."""
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(group)) - starts[group]


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
    context_length: int = 128,
    batch_size: int = 16,
    column: str | None = None,
    split: str = "train",
) -> TopContexts:
    """Reads text and keeps the contexts in which each latent is strongest, one per document and context, without repeats.

    Memory: about `len(latents) * n_examples * (2 * window + 1) * 8` bytes, however many tokens are read.

    Args:
        sae ([`SAE`]): the autoencoder; its `hook_in` is read.
        host (`PreTrainedModel`): the model it belongs to.
        tokenizer: of the host.
        dataset: what [`TokenDataset`] takes: a Hub id, a file, a list of texts…
        latents (`list` of `int`, *optional*): which; `None` is all, and the result then has those that fired.
        n_tokens (`int`): read so many tokens, BOS and padding not counted (rounded up to whole batches), or all there are.
        n_examples (`int`): contexts per latent.
        window (`int`): tokens shown on each side of the peak.
        context_length (`int`): tokens per row.
        batch_size (`int`): rows per batch.
        column (`str`, *optional*): of the dataset.
        split (`str`): of the dataset.

    Raises:
        DataError: if the dataset is empty.
        HookPointError: if the host has no such place, or it has another width.
        ValueError: for a latent that does not exist, or counts below 1.
    """
    from ..data import TokenDataset

    if min(n_tokens, n_examples) < 1 or window < 0:
        raise ValueError(f"n_tokens={n_tokens}, n_examples={n_examples}, window={window}: give 1, 1 and 0 at least.")
    store = ContextStore(_chosen(latents, sae.config.d_sae), sae.config.d_sae, n_examples, window)
    options = {"context_length": context_length, "batch_size": batch_size, "column": column, "split": split}
    for batch in TokenDataset(dataset, tokenizer, **options):
        _add(store, sae, host, batch)
        if store.tokens >= n_tokens:
            break
    if store.tokens == 0:
        raise DataError("the dataset has no tokens apart from BOS and padding. Give some text.")
    if latents is None:
        store.drop_silent()
    return TopContexts(store, tokenizer)


def _chosen(latents: Sequence[int] | None, d_sae: int) -> Tensor:
    if latents is None:
        return torch.arange(d_sae)
    outside = [latent for latent in latents if not 0 <= latent < d_sae]
    if outside:
        raise ValueError(f"latent {outside[0]} does not exist: this autoencoder has d_sae={d_sae}. Give 0 to {d_sae - 1}.")
    return torch.tensor(list(dict.fromkeys(latents)), dtype=torch.long)


def _add(store: ContextStore, sae: SAE, host: PreTrainedModel, batch: TokenBatch) -> None:
    hidden = hidden_at(host, sae, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    where = batch.keep.flatten().nonzero().squeeze(1)
    if len(where):
        kept = hidden.flatten(0, 1)[where.to(hidden.device)]
        rows, latents, values = (part.cpu() for part in sae.encode_sparse(kept).flat())
        store.add(batch, where[rows], latents, values)
