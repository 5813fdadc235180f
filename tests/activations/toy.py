"""A stream without a host, whose activations say which token they are, and a small host with its stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae.activations import ActivationStream, BatchStream, Rows, write_cache
from tests.toy_text import FIRST_WORD, WORDS, documents, tokenizer


WIDTHS = {"resid_post.0": 6, "mlp_in.0": 3}


class Counting(BatchStream):
    """Token t has the activations `table[point][t]`, the token id t and the document t // 7; `total` of them."""

    def __init__(self, total: int, seed: int = 0, widths: dict[str, int] | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._widths = widths or WIDTHS
        self.table = {p: torch.randn(total, w, generator=generator) * 3 + 1 for p, w in self._widths.items()}
        self.total, self.position, self.pulled = total, 0, 0

    widths = property(lambda self: self._widths)
    dtype = property(lambda self: next(iter(self.table.values())).dtype)
    counts = property(lambda self: {"served": self.position})

    def _rows(self, start: int, stop: int) -> Rows:
        stop = min(stop, self.total)
        numbers = torch.arange(start, stop, dtype=torch.int32)
        ids = torch.stack([numbers, numbers // 7], dim=1)
        return Rows({p: x[start:stop].clone() for p, x in self.table.items()}, ids)

    def batches(self, tokens_per_batch: int, total: int | None = None) -> Iterator[Rows]:
        end = self.total if total is None else min(self.position + total, self.total)
        while self.position < end:
            rows = self._rows(self.position, min(self.position + tokens_per_batch, end))
            self.position += rows.count
            self.pulled += 1
            yield rows

    def sample(self, n_tokens: int) -> Rows:
        return self._rows(self.position, self.position + n_tokens)

    def info(self) -> dict[str, Any]:
        return {"hook_points": {p: p for p in self.widths}, "base_model": "org/toy", "seed": 0, "counts": self.counts}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "marker": torch.tensor([self.position])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]
        assert state["marker"].item() == self.position


def cache(folder: Path, total: int = 100, rows: int = 30, **options: Any) -> Counting:
    """A cache of the first `total` tokens; returns the stream that it was written from."""
    stream = Counting(total)
    write_cache(stream, folder, total, rows_per_shard=rows, disable_tqdm=True, **options)
    return stream


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def served(stream: BatchStream, size: int, limit: int | None = None) -> list[int]:
    """The token ids that a stream serves."""
    got: list[int] = []
    for rows in stream.batches(size):
        got += rows.token_ids.tolist()
        if limit is not None and len(got) >= limit:
            break
    return got


def tiny_host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=FIRST_WORD + WORDS,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def live(host: LlamaForCausalLM | None = None, count: int = 60, **options: Any) -> ActivationStream:
    chosen = {"context_length": 16, "batch_size": 2, "ring_bytes": 20_000, **options}
    points = chosen.pop("hook_points", ["resid_post.1", "mlp_in.1"])
    return ActivationStream(host or tiny_host(), tokenizer(), documents(count), points, **chosen)
