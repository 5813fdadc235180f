"""p-values and q-values against closed forms, brute force and simulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_sae.evaluation.significance import Clusters, benjamini_hochberg, critical_t, two_sided_p


T = torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 100.0, 1e4], dtype=torch.float64)


def test_students_tail_equals_its_closed_forms():
    torch.testing.assert_close(two_sided_p(T, 1), 1 - 2 / math.pi * T.atan(), atol=1e-13, rtol=1e-9)
    root = (2 + T.square()).sqrt()
    torch.testing.assert_close(two_sided_p(T, 2), 2 / (root * (root + T)), atol=0, rtol=1e-12)  # 1 - T / root
    cosine = 1 / (1 + T.square() / 4).sqrt()
    four = 1 - T / (4 + T.square()).sqrt() * (1 + cosine.square() / 2)
    torch.testing.assert_close(two_sided_p(T[:4], 4), four[:4], atol=1e-13, rtol=1e-9)
    torch.testing.assert_close(two_sided_p(T[:4], 1e7), torch.erfc(T[:4] / math.sqrt(2)), atol=1e-6, rtol=1e-5)
    assert two_sided_p(torch.tensor([math.inf, -math.inf], dtype=torch.float64), 7.5).tolist() == [0, 0]
    assert two_sided_p(torch.tensor([-3.0]), 5) == two_sided_p(torch.tensor([3.0]), 5)


def test_critical_values_are_those_of_the_tables():
    for df, value in ((1, 12.7062), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1e6, 1.9600)):
        assert critical_t(df) == pytest.approx(value, abs=1e-4)


def test_q_values_by_hand():
    # sorted 0.005 0.01 0.03 0.04 times 4/rank: 0.02 0.02 0.04 0.04
    torch.testing.assert_close(
        benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.005])),
        torch.tensor([0.02, 0.04, 0.04, 0.02], dtype=torch.float64),
        atol=1e-7,
        rtol=1e-6,
    )
    assert benjamini_hochberg(torch.tensor([1.0, 1.0, 1.0])).tolist() == [1, 1, 1]
    assert benjamini_hochberg(torch.tensor([0.2])).tolist() == pytest.approx([0.2])
    assert len(benjamini_hochberg(torch.zeros(0))) == 0


def test_q_values_equal_brute_force_over_thresholds():
    p = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(2)
    q = benjamini_hochberg(p)
    for i in range(len(p)):
        rates = [float(t) * len(p) / int((p <= t).sum()) for t in p if t >= p[i]]
        assert q[i].item() == pytest.approx(min(1, *rates))


def sums(changes: Tensor, clusters: Clusters) -> tuple[Tensor, Tensor, Tensor]:
    """`changes` is `[..., documents]`."""
    weights, sizes = clusters.weights, clusters.sizes
    return changes.sum(-1), (weights * changes.square()).sum(-1), (weights * changes * sizes).sum(-1)


def test_the_standard_error_is_the_jackknife_over_documents():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([3.0, 50.0, 8.0, 20.0, 1.0], dtype=torch.float64)
    changes = torch.randn(5, generator=generator, dtype=torch.float64) * sizes
    left_out = [(changes.sum() - changes[g]) / (sizes.sum() - sizes[g]) for g in range(5)]
    theta = changes.sum() / sizes.sum()
    expected = math.sqrt(sum(float(value - theta) ** 2 for value in left_out))
    clusters = Clusters(sizes)
    assert clusters.standard_error(*sums(changes, clusters)).item() == pytest.approx(expected, rel=1e-12)


def test_degrees_of_freedom_count_documents_of_equal_length_and_no_more_where_one_decides():
    assert Clusters(torch.full((12,), 7.0, dtype=torch.float64)).degrees_of_freedom == pytest.approx(11)
    lengths = torch.tensor([3000.0, *[100.0] * 30], dtype=torch.float64)
    assert 1 < Clusters(lengths).degrees_of_freedom < 6
    assert Clusters(torch.tensor([40.0], dtype=torch.float64)).degrees_of_freedom == 0


@pytest.mark.parametrize("dependence", ["tokens", "documents"])
@pytest.mark.parametrize("lengths", ["equal", "unequal"])
def test_without_a_change_no_more_is_found_than_the_level_says(lengths: str, dependence: str):
    generator, repeats = torch.Generator().manual_seed(1), 20_000
    sizes = torch.full((30,), 100.0, dtype=torch.float64)
    if lengths == "unequal":
        sizes = torch.randn(30, generator=generator, dtype=torch.float64).add(6).exp().round()
    spread = sizes.sqrt() if dependence == "tokens" else sizes
    changes = torch.randn(repeats, 30, generator=generator, dtype=torch.float64) * spread
    clusters = Clusters(sizes)
    total, *rest = sums(changes, clusters)
    t = total / clusters.tokens / clusters.standard_error(total, *rest)
    p = two_sided_p(t, clusters.degrees_of_freedom)
    for level in (0.05, 0.01, 0.001):
        found, noise = float((p < level).double().mean()), 4 * math.sqrt(level * (1 - level) / repeats)
        assert found < 1.15 * level + noise
        assert found > 0.3 * level - noise, "not empty of power either"
