"""The two sides of a contest on toy data, and the figures that they are compared by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae import models
from hf_sae.models import SAE, AutoSAE, TrainingState, registered

from .planted_methods import Toy
from .short_training import calibrated, fit, measure


PLACES = {"hook_in": "mlp_in.0", "hook_out": "mlp_out.0"}  # of toys that have targets
SAME_DIRECTION = 0.9  # cosine from which a planted direction counts as found


@dataclass(frozen=True)
class Side:
    """An architecture that is trained on the toy.

    Args:
        arch (`str`): as `hf-sae train --arch` takes it.
        n (`int`): latents.
        options (`dict`): fields of its config.
        tuned (`tuple`, *optional*): a field to find, its least and its largest value, and the L0 that it has to give.
        rate (`float`): peak learning rate.
    """

    arch: str
    n: int
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: tuple[str, float, float, float] | None = None
    rate: float = 1e-2

    def train(self, toy: Toy, steps: int, seed: int) -> SAE:
        """The trained autoencoder; a tuned one's field is found first, by runs of the same length."""
        if self.tuned is None:
            return self._train(toy, steps, seed, {})
        name, low, high, target = self.tuned

        def l0_at(value: float) -> float:
            return measure(self._train(toy, steps, seed, {name: value}), toy.held_out).l0

        return self._train(toy, steps, seed, {name: calibrated(l0_at, target, low, high)})

    def _train(self, toy: Toy, steps: int, seed: int, found: dict[str, float]) -> SAE:
        config_class, _ = registered()[f"hf_sae_{self.arch}"]
        sizes: dict[str, Any] = {"d_in": toy.train.shape[1], "d_sae": self.n, "hook_in": PLACES["hook_in"]}
        rows = {PLACES["hook_in"]: toy.train}
        if toy.targets is not None:
            rows[PLACES["hook_out"]] = toy.targets[0]
            sizes |= {"d_out": toy.atoms.shape[1], "hook_out": PLACES["hook_out"]}
        config = config_class(**sizes | dict(self.options) | found)
        return fit(config, rows, steps=steps, batch=256, seed=seed, learning_rate=self.rate).sae


@dataclass(frozen=True)
class Given:
    """An architecture that is given the planted dictionary, which nothing trains: what is compared is how it selects."""

    arch: str
    options: Mapping[str, Any] = field(default_factory=dict)
    solver: str | None = None  # class of `hf_sae.models` that codes with the dictionary, in place of the encoder

    def train(self, toy: Toy, steps: int, seed: int) -> SAE:
        """The planted atoms as decoder and encoder rows, biases zero."""
        config_class, _ = registered()[f"hf_sae_{self.arch}"]
        n, d = toy.atoms.shape
        sae = AutoSAE.from_config(config_class(d_in=d, d_sae=n, hook_in=PLACES["hook_in"], **self.options))
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(toy.atoms if parameter.shape == toy.atoms.shape else torch.zeros_like(parameter))
        return sae.eval()


@dataclass(frozen=True)
class Best:
    """The same architectures with several settings, of which the one with the best figure counts: on each seed, by what is compared.

    Args:
        sides (`tuple`): the settings.
        choose (`Callable`): `max` or `min`, of their figures.
    """

    sides: tuple[Side | Given, ...]
    choose: Callable[[Iterable[float]], float]


@torch.no_grad()
def fvu(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Share of the held-out variance that is not explained."""
    if isinstance(side, Given) and side.solver is not None:
        solver: Any = getattr(models, side.solver)(k=sae.config.k)
        error = (toy.held_out - sae.decode(solver.encode(sae, toy.held_out))).square().sum()
        return float(error / (toy.held_out - toy.held_out.mean(0)).square().sum())
    return measure(sae, toy.held_out, None if toy.targets is None else toy.targets[1]).fvu


def squared_error(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Mean of `‖e‖²`, of a selection that may look at the gradient."""
    return float(_error(sae, toy).square().sum(-1).mean())


def gamma(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Shrinkage: 1 is none."""
    return measure(sae, toy.held_out).gamma


def dead(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Number of latents that fire on no held-out token."""
    return measure(sae, toy.held_out).dead * sae.config.d_sae


def recovered(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Share of the planted directions that some decoder row has, either way round."""
    return float((_cosines(sae, toy).abs().amax(1) >= SAME_DIRECTION).float().mean())


def similarity(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Mean over planted directions of the largest cosine with a decoder row (MMCS)."""
    return float(_cosines(sae, toy).amax(1).mean())


@torch.no_grad()
def holes(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """How often a parent's latent is silent although a child, and so the parent, is there."""
    code = sae.encode(toy.held_out)
    latent = _cosines(sae, toy).argmax(1)
    missed = there = 0
    for child, parent in enumerate(toy.parents.tolist() if toy.parents is not None else []):
        if parent >= 0:
            rows = toy.amounts[:, child] != 0
            there += int(rows.sum())
            missed += int((code[rows, latent[parent]] == 0).sum())
    return missed / max(there, 1)


def felt_error(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Mean of `|g · e|`: what a loss of gradient g feels of the error e."""
    return float((_error(sae, toy) * _gradients(toy)).sum(-1).abs().mean())


@torch.no_grad()
def _error(sae: SAE, toy: Toy) -> Tensor:
    state = TrainingState(given={"gradient": _gradients(toy)})
    return toy.held_out - sae(toy.held_out, target=toy.held_out, state=state).reconstruction


def _gradients(toy: Toy) -> Tensor:
    return torch.zeros_like(toy.held_out) if toy.gradients is None else toy.gradients


def _cosines(sae: SAE, toy: Toy) -> Tensor:
    """`[planted, latents]`"""
    return toy.atoms @ F.normalize(sae.W_dec.float(), dim=-1).T
