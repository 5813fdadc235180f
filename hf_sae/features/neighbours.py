"""Latents with similar decoder rows."""

from __future__ import annotations

import torch
from torch import Tensor


_BYTES_AT_ONCE = 1 << 26


class DecoderNeighbours:
    """The latents whose decoder rows point most nearly the same way; exact, every pair is compared.

    Args:
        decoder (`Tensor`): `[d_sae, d_out]`. A copy of it in 32 bits is kept; the cosines are made when they are asked for.
    """

    def __init__(self, decoder: Tensor) -> None:
        # a row of zeros points nowhere: its cosines are 0
        self.rows = torch.nn.functional.normalize(decoder.detach().float(), dim=1)

    def of(self, latents: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The `n` nearest of each of `latents` `[m]` by the cosine of the rows, nearest first; never the latent itself.

        Returns:
            `(indices, cosines)`, each `[m, min(n, d_sae - 1)]`, on the CPU.
        """
        n = min(n, len(self.rows) - 1)
        found = []
        for part in latents.to(self.rows.device).split(max(1, _BYTES_AT_ONCE // (4 * len(self.rows)))):
            cosines = (self.rows[part] @ self.rows.T).clamp(-1, 1)
            cosines.scatter_(1, part[:, None], -torch.inf)
            found.append(cosines.topk(n, dim=1))
        return torch.cat([f.indices for f in found]).cpu(), torch.cat([f.values for f in found]).cpu()
