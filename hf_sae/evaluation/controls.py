"""Baselines that an autoencoder has to beat: a linear map of equal rank, and a dictionary nobody trained.

Random dictionaries and principal components score surprisingly well on many measures (Heap et al. 2025,
arXiv:2501.17727), so a score means little without theirs beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics import wide
from ..models.modeling_sae import SAE
from ..models.sparse_code import SparseCode


Reconstructor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From inputs `[tokens, d_in]` to reconstructions `[tokens, d_out]` and the number of numbers used on each, `[tokens]`."""


@dataclass
class Moments:
    """Running first and second moments of inputs and targets, about a fixed point near their means."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    shift: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add `[tokens, d_in]` inputs and `[tokens, d_out]` targets."""
        if self.shift is None:
            self.shift = wide(x).mean(0), wide(y).mean(0)
        u, v = wide(x) - self.shift[0], wide(y) - self.shift[1]
        self.count += len(u)
        new = {"x": u.sum(0), "y": v.sum(0), "xx": u.T @ u, "xy": u.T @ v}
        self.sums = {key: self.sums[key] + value if self.sums else value for key, value in new.items()}

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(mean_x, mean_y, covariance_xx, covariance_xy)` in fp64.

        Raises:
            DataError: if nothing was added.
        """
        if self.shift is None:
            raise DataError("no activations to fit the controls on: give at least two tokens.")
        m, n = self.sums["x"] / self.count, self.sums["y"] / self.count
        xx = self.sums["xx"] / self.count - m.outer(m)
        xy = self.sums["xy"] / self.count - m.outer(n)
        return self.shift[0] + m, self.shift[1] + n, xx, xy


def low_rank(moments: Moments, rank: int) -> Reconstructor:
    """The best affine map of a given rank from inputs to targets.

    Reduced-rank regression (Izenman 1975): the least-squares map, projected on the leading principal directions of what
    it predicts. Where input and target are the same place it is PCA.

    Args:
        moments ([`Moments`]): of the activations it is fitted on.
        rank (`int`): number of components; at least 0, at most the smaller width.
    """
    mean_x, mean_y, xx, xy = moments.centred()
    slope = torch.linalg.pinv(xx, hermitian=True) @ xy
    _, directions = torch.linalg.eigh(slope.T @ xx @ slope)
    rank = max(0, min(rank, *slope.shape))
    top = directions[:, directions.shape[1] - rank :]
    encode = slope @ top

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        exact = wide(x)
        centred = (exact - mean_x.to(exact.device)).to(x.device, torch.float32)
        out = (centred @ encode.to(x.device, torch.float32)) @ top.T.to(x.device, torch.float32)
        return out + mean_y.to(x.device, torch.float32), torch.full((len(x),), rank, device=x.device)

    return reconstruct


def random_dictionary(sae: SAE, bias: Tensor, k: int, seed: int) -> Reconstructor:
    """A freshly initialised autoencoder of the same class and config that keeps its `k` largest latents per token.

    Keeping a fixed number makes its L0 that of `sae`, whatever an untrained threshold would let through.

    Args:
        sae ([`SAE`]): the one to imitate.
        bias (`Tensor`): `[d_out]` decoder bias, in the decoder's units: the mean of what it has to reconstruct.
        k (`int`): latents per token.
        seed (`int`): of the initialisation; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        fresh = type(sae)(copy.deepcopy(sae.config))
        fresh.decoder.bias.copy_(bias.to(fresh.decoder.bias))
    fresh.to(device=sae.device).eval()
    k = max(1, min(k, sae.config.d_sae))

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        inputs, norm = fresh.normalize(x.to(fresh.device))
        pre = fresh.pre_activations(inputs)
        values, indices = pre.topk(k, dim=-1)
        code = SparseCode(values.clamp_min(0), indices, None, sae.config.d_sae, norm)
        out = fresh.decode(code)
        if fresh.skip is not None:
            out = out + fresh.skip(inputs)
        return out, code.counts()

    return reconstruct
