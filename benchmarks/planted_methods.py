"""Toy activations with a known answer, one kind for each claim that a sparsity mechanism makes.

Every maker takes a seed and returns a [`Toy`]: tokens to train on, held-out tokens and what they were made of. The same seed
gives the same tokens on every machine of one torch version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


N_TRAIN, N_HELD_OUT = 65_536, 4_096
FAR_FROM_SMALL_SEEDS = 104_729_000  # those of models: the same stream would hand them the dictionary


@dataclass(frozen=True)
class Toy:
    """Tokens and their ground truth.

    Args:
        train (`Tensor`): `[65536, d]`, and held_out (`Tensor`): `[4096, d]`.
        atoms (`Tensor`): `[n, d_out]`, unit rows.
        amounts (`Tensor`): `[4096, n]`, of each atom in each held-out token.
        targets (`tuple`, *optional*): `[65536, d_out]` and `[4096, d_out]`, what a transcoder has to write.
        gradients (`Tensor`, *optional*): `[4096, d]`, a loss's gradient at each held-out token.
        parents (`Tensor`, *optional*): `[n]`, index of the atom that is there whenever this one is, -1 for none.
    """

    train: Tensor
    held_out: Tensor
    atoms: Tensor
    amounts: Tensor
    targets: tuple[Tensor, Tensor] | None = None
    gradients: Tensor | None = None
    parents: Tensor | None = None


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(FAR_FROM_SMALL_SEEDS + seed)


def _unit(n: int, d: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=generator), dim=-1)


def _orthonormal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(d, n, generator=generator)).Q.T.contiguous()


def _amounts(mask: Tensor, generator: torch.Generator, low: float = 0.5, high: float = 1.5) -> Tensor:
    return mask * (low + (high - low) * torch.rand(mask.shape, generator=generator))


def _some(counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`[tokens, n]`: which atoms are there, `counts` `[tokens]` of them in each token, all equally likely."""
    # the largest of so many Gumbel draws are a draw without replacement
    scores = -torch.empty(len(counts), n).exponential_(generator=generator).log()
    rank = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
    return (rank < counts[:, None]).float()


def _made_of(atoms: Tensor, draw: Callable[[int], Tensor], **more: Tensor) -> Toy:
    train, held_out = draw(N_TRAIN), draw(N_HELD_OUT)
    return Toy(train @ atoms, held_out @ atoms, atoms, held_out, **more)


def two_sparse(seed: int) -> Toy:
    """Two of 32 positive features in 24 dimensions."""
    g = _generator(seed)
    return _made_of(_unit(32, 24, g), lambda n: _amounts(_some(torch.full((n,), 2), 32, g), g))


def signed(seed: int) -> Toy:
    """Two of 32 features in 24 dimensions, each of either sign."""
    g = _generator(seed)

    def draw(n: int) -> Tensor:
        signs = torch.randint(0, 2, (n, 32), generator=g) * 2 - 1
        return signs * _amounts(_some(torch.full((n,), 2), 32, g), g)

    return _made_of(_unit(32, 24, g), draw)


def mixed_l0(seed: int, d: int = 24) -> Toy:
    """64 features in `d` dimensions; half of the tokens have one of them, the others five."""
    g = _generator(seed)

    def draw(n: int) -> Tensor:
        counts = 1 + 4 * torch.randint(0, 2, (n,), generator=g)
        return _amounts(_some(counts, 64, g), g)

    return _made_of(_unit(64, d, g), draw)


def crowded(seed: int) -> Toy:
    """[`mixed_l0`] in 20 dimensions, where features overlap more."""
    return mixed_l0(seed, 20)


def zipf(seed: int) -> Toy:
    """Three of 64 features in 40 dimensions in the mean, each by itself; the feature of rank r is there as often as 1/r says."""
    g = _generator(seed)
    ranks = torch.arange(1.0, 65.0)
    rates = 3 / ranks / (1 / ranks).sum()
    return _made_of(_unit(64, 40, g), lambda n: _amounts((torch.rand(n, 64, generator=g) < rates).float(), g))


def orthogonal(seed: int) -> Toy:
    """One to six of 32 orthonormal features."""
    g = _generator(seed)
    return _made_of(
        _orthonormal(32, 32, g), lambda n: _amounts(_some(torch.randint(1, 7, (n,), generator=g), 32, g), g)
    )


def parent_child(seed: int) -> Toy:
    """Three parents, each in a fifth of the tokens and mostly with one of its three children, which never come without it:
    1.02 features in the mean, orthonormal in 16 dimensions."""
    return _families(seed, _orthonormal, d=16, sizes=(3, 3), parent=0.2, child=0.7)


def tree(seed: int) -> Toy:
    """Four parents, each by itself and half of the time with one of its four children: 20 features in 8 dimensions, 1.8 in the mean."""
    return _families(seed, _unit, d=8, sizes=(4, 4), parent=0.3, child=0.5)


def _families(
    seed: int, directions: Callable[..., Tensor], d: int, sizes: tuple[int, int], parent: float, child: float
) -> Toy:
    """Parents with probability `parent` each, and with each, with probability `child`, one of its children; `sizes` are the numbers of
    parents and of the children of each."""
    g, (n_parents, n_children) = _generator(seed), sizes
    parents = torch.tensor([-1] * n_parents + [i // n_children for i in range(n_children * n_parents)])

    def draw(n: int) -> Tensor:
        there = torch.rand(n, n_parents, generator=g) < parent
        which = F.one_hot(torch.randint(0, n_children, (n, n_parents), generator=g), n_children)
        children = which * (there & (torch.rand(n, n_parents, generator=g) < child))[..., None]
        return _amounts(torch.cat([there, children.flatten(1)], dim=-1).float(), g, 0.8, 1.2)

    return _made_of(directions(len(parents), d, g), draw, parents=parents)


def and_pairs(seed: int) -> Toy:
    """Eight groups of 2 by 4 features in 64 dimensions; each feature lies between the two things it needs together."""
    g = _generator(seed)
    first, second = _orthonormal(48, 64, g).split((16, 32))
    pairs = first.view(8, 2, 1, 64) + second.view(8, 1, 4, 64)
    atoms = F.normalize(pairs.reshape(64, 64) + 0.5 * _unit(64, 64, g), dim=-1)

    def draw(n: int) -> Tensor:
        groups = _some(torch.full((n,), 3), 8, g)
        which = torch.randint(0, 8, (n, 8), generator=g)
        return _amounts((F.one_hot(which, 8) * groups[..., None]).flatten(1), g)

    return _made_of(atoms, draw)


def coherent(seed: int) -> Toy:
    """Three of 64 features in 16 dimensions: many more than fit without overlap."""
    g = _generator(seed)
    return _made_of(_unit(64, 16, g), lambda n: _amounts(_some(torch.full((n,), 3), 64, g), g))


def products(seed: int) -> Toy:
    """Written is the sum of the four largest of 24 products `(a_i · x)(c_i · x)` times their directions; x is Gaussian."""
    g = _generator(seed)
    left, right, atoms = _unit(24, 16, g), _unit(24, 16, g), _unit(24, 16, g)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 16, generator=g)
        return x, _largest((x @ left.T) * (x @ right.T), 4)

    (train, train_amounts), (held_out, amounts) = draw(N_TRAIN), draw(N_HELD_OUT)
    return Toy(train, held_out, atoms, amounts, targets=(train_amounts @ atoms, amounts @ atoms))


def linear_and_sparse(seed: int) -> Toy:
    """Written is a linear map of a Gaussian x, plus the four strongest of 32 rectified features."""
    g = _generator(seed)
    readers, atoms = _unit(32, 16, g), _unit(32, 16, g)
    linear = torch.randn(16, 16, generator=g) / 4

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 16, generator=g)
        return x, _largest(torch.relu(x @ readers.T - 0.5), 4)

    (train, train_amounts), (held_out, amounts) = draw(N_TRAIN), draw(N_HELD_OUT)
    targets = (train @ linear + train_amounts @ atoms, held_out @ linear + amounts @ atoms)
    return Toy(train, held_out, atoms, amounts, targets=targets)


def influential(seed: int) -> Toy:
    """32 orthonormal features, six to a token: 16 loud ones that a loss hardly feels, 16 quiet ones that it does."""
    g = _generator(seed)
    atoms = _orthonormal(32, 32, g)
    loudness = torch.cat([torch.full((16,), 1.0), torch.full((16,), 0.55)])
    influence = torch.cat([torch.full((16,), 0.1), torch.full((16,), 2.0)])

    def draw(n: int) -> Tensor:
        return _amounts(_some(torch.full((n,), 6), 32, g), g) * loudness

    toy = _made_of(atoms, draw)
    signs = torch.randint(0, 2, toy.amounts.shape, generator=g) * 2.0 - 1
    return Toy(toy.train, toy.held_out, atoms, toy.amounts, gradients=(signs * influence) @ atoms)


def _largest(values: Tensor, k: int) -> Tensor:
    top = values.topk(k, dim=-1)
    return torch.zeros_like(values).scatter(-1, top.indices, torch.relu(top.values))
