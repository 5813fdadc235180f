"""Many SAEs, each on one process, which computes on the whole batch of the places that its SAEs read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...models import SAE
from ...models.adapters import has_adapter
from ..optimizer import RowAdam
from . import rows
from .data import Batch, DataParallel, unpack
from .processes import Processes


class PlacedSAEs(DataParallel):
    """The host stays data-parallel; an activation goes only to the processes that need it.

    The costliest SAE goes first, always to the process with the least to do.

    Args:
        processes ([`Processes`]): of the run.
        saes (`dict[str, SAE]`): all that are trained.
    """

    def __init__(self, processes: Processes, saes: dict[str, SAE]) -> None:
        super().__init__(processes, saes)
        self.owner: dict[str, int] = {}
        load = [0] * processes.size
        for name, sae in sorted(saes.items(), key=lambda item: (-_cost(item[1]), item[0])):
            self.owner[name] = load.index(min(load))
            load[self.owner[name]] += _cost(sae)
        self._places = {name: set(sae.batch_keys) for name, sae in saes.items()}

    def trains(self, name: str) -> bool:
        """Whether the SAE was placed here."""
        return self.owner[name] == self.processes.rank

    def writes(self, name: str) -> bool:
        """As [`trains`]."""
        return self.trains(name)

    def place(self, name: str, sae: SAE) -> None:
        """The owner starts from the weights of the first process, as in every scheme."""
        for tensor in (*sae.parameters(), *sae.buffers()):
            there = self.processes.broadcast_(tensor.data.to(self.processes.device))
            if self.trains(name):
                tensor.data = there

    def batch(self, batch: Batch, counts: list[int]) -> Batch:
        """The whole batch of the places that are read here; other places are left out of it."""
        if self.processes.size == 1:
            return batch
        parts, join = unpack(batch)
        needed = [self._needed(rank, batch) for rank in range(self.processes.size)]
        device = self.processes.device
        octets = [part.to(device).contiguous().view(torch.uint8) for part in parts]
        nothing = torch.empty(0, dtype=torch.uint8, device=device)
        outgoing = [torch.cat([nothing, *(octets[i].reshape(-1) for i in wanted)]) for wanted in needed]
        mine = needed[self.processes.rank]
        sizes = [count * sum(octets[i].shape[1] for i in mine) for count in counts]
        received: list[list[Tensor]] = [[] for _ in parts]
        for data, count in zip(self.processes.scatter_bytes(outgoing, sizes), counts, strict=True):
            for i, piece in zip(mine, data.split([count * octets[i].shape[1] for i in mine]), strict=True):
                received[i].append(piece.view(count, octets[i].shape[1]))
        whole = [torch.cat(got).view(parts[i].dtype) if got else parts[i][:0] for i, got in enumerate(received)]
        return join(whole)

    sample = batch

    def _needed(self, rank: int, batch: Batch) -> list[int]:
        mine = [name for name, owner in self.owner.items() if owner == rank]
        if not isinstance(batch, dict):
            return list(range(len(unpack(batch)[0]))) if mine else []
        places = set().union(*(self._places[name] for name in mine))
        return [i for i, place in enumerate(batch) if place in places]

    def sum_losses(self, fired: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Both are of the whole batch already."""
        return fired, losses

    def sum_statistics(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """As [`sum_losses`]."""
        return statistics

    def everywhere(self, holds: bool) -> bool:
        """An SAE is in one process only."""
        return holds

    def sum_gradients(self, optimizer: RowAdam) -> None:
        """They are of the whole batch already."""

    def save_model(self, name: str, sae: SAE, place: Path) -> None:
        """The owner writes."""
        if self.processes.is_main or has_adapter(sae):
            super().save_model(name, sae, place)
        elif self.trains(name):
            rows.save_whole(sae, place)

    def share_figures(self, names: list[str], figures: Tensor) -> Tensor:
        """One collective for the figures of all SAEs."""
        mine = torch.tensor([self.trains(name) for name in names])
        own = torch.where(mine[:, None], figures, 0.0).to(self.processes.device)
        return self.processes.sum_(own).cpu()

    def finish(self, saes: dict[str, SAE]) -> None:
        """Every process gets every trained SAE."""
        configs = self.processes.objects({n: s.config.to_dict() for n, s in saes.items() if self.trains(n)})
        for name, sae in saes.items():
            sae.to(self.processes.device)
            for tensor in (*sae.parameters(), *sae.buffers()):
                self.processes.broadcast_(tensor.data, self.owner[name])
            sae.config = type(sae.config).from_dict(configs[self.owner[name]][name])


def _cost(sae: SAE) -> int:
    return sum(parameter.numel() for parameter in sae.parameters())
