"""Every process holds every SAE and computes on its own share of the batch; gradients are summed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...models import SAE
from ...models.adapters import has_adapter, load_adapter_tensors
from ..optimizer import RowAdam
from .processes import Processes


Batch = Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]


class DataParallel:
    """The scheme of one process too, and the base of the others, which say only what they do differently.

    A loss is divided by the tokens of the whole batch, not of the share, so that gradients and losses only have to be
    added up, whatever the shares.

    Args:
        processes ([`Processes`]): of the run.
        saes (`dict[str, SAE]`): all that are trained.
    """

    def __init__(self, processes: Processes, saes: dict[str, SAE]) -> None:
        self.processes = processes

    def trains(self, name: str) -> bool:
        """Whether this process trains that SAE."""
        return True

    def writes(self, name: str) -> bool:
        """Whether this process writes that SAE's files."""
        return self.processes.is_main

    def place(self, name: str, sae: SAE) -> None:
        """Moves an SAE to this process's device; all processes start from the weights of the first."""
        sae.to(self.processes.device)
        for tensor in (*sae.parameters(), *sae.buffers()):
            self.processes.broadcast_(tensor.data)

    def batch(self, batch: Batch, counts: list[int]) -> Batch:
        """What this process computes on, of a batch of which process r has `counts[r]` tokens."""
        return batch

    def sample(self, batch: Batch, counts: list[int]) -> Batch:
        """The whole sample that SAEs are fitted to before training."""
        if self.processes.size == 1:
            return batch
        parts, join = unpack(batch)
        return join([self.processes.gather_rows(part.to(self.processes.device), counts) for part in parts])

    def sum_losses(self, fired: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """How often each latent fired `[latents here]`, and scalars that add up over tokens, of the whole batch."""
        if self.processes.size == 1:
            return fired, losses
        # one collective: a double holds every count below 2**53
        summed = self.processes.sum_(torch.cat([fired.double(), losses.double()]))
        return summed[: len(fired)].long(), summed[len(fired) :]

    def sum_statistics(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parts of means to means, and maxima to maxima (names that end in `_max`), of the whole batch."""
        for name, value in statistics.items():
            (self.processes.max_ if name.endswith("_max") else self.processes.sum_)(value)
        return statistics

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds in every process that trains this SAE."""
        return all(row[0] for row in self.processes.exchange(int(holds)))

    def sum_over_latents(self, *counts: Tensor) -> list[int]:
        """Counts of the latents here to counts of all latents."""
        return [int(count) for count in counts]

    def sum_gradients(self, optimizer: RowAdam) -> None:
        """Gradients of the share to gradients of the batch; factored ones are written out, since factors do not add up."""
        if self.processes.size > 1:
            optimizer.materialize()
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            self.processes.sum_all_([p.grad for p in parameters if p.grad is not None])

    def gradient_norm(self, sae: SAE, optimizer: RowAdam) -> Tensor:
        """Of the whole gradient, as a scalar."""
        return optimizer.norm()

    def share_figures(self, names: list[str], figures: Tensor) -> Tensor:
        """`[SAEs, figures]` of all SAEs, from those of the SAEs that this process trains."""
        return figures

    def latents(self, sae: SAE) -> tuple[int, int]:
        """The range of latents that is here."""
        return 0, sae.config.d_sae

    def shard(self) -> tuple[int, int]:
        """Which of how many files of optimiser state this process writes."""
        return 0, 1

    def save_model(self, name: str, sae: SAE, place: Path) -> None:
        """Writes the SAE as any loader reads it; called by all processes."""
        if self.writes(name):
            sae.save_pretrained(place)

    def load_model(self, sae: SAE, place: Path) -> None:
        """The inverse of [`save_model`]."""
        if has_adapter(sae):
            load_adapter_tensors(sae, place)
            return
        loaded = type(sae).from_pretrained(place)
        if loaded.config.d_sae != sae.config.d_sae:
            raise CheckpointError(
                f"{str(place)!r} holds {loaded.config.d_sae} latents, this run trains {sae.config.d_sae}. Resume with the "
                "SAE that the checkpoint was made from."
            )
        sae.load_state_dict(loaded.state_dict())
        sae.config = loaded.config

    def finish(self, saes: dict[str, SAE]) -> None:
        """After training: the SAEs as the caller gets them back."""


def unpack(batch: Batch) -> tuple[list[Tensor], Any]:
    """The tensors of a batch, and the function that makes such a batch of others."""
    if isinstance(batch, dict):
        names = list(batch)
        return list(batch.values()), lambda parts: dict(zip(names, parts, strict=True))
    if isinstance(batch, Tensor):
        return [batch], lambda parts: parts[0]
    return list(batch), tuple
