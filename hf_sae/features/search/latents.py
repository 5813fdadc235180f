"""The latents of one autoencoder of a dataset: what is known of them, and the best of them as hits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ConfigError
from .filters import Filters, checked_limit
from .firing import Activity, Firing
from .hits import Hits, Reason
from .store import Store


if TYPE_CHECKING:
    from ...models.modeling_sae import SAE
    from ..reading import FeatureDataset

_RAREST = 1e-8  # density below which no harvest can tell


class Latents:
    """Finds latents of one autoencoder.

    Args:
        dataset ([`FeatureDataset`]), store ([`Store`]): the dataset and its index.
        sae ([`SAE`]): the autoencoder.
        sae_id (`str`, *optional*): what the dataset calls it.

    Raises:
        ConfigError: if it is not named and there are several, or is another one.
    """

    def __init__(self, dataset: FeatureDataset, store: Store, sae: SAE, sae_id: str | None) -> None:
        known = dataset.saes
        if sae_id is None and len(known) > 1:
            names = ", ".join(map(repr, list(known)[:20]))
            raise ConfigError(f"the dataset is about {len(known)} autoencoders: say sae_id=, one of {names}.")
        self.store, self.sae_id = store, next(iter(known)) if sae_id is None else sae_id
        store.condition(Filters(sae_ids=[self.sae_id]))  # is it there?
        self.source = known[self.sae_id]
        if self.source.d_sae != sae.config.d_sae:
            raise ConfigError(
                f"{self.sae_id!r} of the dataset has {self.source.d_sae} latents, and the autoencoder {sae.config.d_sae}: give the "
                f"one that it is about ({self.source.repo_id or 'its place is not recorded'})."
            )

    def activity(self, found: Firing, activations: Tensor) -> Activity:
        """What the latents did on a text, beside what the dataset knows of them; `activations` is `[d_sae]`, the strongest."""
        density, recorded = (torch.from_numpy(values) for values in self.store.facts(self.sae_id, found.d_sae))
        read = self.source.n_tokens
        # one that never fired may have been about to: half a token
        least = 0.5 / read if read else _RAREST
        total = found.sums(found.values.abs())
        return Activity(activations.abs().double(), total, found.read, recorded.abs(), density.clamp(least, 1.0))

    def hits(
        self,
        latents: Tensor,
        scores: Tensor,
        limit: int,
        filters: Filters | None,
        reason: Callable[[int], Reason],
    ) -> Hits:
        """The first of `latents` that pass the filters; `scores` is `[d_sae]`."""
        first = self.store.start[self.sae_id]
        numbers = self.store.first((latents + first).tolist(), filters or Filters(), checked_limit(limit))
        return self.store.hits(
            {number: float(scores[number - first]) for number in numbers},
            {number: [reason(number - first)] for number in numbers},
        )
