"""Mean, variance and norms of activations that pass by once, and what storing them loses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import DataError
from .manifest import PointFacts


class PointStatistics:
    """Sums in float64 over the rows of one place; variances of parts are put together as Chan et al. (1979) do.

    Args:
        width (`int`): d.
    """

    def __init__(self, width: int) -> None:
        self.mean = torch.zeros(width, dtype=torch.float64)
        # rows, Σ‖x − mean‖², Σ‖x‖, Σ‖x − x̂‖²
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, x: Tensor, stored: Tensor) -> None:
        """Takes rows `[n, d]` and what will be read in their place."""
        x, stored = x.double(), stored.double()
        n, before = len(x), float(self.sums[0])
        own = x.mean(dim=0)
        gap = own - self.mean
        scatter = (x - own).square().sum() + gap.square().sum() * (before * n / (before + n))
        new = [float(n), float(scatter), float(x.norm(dim=1).sum()), float((x - stored).square().sum())]
        self.mean += gap * (n / (before + n))
        self.sums += torch.tensor(new, dtype=torch.float64)

    def facts(self) -> PointFacts:
        """The figures for the manifest."""
        rows, scatter, norms, lost = self.sums.tolist()
        mean = [float(f"{value:.9g}") for value in self.mean.tolist()]  # what a float32 holds
        return PointFacts(len(mean), norms / rows, scatter / rows, lost / scatter if scatter else 0.0, mean)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"mean": self.mean.clone(), "sums": self.sums.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with these sums.

        Raises:
            DataError: if they are of another width.
        """
        if state["mean"].shape != self.mean.shape:
            raise DataError(f"the saved statistics have {len(state['mean'])} coordinates, not {len(self.mean)}.")
        self.mean, self.sums = state["mean"].clone(), state["sums"].clone()
