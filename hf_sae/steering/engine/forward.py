"""One forward pass of the host over rows that are each edited by their own plan.

Hooks are entered before and left after each pass. Between two passes the host is as its owner knows it, and so it is for
everybody else after an exception.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...calls import CACHES
from ...hooks import Call, capture, edit
from ...hosts.towers import host_device, unwrap
from ..placed import PlacedEdits, RowEdits, places_of
from ..positions import bos_ids
from .rows import Row


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...models.modeling_sae import SAE


Latents = tuple[tuple[str, int, float], ...]  # of one token: autoencoder, latent, activation; strongest first


@dataclass(frozen=True)
class Output:
    """Logits `[rows, vocabulary]` after the last token of each row, and the strongest latents of that token."""

    logits: Tensor
    traces: list[Latents] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence[Output]) -> Output:
        """Several of them, in order."""
        return cls(torch.cat([part.logits for part in parts]), [trace for part in parts for trace in part.traces])


class HostForward:
    """Runs the host on the last tokens of rows.

    Args:
        host (`PreTrainedModel`): a causal language model.
        tokenizer: its tokenizer.
        saes (`dict`): autoencoders by the names that plans use; may be changed between two calls.
    """

    def __init__(self, host: PreTrainedModel, tokenizer: Any, saes: Mapping[str, SAE]) -> None:
        self.host, self.saes = host, saes
        self.bos = frozenset(bos_ids(host, tokenizer))
        self._takes = set(inspect.signature(unwrap(host).forward).parameters)
        self._padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row], tokens: int, cache: Any = None, cached: int = 0) -> Output:
        """Reads the last `tokens` tokens of each row; shorter rows are padded on the left.

        Args:
            rows (`list` of [`Row`]): the batch.
            tokens (`int`): of each row in this call.
            cache (`Cache`, *optional*): holds what comes before, and takes what is read.
            cached (`int`): its columns.

        Raises:
            Exception: whatever the host or an edit raises.
        """
        lengths = torch.tensor([len(row) for row in rows])
        columns = torch.arange(cached + tokens)
        mask = columns >= (len(columns) - lengths).unsqueeze(1)
        positions = (lengths.unsqueeze(1) - tokens + torch.arange(tokens)).clamp_min(0)
        ids = torch.tensor([self._padded(row, tokens) for row in rows])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
        inputs = {name: value.to(host_device(self.host)) for name, value in inputs.items() if name in self._takes}
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1
        if "use_cache" in self._takes:
            inputs["use_cache"] = cache is not None
        if cache is not None:
            inputs[next((name for name in CACHES if name in self._takes), CACHES[0])] = cache
        steered = torch.tensor([[False] * (tokens - n) + row.steered(n, self.bos) for row, n in _read(rows, tokens)])
        with ExitStack() as stack:
            acts = self._hook(stack, rows, steered)
            logits = self.host(**inputs).logits[:, -1]
        return Output(logits, self._traces(rows, acts, tokens))

    def _padded(self, row: Row, tokens: int) -> list[int]:
        ids = row.last(min(tokens, len(row)))
        return [self._padding] * (tokens - len(ids)) + ids

    def _hook(self, stack: ExitStack, rows: Sequence[Row], steered: Tensor) -> Mapping[str, Tensor]:
        """Enters the edits of all rows, and what keeps the activations that traces are made of."""

        def where(x: Tensor, call: Call) -> Tensor:
            return steered.to(x.device)

        for name, sae in self.saes.items():
            its = [row.plan.of(name) for row in rows]
            if any(its):
                for point, function in PlacedEdits(self.host, sae, RowEdits(None, its), where).hooks():
                    stack.enter_context(edit(self.host, point, function))
        if not any(row.trace for row in rows):
            return {}
        points = {places_of(self.host, self.saes[name])[0] for name in self._traced(rows)}
        return stack.enter_context(capture(self.host, *points))

    def _traced(self, rows: Sequence[Row]) -> list[str]:
        """The autoencoders that latents are looked up in: those that some plan of the batch names, or all."""
        named = {name for row in rows for name in row.plan.edits}
        return [name for name in self.saes if name in named] or list(self.saes)

    def _traces(self, rows: Sequence[Row], acts: Mapping[str, Tensor], tokens: int) -> list[Latents]:
        found: list[list[tuple[str, int, float]]] = [[] for _ in rows]
        wanted = [place for place, row in enumerate(rows) if row.trace]
        for name in self._traced(rows) if acts else ():
            sae = self.saes[name]
            hidden = acts[places_of(self.host, sae)[0]]
            last = hidden.reshape(len(rows), tokens, -1)[wanted, -1].to(sae.device)
            k = min(max(rows[place].trace for place in wanted), sae.config.d_sae)
            latents = sae.encode(last).float()
            for place, indices in zip(wanted, latents.abs().topk(k).indices.tolist(), strict=True):
                values = latents[wanted.index(place), indices].tolist()
                found[place] += [(name, j, value) for j, value in zip(indices, values, strict=True) if value]
        return [
            tuple(sorted(each, key=lambda one: -abs(one[2]))[: row.trace])
            for each, row in zip(found, rows, strict=True)
        ]


def _read(rows: Sequence[Row], tokens: int) -> list[tuple[Row, int]]:
    return [(row, min(tokens, len(row))) for row in rows]
