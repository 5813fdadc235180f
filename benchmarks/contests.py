"""Which sparsity mechanism has to win what, or lose it, on which toy data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_sae.models import SAE

from . import planted_methods as planted
from .planted_methods import Toy
from .sides import Best, Given, Side, dead, felt_error, fvu, gamma, holes, recovered, similarity, squared_error


@dataclass(frozen=True)
class Contest:
    """A method against a baseline.

    Args:
        title (`str`): of the row.
        toy (`Callable`): data of a seed.
        figure (`Callable`): what is compared.
        method, baseline ([`Side`] or [`Given`]): the two; a baseline may be the [`Best`] of several.
        before (`tuple`): figures of method and baseline in an earlier run of one seed on other code. At least half of
            that difference, in that direction, has to be there again.
        negative (`bool`): whether the method is expected to lose.
    """

    title: str
    toy: Callable[[int], Toy]
    figure: Callable[[Side | Given, SAE, Toy], float]
    method: Side | Given
    baseline: Side | Given | Best
    before: tuple[float, float]
    negative: bool = False

    def share(self, method: float, baseline: float) -> float:
        """The difference of two figures as a share of the earlier one."""
        return (method - baseline) / (self.before[0] - self.before[1])


TOP_K = Side("topk", 32, {"k": 2})
GATED = Side("gated", 32, {"target_l0": 2.2})
RELU = Side("standard", 32, tuned=("l1_coefficient", 1e-4, 10.0, 2.2))
MIXED = {"batch_topk": Side("batch_topk", 64, {"k": 3}), "topk": Side("topk", 64, {"k": 3})}
ZIPF = {
    "feature_choice": Side("feature_choice", 64, {"k": 3}),
    "topk": Side("topk", 64, {"k": 3}),
}
PURSUIT = Side("matching_pursuit", 20, {"k": 2})
TREE = Side("topk", 20, {"k": 2})
FAMILY = {"k": 0.9}  # fewer than the 1.02 that are there: only then does absorbing a parent into its children pay
BIASES = Side("gba", 64, {"n_groups": 1, "highest_frequency": 3 / 64})
TOP_KS = {k: Side("topk", 64, {"k": k}) for k in (1, 2, 3, 4, 6)}

CONTESTS = (
    Contest("AbsTopK, signed features", planted.signed, fvu, Side("abs_topk", 32, {"k": 2}), TOP_K, (0.015, 0.281)),
    Contest("AbsTopK, signed features", planted.signed, recovered, Side("abs_topk", 32, {"k": 2}), TOP_K, (1.0, 0.31)),
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
        Side("matryoshka", 12, FAMILY | {"group_bounds": [3, 6, 12]}),
        Side("batch_topk", 12, FAMILY),
        (0.11, 0.53),
    ),
    Contest("Matching pursuit, tree", planted.tree, fvu, PURSUIT, TREE, (0.023, 0.067)),
    Contest("Matching pursuit, tree", planted.tree, similarity, PURSUIT, TREE, (0.76, 0.82), negative=True),
    Contest(
        "KronSAE, AND pairs, equal encoders",
        planted.and_pairs,
        fvu,
        Side("kron", 64, {"k": 3, "heads": 8, "base": 2, "extension": 4}),
        Side("topk", 48, {"k": 3}),
        (0.132, 0.188),
    ),
    Contest(
        "Bias adaptation, mixed L0, k of the earlier run",  # TopK 1 and 6, and BatchTopK at the true mean
        planted.crowded,
        recovered,
        BIASES,
        Best((TOP_KS[1], MIXED["batch_topk"], TOP_KS[6]), max),
        (0.96, 0.79),
    ),
    Contest(
        "Bias adaptation, mixed L0, best k",
        planted.crowded,
        recovered,
        BIASES,
        Best(tuple(TOP_KS.values()), max),
        (0.96, 0.79),
    ),
    Contest(
        "Gradient pursuit, coherent atoms",
        planted.coherent,
        fvu,
        Given("topk", {"k": 3}, solver="GradientPursuit"),
        Given("topk", {"k": 3}, solver="MatchingPursuit"),
        (0.037, 0.050),
    ),
    Contest(
        "Gradient pursuit, coherent atoms",
        planted.coherent,
        fvu,
        Given("topk", {"k": 3}, solver="GradientPursuit"),
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
        TOP_K,
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
