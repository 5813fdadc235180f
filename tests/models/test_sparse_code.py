from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from hf_sae.models import SparseCode


DENSE = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])


def fixed() -> SparseCode:
    values = torch.tensor([[2.0, -1.0], [0.0, 0.0], [3.0, 0.0]])
    return SparseCode(values, torch.tensor([[1, 3], [0, 2], [0, 1]]), None, 4)


def test_both_layouts_by_hand() -> None:
    for code in (fixed(), SparseCode.from_dense(DENSE)):
        assert torch.equal(code.to_dense(), DENSE)
        assert code.counts().tolist() == [2, 0, 1]
        assert code.firing_counts().tolist() == [1, 1, 0, 1]
        assert float(code.l0()) == 1.0
        rows, latents, values = code.flat()
        assert (rows.tolist(), latents.tolist(), values.tolist()) == ([0, 0, 2], [1, 3, 0], [2.0, -1.0, 3.0])


def test_leading_shape_and_empty_code() -> None:
    code = SparseCode.from_dense(torch.zeros(2, 3, 4))
    assert code.shape == (2, 3)
    assert code.to_dense().shape == (2, 3, 4)
    assert float(code.l0()) == 0
    assert code.flat()[0].numel() == 0


def test_is_a_pytree() -> None:
    doubled = tree_map(lambda t: t * 2 if isinstance(t, torch.Tensor) and t.is_floating_point() else t, fixed())
    assert torch.equal(doubled.to_dense(), DENSE * 2)


def test_gradient_reaches_the_values() -> None:
    dense = DENSE.clone().requires_grad_()
    SparseCode.from_dense(dense).to_dense().square().sum().backward()
    assert torch.equal(dense.grad, 2 * DENSE)
