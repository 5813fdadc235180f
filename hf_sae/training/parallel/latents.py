"""Each process owns a range of latents with its optimiser state, and computes with the batch of all processes.

A weight's gradient is complete where the weight is: nothing of the size of the weights is ever sent. What is sent per
token is its activation, k candidate values and a partial reconstruction. What every process holds (decoder bias, skip)
gets its gradients right by the pair of Shoeybi et al. 2019 (Megatron-LM, arXiv:1909.08053, section 3): a sum forward that is the
identity backward, and an identity forward that is a sum backward.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import CheckpointError, ConfigError
from ...models import SAE
from ...models.dictionary import WholeDictionary
from ..optimizer import RowAdam
from . import rows
from .data import Batch, DataParallel, unpack
from .processes import Processes


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, partial, processes):
        return processes.sum_(partial.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad, None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, processes):
        ctx.processes = processes
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return ctx.processes.sum_(grad.clone(memory_format=torch.contiguous_format)), None


class SharedDictionary(WholeDictionary):
    """A range of latents; the rest is in the other processes.

    Args:
        processes ([`Processes`]): that hold the dictionary together.
        widths (`list[int]`): latents in each of them.
    """

    whole = False

    def __init__(self, processes: Processes, widths: list[int]) -> None:
        self.processes, self.widths = processes, widths

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedDictionary:
        return self  # a process group cannot be copied

    def choose(self, values: Tensor, indices: Tensor, k: int, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Exact: the k-th largest of all candidates is the threshold; of equal ones the lowest latents are taken."""
        shape, columns = indices.shape[:-1], indices.shape[-1]
        # by latent, so that position in the gathered values is order of latents
        n = math.prod(shape)  # -1 would be ambiguous where a process has no candidate
        indices, order = indices.reshape(n, columns).sort(dim=-1)
        values = values.reshape(n, columns).gather(-1, order)
        ranked = values.detach() if scores is None else scores.reshape(n, columns).gather(-1, order)
        chosen = self._of_tokens(ranked, k)
        # the chosen ones first, and only as many columns as the fullest row has
        fullest = max(1, int(chosen.sum(-1).max())) if chosen.numel() else min(1, columns)
        order = chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :fullest]
        values = values.gather(-1, order).masked_fill(~chosen.gather(-1, order), -torch.inf)
        return values.view(*shape, fullest), indices.gather(-1, order).view(*shape, fullest)

    def _of_tokens(self, ranked: Tensor, k: int) -> Tensor:
        n, columns = ranked.shape
        longest = min(k, max(self.widths))
        own = ranked.new_full((n, longest), -torch.inf)
        own[:, :columns] = ranked
        every = self.processes.gather_rows(own, [n] * self.processes.size).view(self.processes.size, n, longest)
        start = self.processes.rank * longest
        return _largest(every.transpose(0, 1).reshape(n, -1), k)[:, start : start + columns]

    def among(self, values: Tensor, count: int) -> Tensor:
        """Exact, as [`choose`]; of equal values those of the first processes are taken."""
        sizes = [row[0] for row in self.processes.exchange(len(values))]
        if sum(sizes) <= count:
            return torch.ones_like(values, dtype=torch.bool)
        start = sum(sizes[: self.processes.rank])
        return _largest(self.processes.gather_rows(values, sizes), count)[start : start + len(values)]

    def sum(self, partial: Tensor) -> Tensor:
        """All-reduce forward, identity backward."""
        return _SumForward.apply(partial, self.processes)

    def copy(self, tensor: Tensor) -> Tensor:
        """Identity forward, all-reduce backward."""
        return _SumBackward.apply(tensor, self.processes)

    def count(self, mask: Tensor) -> int:
        """Over all processes."""
        return sum(row[0] for row in self.processes.exchange(int(mask.sum())))

    def least(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return -self.processes.max_(-value)

    @property
    def first(self) -> int:
        """Where this process's range starts."""
        return sum(self.widths[: self.processes.rank])


def _largest(values: Tensor, k: int) -> Tensor:
    """Mask of the `k` largest along the last dimension, of equal ones the first."""
    threshold = values.topk(min(k, values.shape[-1]), dim=-1).values[..., -1:]
    above, equal = values > threshold, values == threshold
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


class SharedLatents(DataParallel):
    """Latents in contiguous ranges, as equal as they can be; an SAE object holds its process's range only.

    Args:
        processes ([`Processes`]): of the run.
        saes (`dict[str, SAE]`): all that are trained.

    Raises:
        ConfigError: for an architecture that cannot be shared out, or with fewer latents than processes.
    """

    def __init__(self, processes: Processes, saes: dict[str, SAE]) -> None:
        super().__init__(processes, saes)
        for name, sae in saes.items():
            self._check(name, sae)

    def _check(self, name: str, sae: SAE) -> None:
        cls, advice = type(sae), "Train it with parallelism='data', or with 'saes' beside others."
        if "per_latent" not in vars(cls) or not cls.per_latent:
            raise ConfigError(
                f"{name} is a {cls.__name__}, whose latents cannot be shared out among processes. {advice}"
            )
        unknown = [key for key, _ in sae.named_parameters() if key not in (*cls.per_latent, *cls.held_by_all)]
        unknown += [key for key, _ in sae.named_buffers() if key not in cls.held_by_all]
        if unknown:
            raise ConfigError(
                f"{name}: {unknown[0]!r} is neither a row per latent nor shared by all processes. {advice}"
            )
        if sae.config.d_sae < self.processes.size:
            raise ConfigError(
                f"{name} has d_sae={sae.config.d_sae}, fewer than the {self.processes.size} processes. {advice}"
            )

    def bounds(self, d_sae: int) -> list[int]:
        """Where the range of each process starts, and the end: `processes + 1` numbers."""
        return [d_sae * rank // self.processes.size for rank in range(self.processes.size + 1)]

    def latents(self, sae: SAE) -> tuple[int, int]:
        """The range of this process."""
        bounds = self.bounds(sae.config.d_sae)
        return bounds[self.processes.rank], bounds[self.processes.rank + 1]

    def place(self, name: str, sae: SAE) -> None:
        """Cuts an SAE down to this process's latents, with the weights of the first process."""
        bounds, device = self.bounds(sae.config.d_sae), self.processes.device
        for key, parameter in list(sae.named_parameters()):
            if key not in sae.per_latent:
                parameter.data = self.processes.broadcast_(parameter.data.to(device))
                continue
            own = parameter.data
            for rank in range(self.processes.size):
                piece = parameter.data[bounds[rank] : bounds[rank + 1]].to(device, copy=True)
                self.processes.broadcast_(piece)
                own = piece if rank == self.processes.rank else own
            module, _, leaf = key.rpartition(".")
            setattr(sae.get_submodule(module), leaf, nn.Parameter(own, requires_grad=parameter.requires_grad))
        for buffer in sae.buffers():
            buffer.data = self.processes.broadcast_(buffer.data.to(device))
        sae.decoder.dictionary = SharedDictionary(self.processes, [b - a for a, b in pairwise(bounds)])

    def batch(self, batch: Batch, counts: list[int]) -> Batch:
        """The shares of all processes: each latent sees every token."""
        parts, join = unpack(batch)
        return join([self.processes.gather_rows(part.to(self.processes.device), counts) for part in parts])

    def sum_losses(self, fired: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Losses are of the whole batch already, and firing is counted where the latent is."""
        return fired, losses

    def sum_statistics(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """They are of the whole batch already."""
        return statistics

    def sum_over_latents(self, *counts: Tensor) -> list[int]:
        """Over the ranges of all processes."""
        found = self.processes.exchange(*(int(count) for count in counts))
        return [sum(column) for column in zip(*found, strict=True)]

    def sum_gradients(self, optimizer: RowAdam) -> None:
        """Each is complete where its parameter is."""

    def gradient_norm(self, sae: SAE, optimizer: RowAdam) -> Tensor:
        """Squares of the rows are summed over processes, what all hold counts once."""
        rest = [p for key, p in sae.named_parameters() if key in sae.held_by_all]
        rows_ = [p for key, p in sae.named_parameters() if key in sae.per_latent]
        squares = self.processes.sum_(optimizer.norm(rows_).square())
        return (squares + optimizer.norm(rest).square()).sqrt()

    def shard(self) -> tuple[int, int]:
        """Each process writes the state of its latents."""
        return self.processes.rank, self.processes.size

    def save_model(self, name: str, sae: SAE, place: Path) -> None:
        """Rows stream to the main process and from there to the file: the whole is in no process's memory."""
        rows.save_model(self.processes, sae, self.bounds(sae.config.d_sae), place)

    def load_model(self, sae: SAE, place: Path) -> None:
        """Reads the rows of this process only."""
        try:
            config = type(sae.config).from_pretrained(place)
        except OSError as error:
            raise CheckpointError(f"{str(place)!r} has no readable config.json: {error}") from error
        if config.d_sae != sae.config.d_sae:
            raise CheckpointError(
                f"{str(place)!r} holds {config.d_sae} latents, this run trains {sae.config.d_sae}. Resume with the SAE that "
                "the checkpoint was made from."
            )
        rows.load_model(sae, *self.latents(sae), place)
        sae.config = config
