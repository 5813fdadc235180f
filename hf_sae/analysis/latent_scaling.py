"""Latent scaling: how strongly a latent of a crosscoder is there in each model, whatever its decoder norms say.

Minder et al. 2025, "Overcoming sparsity artifacts in crosscoders to interpret chat-tuning" (arXiv 2504.02922). For a latent j with
activations f and the decoder block d of one place (the probe), β at any place is the factor that fits the latent best to a
target y there: `β = argmin Σ ‖β f d - y‖² = Σ f ⟨d, y⟩ / (‖d‖² Σ f²)`. Two targets: the error with the latent's own
contribution put back (an L1 penalty may have shrunk the latent out of one model), and the reconstruction (other latents may
do its work there). ν is β at the other place over β at the probe's own: near 1 the latent is shared, near 0 the probe's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..metrics import wide
from ..models import CrosscoderSAE


ROWS = 4096  # tokens whose latents are dense at once


class LatentScaling:
    """Sums over tokens from which β and ν of every latent follow; the places must be equally wide.

    Args:
        sae ([`CrosscoderSAE`]): the crosscoder.
        probe (`str`): the place whose decoder rows are scaled, such as that of the fine-tuned model.

    Raises:
        ValueError: for a place that it does not read, or places of different widths.
    """

    def __init__(self, sae: CrosscoderSAE, probe: str) -> None:
        self.sae, self.probe, widths = sae, probe, sae.config.place_widths
        if probe not in sae.config.places_in:
            raise ValueError(f"{probe!r} is not read. Places: {', '.join(map(repr, sae.config.places_in))}.")
        if len(set(widths)) > 1:
            raise ValueError(
                f"the places are {widths} wide: a row of one cannot be scaled to another. Compare equal widths."
            )
        self._squares: Tensor | float = 0.0
        self._overlaps: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def add(self, hidden_states: Tensor) -> None:
        """Adds the activations of some tokens, `[tokens, d_in]`, all places side by side."""
        sae = self.sae
        rows = sae.split(sae.W_dec)
        for part in hidden_states.split(ROWS):
            x = sae.normalize(part.to(sae.device))[0]
            latents = sae.encode(part.to(sae.device))
            found = sae.decoder(latents)
            errors, reconstructions = sae.split(x - found), sae.split(found - sae.b_dec)
            squares = wide(latents).square().sum(0)
            self._squares = self._squares + squares
            for place in sae.config.places_in:
                own = squares * (wide(rows[self.probe]) * wide(rows[place])).sum(-1)
                self._add(("error", place), self._overlap(latents, errors[place]) + own)
                self._add(("reconstruction", place), self._overlap(latents, reconstructions[place]))

    def _overlap(self, latents: Tensor, target: Tensor) -> Tensor:
        """`[d_sae]`: Σ over tokens of f ⟨d, y⟩."""
        return (wide(latents.T @ target.to(latents.dtype)) * wide(self.sae.split(self.sae.W_dec)[self.probe])).sum(-1)

    def _add(self, key: tuple[str, str], values: Tensor) -> None:
        self._overlaps[key] = self._overlaps[key] + values if key in self._overlaps else values

    def beta(self, place: str, target: str = "error") -> Tensor:
        """`[d_sae]`, fp64; NaN for a latent that never fired or has no row at the probe.

        Args:
            place (`str`): where the target is.
            target (`str`): `"error"`, with the latent's own contribution put back, or `"reconstruction"`.

        Raises:
            ValueError: if nothing was added, or there is no such place or target.
        """
        if (target, place) not in self._overlaps:
            known = ", ".join(sorted({f"{place} of the {kind}" for kind, place in self._overlaps})) or "nothing yet"
            raise ValueError(f"no sums for {place!r} of the {target!r}: add activations first. Known: {known}.")
        lengths = wide(self.sae.split(self.sae.W_dec)[self.probe]).square().sum(-1)
        scale = lengths * self._squares
        return torch.where(scale > 0, self._overlaps[target, place] / scale, torch.nan)

    def nu(self, place: str, target: str = "error") -> Tensor:
        """`[d_sae]`: β at `place` over β at the probe's own place."""
        return self.beta(place, target) / self.beta(self.probe, target)
