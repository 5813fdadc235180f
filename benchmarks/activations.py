"""The activations every implementation is trained on: planted ones of known structure, or a cache of real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Planted:
    """Activations with a known dictionary, shaped like a residual stream.

    `x = mean + sum of a few of `n_features` directions + a dense part of low rank + noise`. Which directions fire follows
    Zipf's law, so that some are common and most are rare; amplitudes are 1 plus an exponential.
    """

    d: int
    n_features: int
    active: int = 24
    rank: int = 16
    zipf_shift: float = 20.0
    dense_share: float = 0.15
    noise_share: float = 0.05
    mean_norm: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        # far from the small seeds of implementations: the same stream would hand the dictionary to their random rows
        generator = torch.Generator().manual_seed(self.seed + 7_919_000_001)
        self.dictionary = F.normalize(torch.randn(self.n_features, self.d, generator=generator), dim=-1)
        self.subspace = torch.linalg.qr(torch.randn(self.d, self.rank, generator=generator)).Q.T
        self.mean = F.normalize(torch.randn(self.d, generator=generator), dim=-1)
        self.rates = 1 / (torch.arange(self.n_features) + self.zipf_shift)

    def sample(self, n_tokens: int, seed: int) -> Tensor:
        """`[n_tokens, d]`, the total variance of a token about 1."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        return torch.cat([self._chunk(min(8192, n_tokens - i), generator) for i in range(0, n_tokens, 8192)])

    def _chunk(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.rates.expand(n, -1), self.active, replacement=True, generator=generator)
        amplitude = 1 + torch.empty(n, self.active).exponential_(generator=generator)
        x = F.embedding_bag(which, self.dictionary, per_sample_weights=amplitude, mode="sum")
        # E[(1 + e)^2] = 5 for each of the `active` unit directions
        x = x * ((1 - self.dense_share - self.noise_share) / (5 * self.active)) ** 0.5
        dense = torch.randn(n, self.rank, generator=generator) @ self.subspace * (self.dense_share / self.rank) ** 0.5
        noise = torch.randn(n, self.d, generator=generator) * (self.noise_share / self.d) ** 0.5
        return x + dense + noise + self.mean_norm * self.mean


def write_planted(path: Path, *, d: int, d_sae: int, n_train: int, n_held_out: int, seed: int = 0) -> None:
    """Writes `train` and `held_out` of a [`Planted`] source with `4 * d_sae` directions."""
    source = Planted(d=d, n_features=4 * d_sae, seed=seed)
    # in units of a real residual stream: a root mean square of about 1 per dimension
    tensors = {"train": source.sample(n_train, 1) * d**0.5, "held_out": source.sample(n_held_out, 2) * d**0.5}
    save_file(tensors, path)


def write_from_cache(path: Path, cache: Path, *, train: str, held_out: str, n_train: int, n_held_out: int) -> None:
    """Writes `train` and `held_out` from two tensors `[tokens, d]` of a safetensors file, at a root mean square of 1.

    Raises:
        KeyError: if the file lacks one of them; SystemExit with the names it has is the caller's choice.
    """
    tensors = load_file(cache)
    missing = [name for name in (train, held_out) if name not in tensors]
    if missing:
        raise KeyError(f"{cache} has no tensor {missing[0]!r}; it has {', '.join(tensors)}.")
    if tensors[train].shape[0] < n_train:
        raise KeyError(f"{train!r} has {tensors[train].shape[0]} tokens, the run needs {n_train}. Lower --steps.")
    chosen = {"train": tensors[train][:n_train].float(), "held_out": tensors[held_out][:n_held_out].float()}
    # one number for all, as most libraries expect inputs of a norm near sqrt(d); FVU does not change with it
    scale = chosen["train"].square().mean().rsqrt()
    save_file({name: (tensor * scale).contiguous() for name, tensor in chosen.items()}, path)
