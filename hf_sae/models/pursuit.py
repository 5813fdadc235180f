"""Solvers: codes on a frozen dictionary that are found by pursuit in place of the encoder, at inference.

`sae.encode_sparse(x, solver=GradientPursuit(k=32))` codes `x - b_dec`, in normalised units, by non-negative amounts of at most k
decoder rows. What an encoder loses against such a code is the encoder's fault and not the dictionary's ("inference-time
optimisation"). Rows are compared at unit norm; the latents are those of the rows as they are, so that `decode` needs to know nothing.

Every solver starts at `r = x` and repeats k times: take the atom w with the largest `w·r`, if that is positive, and
* [`MatchingPursuit`] (Mallat & Zhang 1993, "Matching pursuits with time-frequency dictionaries"): `z_w += w·r`;
* [`GradientPursuit`] (Blumensath & Davies 2008, "Gradient pursuits"): one step of all chosen atoms along their gradient,
  `z = ReLU(z + α g)`, `g = W_S r`, `α = ⟨c, r⟩ / ‖c‖²` with `c = g W_S`, the best length before clipping. Chosen atoms stay chosen,
  and no atom is chosen twice: each step adds one;
* [`OrthogonalMatchingPursuit`] (Pati et al. 1993; non-negative as in Lawson & Hanson 1974): the least-squares amounts of the chosen
  atoms; one that would become negative leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError
from .sparse_code import SparseCode
from .sparse_ops import decode


CHUNK_BYTES = 2**28  # of correlations and gathered atoms at a time: tokens are solved in chunks of so many bytes
GRAM_BYTES = 2**28  # the largest table of products among atoms that is made
ROUNDING = 16  # a correlation below so many units of rounding of ‖x‖ is taken for zero


class Solver(ABC):
    """Finds non-negative sparse codes on a dictionary.

    Args:
        k (`int`, *optional*): latents per token, at most. `None`: on each token as many as the SAE's own code has there, which
            makes codes comparable.

    Raises:
        ConfigError: for a `k` below 1.
    """

    def __init__(self, k: int | None = None) -> None:
        if k is not None and k < 1:
            raise ConfigError(f"k={k} must be 1 or more, or None for as many as the SAE's own code has.")
        self.k = k

    @torch.no_grad()
    def encode(self, sae: Any, hidden_states: Tensor, target: Tensor | None = None) -> SparseCode:
        """The code on the decoder rows of an SAE.

        Args:
            sae ([`SAE`]): of any architecture.
            hidden_states (`Tensor`): `[..., d_in]`, as for `encode_sparse`.
            target (`Tensor`, *optional*): `[..., d_out]`, for a transcoder, whose dictionary is that of its output: what is coded
                is the target without bias and skip.

        Raises:
            ConfigError: for a transcoder without a target, an SAE with one, or a `k` above `d_sae`.
        """
        x, norm = sae.normalize(hidden_states)
        if sae.config.is_transcoder == (target is None):
            raise ConfigError(
                f"{type(self).__name__} codes what the dictionary writes, {sae.config.hook_out!r} of a transcoder: call "
                "solver.encode(sae, hidden_states, target=activations there)."
                if target is None
                else "target= is for transcoders: an SAE's is its input. Leave it out."
            )
        wanted = x if target is None else sae.comparable(target.to(x.dtype))
        if sae.skip is not None:
            wanted = wanted - sae.skip(x)
        rows = (wanted - sae.decoder.bias).reshape(-1, wanted.shape[-1])
        budget = sae.encode_sparse(hidden_states).counts() if self.k is None else None
        values, indices = self.solve(rows, sae.decoder.weight, budget)
        shape = (*wanted.shape[:-1], values.shape[-1])
        return SparseCode(values.to(x.dtype).view(shape), indices.view(shape), None, sae.config.d_sae, norm)

    @torch.no_grad()
    def solve(self, target: Tensor, atoms: Tensor, budget: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values and latents `[tokens, k]`, computed in float32 or more; no latent is listed twice, places left over have the value 0.

        Args:
            target (`Tensor`): `[tokens, d]`.
            atoms (`Tensor`): `[d_sae, d]`, of any norm.
            budget (`Tensor`, *optional*): `[tokens]`, how many latents each token may have; `k` everywhere otherwise.

        Raises:
            ConfigError: for shapes that do not agree, no budget at all, or one above `d_sae`.
        """
        if target.ndim != 2 or atoms.ndim != 2 or target.shape[1] != atoms.shape[1]:
            given = f"target is {list(target.shape)}, atoms {list(atoms.shape)}"
            raise ConfigError(f"{given}: give [tokens, d], [d_sae, d].")
        if budget is None and self.k is None:
            raise ConfigError("k=None takes the budget of each token from an SAE: give k, or budget=[tokens].")
        budget = torch.full((target.shape[0],), self.k or 0, device=target.device) if budget is None else budget
        width = self.k or max(int(budget.max()) if budget.numel() else 0, 1)
        if width > atoms.shape[0]:
            raise ConfigError(f"k={width} is more than the dictionary's d_sae={atoms.shape[0]} latents.")
        target, atoms = in_full_precision(target), in_full_precision(atoms)
        norms = torch.linalg.vector_norm(atoms, dim=-1).clamp_min(torch.finfo(atoms.dtype).tiny)
        with torch.autocast(target.device.type, enabled=False):
            values, indices = self._solve(target, atoms / norms.unsqueeze(1), budget, width)
        values, indices = merge(values, indices, atoms.shape[0])
        return values / norms[indices], indices

    @abstractmethod
    def _solve(self, target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Values and latents `[tokens, width]` for unit atoms; a latent may be listed more than once."""


class MatchingPursuit(Solver):
    """Takes the best atom's projection off the residual, k times."""

    def _solve(self, target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        values, indices = matching_pursuit(target, atoms, width)
        return values * _within(budget, width), indices


class GradientPursuit(Solver):
    """Takes a gradient step of the best length on all chosen atoms each time one is added."""

    def _solve(self, target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        parts = zip(*_chunks(2 * len(atoms) * atoms.element_size(), target, budget), strict=True)
        return _side_by_side([self._solve_chunk(rows, atoms, within, width) for rows, within in parts])

    @staticmethod
    def _solve_chunk(target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        chosen = _Chosen(target, atoms, budget, width)
        for step in range(width):
            correlations = chosen.add(step)
            slope = correlations.gather(-1, chosen.indices) * chosen.inside
            direction = decode(slope, chosen.indices, atoms)
            along = (direction * chosen.residual).sum(-1) / direction.square().sum(-1).clamp_min(_tiny(atoms))
            along = along * (budget > step)  # a token whose budget is spent is left as it is
            chosen.set(torch.relu(chosen.values + along.unsqueeze(1) * slope))
        return chosen.values, chosen.indices


class OrthogonalMatchingPursuit(Solver):
    """Solves the least squares of all chosen atoms each time one is added."""

    def _solve(self, target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        per_token = 2 * len(atoms) + width * (atoms.shape[1] + 4 * width)
        parts = zip(*_chunks(per_token * atoms.element_size(), target, budget), strict=True)
        return _side_by_side([self._solve_chunk(rows, atoms, within, width) for rows, within in parts])

    @staticmethod
    def _solve_chunk(target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        chosen = _Chosen(target, atoms, budget, width)
        taken = target.new_zeros(len(target), width, target.shape[1])
        gram, onto = target.new_zeros(len(target), width, width), target.new_zeros(len(target), width)
        for step in range(width):
            chosen.add(step)
            atom = taken[:, step] = atoms[chosen.indices[:, step]]
            gram[:, step] = gram[:, :, step] = (taken @ atom.unsqueeze(-1)).squeeze(-1)
            onto[:, step] = (target * atom).sum(-1)
            values, chosen.inside = _non_negative_least_squares(gram, onto, chosen.values, chosen.inside)
            chosen.set(values)
        return chosen.values, chosen.indices


class _Chosen:
    """The atoms that a pursuit has chosen so far for each token, their amounts, and what is left of the target."""

    def __init__(self, target: Tensor, atoms: Tensor, budget: Tensor, width: int) -> None:
        self.target, self.atoms, self.budget = target, atoms, budget
        self.residual, self.floor = target, _floor(target)
        self.values = target.new_zeros(len(target), width)
        self.indices = torch.zeros_like(self.values, dtype=torch.long)
        self.inside = torch.zeros_like(self.values, dtype=torch.bool)

    def add(self, step: int) -> Tensor:
        """Chooses one more atom where one has a positive correlation; returns the correlations `[tokens, d_sae]`."""
        correlations = self.residual @ self.atoms.T
        open_to = torch.where(self.inside, -torch.inf, torch.inf).to(correlations.dtype)
        best, pick = correlations.scatter_reduce(-1, self.indices, open_to, "amin").max(-1)
        self.indices[:, step] = pick
        self.inside[:, step] = (best > self.floor) & (self.budget > step)
        return correlations

    def set(self, values: Tensor) -> None:
        """New amounts, and the residual that they leave."""
        self.values = values
        self.residual = self.target - decode(values, self.indices, self.atoms)


def _non_negative_least_squares(gram: Tensor, onto: Tensor, values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The inner loop of Lawson & Hanson: from feasible `values` towards the least squares of the atoms `inside`, of which those
    leave that reach zero on the way. Returns the amounts `[tokens, k]` and who is inside still."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(gram.shape[-1] + 1):  # each round takes at least one atom from every token that it is for
        both = inside.unsqueeze(1) & inside.unsqueeze(2)
        system, onto_inside = gram * both + identity * (~inside).unsqueeze(1), (onto * inside).unsqueeze(-1)
        factor = torch.linalg.cholesky_ex(system + ROUNDING * torch.finfo(gram.dtype).eps * identity).L
        wanted = torch.cholesky_solve(onto_inside, factor)
        wanted = wanted + torch.cholesky_solve(onto_inside - system @ wanted, factor)  # what the ridge took away
        wanted = wanted.squeeze(-1) * inside
        negative = inside & (wanted <= 0)
        if not negative.any():
            return wanted, inside
        reach = torch.where(negative, values / (values - wanted).clamp_min(_tiny(gram)), torch.inf)
        share = reach.amin(-1, keepdim=True).clamp_max(1.0)
        values = values + share * (wanted - values)
        inside = inside & ~(negative & (reach <= share))
        values = torch.relu(values * inside)
    return values, inside


@torch.no_grad()
def matching_pursuit(
    target: Tensor, atoms: Tensor, steps: int, signed: bool = False, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Amounts and atoms `[tokens, steps]` of a matching pursuit, in the order in which they were picked; an atom may come again.

    The correlations of the new residual follow from the old by a row of the table of products among atoms, where that table is
    small and there are enough picks to pay for it; otherwise each step is a `[tokens, d] x [d, d_sae]` product. An amount is the
    pick's product with the residual itself, so that roundings do not add up.

    Args:
        target (`Tensor`): `[tokens, d]`.
        atoms (`Tensor`): `[d_sae, d]`, of unit norm.
        steps (`int`): picks per token.
        signed (`bool`): pick by magnitude and keep the sign, instead of positive amounts only.
        tolerance (`float`): stop where the residual is no longer than this share of the target.
    """
    d_sae, size = len(atoms), atoms.element_size()
    pays = d_sae <= (steps - 1) * len(target) and d_sae**2 * size <= GRAM_BYTES
    gram = (atoms @ atoms.T).to(atoms.dtype) if pays else None
    (parts,) = _chunks(2 * d_sae * size, target)
    return _side_by_side([_match(rows, atoms, gram, steps, signed, tolerance) for rows in parts])


def _match(
    target: Tensor, atoms: Tensor, gram: Tensor | None, steps: int, signed: bool, tolerance: float
) -> tuple[Tensor, Tensor]:
    residual, floor, norms = target, _floor(target), torch.linalg.vector_norm(target, dim=-1)
    correlations = (residual @ atoms.T).to(atoms.dtype)
    amounts, picks = [], []
    for step in range(steps):
        if step and gram is None:
            correlations = (residual @ atoms.T).to(atoms.dtype)
        elif step and gram is not None:
            correlations = correlations.addcmul_(amounts[-1].unsqueeze(1), gram[picks[-1]], value=-1)
        pick = (correlations.abs() if signed else correlations).argmax(-1)
        atom = atoms[pick]
        amount = (residual * atom).sum(-1)
        goes_on = (amount.abs() if signed else amount) > floor
        if tolerance:
            goes_on = goes_on & (torch.linalg.vector_norm(residual, dim=-1) > tolerance * norms)
        amount = torch.where(goes_on, amount, 0.0)
        residual = residual - amount.unsqueeze(1) * atom
        amounts.append(amount)
        picks.append(pick)
    return torch.stack(amounts, -1), torch.stack(picks, -1)


def merge(values: Tensor, indices: Tensor, d_sae: int) -> tuple[Tensor, Tensor]:
    """Rows `[tokens, k]` in which no latent is listed twice: its values are added up, and the places that this leaves hold zeros of
    latents that are not in the row. Differentiable with respect to the values."""
    k = indices.shape[-1]
    indices, order = indices.sort(dim=-1)
    new = torch.ones_like(indices)
    new[:, 1:] = indices[:, 1:] != indices[:, :-1]
    place = new.cumsum(-1) - 1
    values = torch.zeros_like(values).scatter_add(-1, place, values.gather(-1, order))
    # of the first 2 k latents at most k are in the row
    width = min(2 * k, d_sae)
    in_row = indices.new_zeros(len(indices), width + 1).scatter(-1, indices.clamp_max(width), 1)
    others = in_row[:, :width].argsort(dim=-1, stable=True)
    beyond = torch.arange(k, device=indices.device) - place[:, -1:] - 1
    latents = torch.zeros_like(indices).scatter(-1, place, indices)
    return values, torch.where(beyond >= 0, others.gather(-1, beyond.clamp_min(0)), latents)


def in_full_precision(x: Tensor) -> Tensor:
    """`x` in float32 or, where it has more, in its own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(bytes_per_token: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.split(max(1, CHUNK_BYTES // bytes_per_token)) for tensor in tensors]


def _side_by_side(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


def _within(budget: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=budget.device) < budget.unsqueeze(1)


def _floor(target: Tensor) -> Tensor:
    return ROUNDING * torch.finfo(target.dtype).eps * torch.linalg.vector_norm(target, dim=-1)


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
