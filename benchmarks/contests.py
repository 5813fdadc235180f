"""Which sparsity mechanism has to win what on which toy data, and how each side is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import SAE, AutoSAE, TrainingState, registered

from . import planted_methods as planted
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
    solver: str | None = None  # of `encode_sparse`, in place of the encoder

    def train(self, toy: Toy, steps: int, seed: int) -> SAE:
        """The planted atoms as decoder and encoder rows, biases zero."""
        config_class, _ = registered()[f"hf_sae_{self.arch}"]
        n, d = toy.atoms.shape
        sae = AutoSAE.from_config(config_class(d_in=d, d_sae=n, hook_in=PLACES["hook_in"], **self.options))
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(toy.atoms if parameter.shape == toy.atoms.shape else torch.zeros_like(parameter))
        return sae.eval()


def fvu(side: Side | Given, sae: SAE, toy: Toy) -> float:
    """Share of the held-out variance that is not explained."""
    if isinstance(side, Given) and side.solver is not None:
        code: Any = sae.encode_sparse(toy.held_out, solver=side.solver)  # ty: ignore[unknown-argument]
        error = (toy.held_out - sae.decode(code)).square().sum()
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


@dataclass(frozen=True)
class Contest:
    """A method against a baseline.

    Args:
        title (`str`): of the row.
        toy (`Callable`): data of a seed.
        figure (`Callable`): what is compared.
        method, baseline ([`Side`] or [`Given`]): the two.
        before (`tuple`): figures of method and baseline in an earlier run of one seed on other code. At least half of
            that difference, in that direction, has to be there again.
        negative (`bool`): whether the method is expected to lose.
    """

    title: str
    toy: Callable[[int], Toy]
    figure: Callable[[Side | Given, SAE, Toy], float]
    method: Side | Given
    baseline: Side | Given
    before: tuple[float, float]
    negative: bool = False

    def share(self, method: float, baseline: float) -> float:
        """The difference of two figures as a share of the earlier one."""
        return (method - baseline) / (self.before[0] - self.before[1])


TOP_K = {n: Side("topk", n, {"k": k}) for n, k in ((32, 2),)}
GATED = Side("gated", 32, tuned=("l1_coefficient", 1e-4, 3.0, 2.2))
RELU = Side("standard", 32, tuned=("l1_coefficient", 1e-4, 10.0, 2.2))
MIXED = {"batch_topk": Side("batch_topk", 64, {"k": 3}), "topk": Side("topk", 64, {"k": 3})}
ZIPF = {
    "feature_choice": Side("feature_choice", 64, {"k": 3}),
    "topk": Side("topk", 64, {"k": 3, "aux_coefficient": 0.0}),
}
PURSUIT = Side("matching_pursuit", 20, {"k": 2})
TREE = Side("topk", 20, {"k": 2})
FAMILY = {"k": 1.2}

CONTESTS = (
    Contest(
        "AbsTopK, signed features", planted.signed, fvu, Side("abs_topk", 32, {"k": 2}), TOP_K[32], (0.015, 0.281)
    ),
    Contest(
        "AbsTopK, signed features", planted.signed, recovered, Side("abs_topk", 32, {"k": 2}), TOP_K[32], (1.0, 0.31)
    ),
    Contest("Gated, L0 2.2", planted.two_sparse, fvu, GATED, RELU, (0.029, 0.169)),
    Contest("Gated, L0 2.2", planted.two_sparse, gamma, GATED, RELU, (1.0, 0.74)),
    Contest("BatchTopK, mixed L0", planted.mixed_l0, fvu, MIXED["batch_topk"], MIXED["topk"], (0.161, 0.224)),
    Contest(
        "BatchTopK, mixed L0",
        planted.mixed_l0,
        recovered,
        MIXED["batch_topk"],
        MIXED["topk"],
        (0.67, 0.88),
        negative=True,
    ),
    Contest("Feature Choice, Zipf", planted.zipf, fvu, ZIPF["feature_choice"], ZIPF["topk"], (0.066, 0.136)),
    Contest("Feature Choice, Zipf", planted.zipf, dead, ZIPF["feature_choice"], ZIPF["topk"], (0, 11)),
    Contest(
        "top-AFA, 1 to 6 active",
        planted.orthogonal,
        fvu,
        Side("top_afa", 32),
        Side("topk", 32, {"k": 3}),
        (0.0, 0.283),
    ),
    Contest(
        "top-AFA, 1 to 6 active",
        planted.orthogonal,
        fvu,
        Side("top_afa", 32),
        Side("batch_topk", 32, {"k": 3.5}),
        (0.0, 0.033),
    ),
    Contest(
        "Matryoshka, parent and child",
        planted.parent_child,
        holes,
        Side("matryoshka", 12, FAMILY | {"groups": [3, 12]}),
        Side("batch_topk", 12, FAMILY),
        (0.11, 0.53),
    ),
    Contest("Matching pursuit, tree", planted.tree, fvu, PURSUIT, TREE, (0.023, 0.067)),
    Contest("Matching pursuit, tree", planted.tree, similarity, PURSUIT, TREE, (0.76, 0.82), negative=True),
    Contest(
        "KronSAE, AND pairs, equal encoders",
        planted.and_pairs,
        fvu,
        Side("kron", 64, {"k": 3, "heads": 8, "m": 2, "n": 4}),
        Side("topk", 48, {"k": 3}),
        (0.132, 0.188),
    ),
    Contest("Bias adaptation, mixed L0", planted.mixed_l0, recovered, Side("gba", 64), MIXED["topk"], (0.96, 0.79)),
    Contest(
        "Gradient pursuit, coherent atoms",
        planted.coherent,
        fvu,
        Given("topk", {"k": 3}, solver="gradient_pursuit"),
        Given("topk", {"k": 3}, solver="matching_pursuit"),
        (0.037, 0.050),
    ),
    Contest(
        "Gradient pursuit, coherent atoms",
        planted.coherent,
        fvu,
        Given("topk", {"k": 3}, solver="gradient_pursuit"),
        Given("topk", {"k": 3}),
        (0.037, 0.463),
    ),
    Contest(
        "Skip transcoder, linear and sparse",
        planted.linear_and_sparse,
        fvu,
        Side("topk", 32, {"k": 4, "skip": True}),
        Side("topk", 32, {"k": 4}),
        (0.071, 0.370),
    ),
    Contest(
        "Bilinear encoder, products",
        planted.products,
        fvu,
        Side("bilinear", 24, {"k": 4}),
        Side("topk", 24, {"k": 4}),
        (0.089, 0.259),
    ),
    Contest(
        "g-SAE, planted dictionary",
        planted.influential,
        felt_error,
        Given("gradient", {"k": 4}),
        Given("topk", {"k": 4}),
        (0.23, 0.98),
    ),
    Contest(
        "g-SAE, planted dictionary",
        planted.influential,
        squared_error,
        Given("gradient", {"k": 4}),
        Given("topk", {"k": 4}),
        (0.92, 0.41),
        negative=True,
    ),
    Contest(
        "Variational",
        planted.two_sparse,
        fvu,
        Side("variational", 32, {"k": 2}),
        TOP_K[32],
        (0.63, 0.06),
        negative=True,
    ),
)
# further methods with toy data of their own, which are not architectures and not in the package
ELSEWHERE = ("SNMF, neuron groups", "CoSpaDi, union of subspaces")
WORDS = {
    fvu: "FVU",
    squared_error: "squared error",
    gamma: "γ (1 = no shrinkage)",
    dead: "dead latents",
    recovered: "directions found",
    similarity: "mean best cosine",
    holes: "holes in the parent",
    felt_error: "error that a loss feels",
}
