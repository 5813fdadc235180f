"""The sparse decode, encoder and weight gradients are the dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_sae.models import TopKConfig, TopKSAE
from hf_sae.models.entry_ops import decode_entries, select_entries, squared_error_of_entries
from hf_sae.models.outputs import TrainingState
from hf_sae.models.row_gradients import RowGradient, SomeRows, Transposed
from hf_sae.models.sparse_ops import (
    decode,
    dots,
    select_pre_activations,
    select_rows,
    squared_error,
    top_k,
)
from hf_sae.training.optimizer import RowAdam


TOKENS, D_IN, D_OUT, D_SAE = 37, 12, 10, 48


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = expected.abs().max().clamp_min(1e-30)
    assert float((actual - expected).abs().max() / scale) < tolerance


def some_code(k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values with zeros and negative numbers among them; a latent never twice in a row, but on many tokens."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(TOKENS, D_SAE, generator=generator).topk(k).indices
    values = torch.randn(TOKENS, k, generator=generator)
    values[::5] = 0
    values[:, 0] *= (torch.arange(TOKENS) % 3 > 0).float()
    return values, indices


def dense_of(values: Tensor, indices: Tensor) -> Tensor:
    return values.new_zeros(values.shape[0], D_SAE).scatter(-1, indices, values)


@pytest.mark.parametrize("k", [1, 5, D_SAE])
def test_decode_and_its_gradients_are_the_dense_products(k):
    values, indices = some_code(k)
    weight, upstream = torch.randn(D_SAE, D_OUT), torch.randn(TOKENS, D_OUT)
    grads = []
    for sparse in (True, False):
        v, w = values.clone().requires_grad_(), weight.clone().requires_grad_()
        out = decode(v, indices, w) if sparse else dense_of(v, indices) @ w
        out.backward(upstream)
        grads.append((out.detach(), v.grad, w.grad))
    for actual, expected in zip(*grads, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("frozen", ["values", "weight", "both"])
def test_decode_gives_gradients_to_what_asks_for_them(frozen):
    values, indices = some_code(4)
    v = values.clone().requires_grad_(frozen == "weight")
    w = torch.randn(D_SAE, D_OUT, requires_grad=frozen == "values")
    out = decode(v, indices, w)
    close(out.detach(), dense_of(values, indices) @ w.detach())
    assert out.requires_grad == (frozen != "both")
    if out.requires_grad:
        out.sum().backward()
        assert (v.grad is None) == (frozen in ("values", "both"))
        assert (w.grad is None) == (frozen in ("weight", "both"))


def test_decode_under_no_grad_has_no_graph():
    values, indices = some_code(4)
    with torch.no_grad():
        assert not decode(values, indices, torch.randn(D_SAE, D_OUT, requires_grad=True)).requires_grad


def test_a_latent_that_fires_on_every_token_and_one_that_fires_on_none():
    indices = torch.tensor([[3, t % 3] for t in range(TOKENS)])
    values, rows = torch.randn(TOKENS, 2), torch.randn(TOKENS, D_OUT)
    total = Transposed(indices, D_SAE).sum_rows(values, rows)
    close(total, dense_of(values, indices).T @ rows)
    assert torch.equal(total[4:], torch.zeros(D_SAE - 4, D_OUT))


def test_transposed_sum_adds_a_latent_that_stands_twice_in_a_row():
    indices = torch.tensor([[2, 2], [2, 0]])
    values, rows = torch.tensor([[1.0, 10.0], [100.0, 1.0]]), torch.tensor([[1.0], [1.0]])
    total = Transposed(indices, 4).sum_rows(values, rows)
    assert total.flatten().tolist() == [1.0, 0.0, 111.0, 0.0]


def test_the_sum_depends_on_the_indices_only():
    values, indices = some_code(6)
    rows = torch.randn(TOKENS, D_OUT)
    first = Transposed(indices, D_SAE).sum_rows(values, rows)
    assert torch.equal(first, Transposed(indices.clone(), D_SAE).sum_rows(values, rows))


def test_decode_entries_reads_compressed_rows_with_empty_ones():
    offsets = torch.tensor([0, 0, 3, 3, 5])
    indices, values = torch.tensor([1, 7, 2, 7, 0]), torch.randn(5, requires_grad=True)
    weight = torch.randn(D_SAE, D_OUT, requires_grad=True)
    dense = torch.zeros(4, D_SAE).index_put((torch.tensor([1, 1, 1, 3, 3]), indices), values)
    out = decode_entries(values, indices, offsets, weight)
    close(out.detach(), (dense @ weight).detach())
    upstream = torch.randn(4, D_OUT)
    sparse = torch.autograd.grad(out, (values, weight), upstream, retain_graph=True)
    for actual, expected in zip(sparse, torch.autograd.grad(dense @ weight, (values, weight), upstream), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("k", [1, 5, D_SAE])
@pytest.mark.parametrize("with_shift", [True, False])
def test_selected_pre_activations_have_the_gradients_of_the_dense_encoder(k, with_shift):
    x, weight, bias = torch.randn(TOKENS, D_IN), torch.randn(D_SAE, D_IN), torch.randn(D_SAE)
    shift, upstream = torch.randn(D_IN) if with_shift else None, torch.randn(TOKENS, k)
    centred = x if shift is None else x - shift
    pre = centred @ weight.T + bias
    indices = top_k(pre, k)
    results = []
    for sparse in (True, False):
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, bias, shift)]
        a, w, b, s = leaves
        if sparse:
            out, found, _ = select_pre_activations(a, (w, b), s, k)
            assert torch.equal(found, indices)
        else:
            out = ((a if s is None else a - s) @ w.T + b).gather(-1, indices)
        out.backward(upstream)
        results.append([out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 5, D_SAE])
def test_dots_are_the_dense_products_at_the_codes_places(k, dtype):
    _, indices = some_code(k)
    rows, weight = torch.randn(TOKENS, D_OUT, dtype=dtype), torch.randn(D_SAE, D_OUT, dtype=dtype)
    close(dots(rows, indices, weight), (rows @ weight.T).gather(1, indices))


@pytest.mark.parametrize("k", [1, 5, D_SAE])
def test_squared_error_and_its_gradients_are_the_dense_ones(k):
    values, indices = some_code(k)
    weight, bias, target = torch.randn(D_SAE, D_OUT), torch.randn(D_OUT), torch.randn(TOKENS, D_OUT)
    upstream, results = torch.rand(TOKENS), []
    for sparse in (True, False):
        v, w, b, t = (leaf.clone().requires_grad_() for leaf in (values, weight, bias, target))
        if sparse:
            squares, error = squared_error(v, indices, (w, b), t)
            assert not error.requires_grad
        else:
            error = t - b - dense_of(v, indices) @ w
            squares = error.square().sum(-1)
        squares.backward(upstream)
        results.append([squares.detach(), error.detach(), v.grad, w.grad, b.grad, t.grad])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


def test_selected_rows_have_the_gradient_of_indexing():
    weight, index, upstream = (
        torch.randn(D_SAE, D_IN, requires_grad=True),
        torch.tensor([0, 3, 47]),
        torch.randn(3, D_IN),
    )
    rows = select_rows(weight, index)
    assert torch.equal(rows, weight[index])
    rows.backward(upstream)
    expected = torch.zeros(D_SAE, D_IN).index_copy(0, index, upstream)
    assert torch.equal(weight.grad, expected)


def test_any_range_of_rows_is_that_part_of_the_gradient():
    values, indices = some_code(5)
    rows, weight = torch.randn(TOKENS, D_IN), torch.zeros(D_SAE, D_IN)
    gradient, some = (
        RowGradient(Transposed(indices, D_SAE), values, rows),
        SomeRows(torch.tensor([1, 9]), torch.ones(2, D_IN)),
    )
    expected = dense_of(values, indices).T @ rows
    expected[[1, 9]] += 1
    for start, stop in ((0, D_SAE), (0, 5), (5, 9), (9, 10), (40, D_SAE), (7, 7)):
        part = weight[start:stop].clone()
        for factor in (gradient, some):
            factor.add_to(part, slice(start, stop))
        torch.testing.assert_close(part, expected[start:stop])


@pytest.mark.parametrize(("d_sae", "k"), [(4096, 32), (3072, 7), (100, 1), (128, 128), (97, 3), (64, 2)])
def test_top_k_finds_the_k_largest(d_sae, k):
    pre = torch.randn(3, 11, d_sae)
    expected = pre.topk(k).values
    assert torch.equal(pre.gather(-1, top_k(pre, k)).sort(descending=True).values, expected)


def test_top_k_takes_k_different_latents_where_all_are_equal():
    indices = top_k(torch.zeros(5, 4096), 8)
    assert all(len(set(row)) == 8 for row in indices.tolist())


def test_top_k_finds_them_in_one_group():
    pre = torch.zeros(1, 4096)
    wanted = torch.arange(5, 4096, 512)
    pre[0, wanted] = torch.arange(1.0, 9.0)
    assert top_k(pre, 8).sort().values.tolist() == [wanted.tolist()]


def dense_loss(sae: TopKSAE, x: Tensor, k: int, normaliser: float) -> Tensor:
    pre = (x - sae.decoder.bias) @ sae.encoder.weight.T + sae.encoder.bias
    values, indices = pre.relu().topk(k)
    out = torch.zeros_like(pre).scatter(-1, indices, values) @ sae.decoder.weight + sae.decoder.bias
    return (x - out).square().sum(-1).mean() / normaliser


@pytest.mark.parametrize("k", [1, 8, 256])
def test_a_training_step_has_the_gradients_of_dense_autograd(k):
    torch.manual_seed(1)
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=256, k=k)).train()
    x = torch.randn(200, 16, requires_grad=True)
    state = TrainingState()
    sae.initialize_from(x.detach(), x.detach(), state)
    with torch.no_grad():  # away from the start, where tied unit rows make the encoder's gradient vanish at k=1
        for parameter in sae.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    loss = sae(x, state=state).loss
    parameters = [x, *sae.parameters()]
    sparse = torch.autograd.grad(loss, parameters)
    expected = dense_loss(sae, x, k, state.normaliser)
    close(loss.detach(), expected.detach())
    for actual, wanted in zip(sparse, torch.autograd.grad(expected, parameters), strict=True):
        close(actual, wanted)


def test_bfloat16_weights_train_with_gradients_of_their_dtype():
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=64, k=4)).bfloat16().train()
    x = torch.randn(50, 16)
    out = sae(x, state=TrainingState(normaliser=16.0))
    out.loss.backward()
    reference = TopKSAE(sae.config).train()
    reference.load_state_dict(sae.state_dict())
    reference(x.bfloat16().float(), state=TrainingState(normaliser=16.0)).loss.backward()
    for parameter, exact in zip(sae.parameters(), reference.parameters(), strict=True):
        assert parameter.grad.dtype == torch.bfloat16
        cosine = torch.cosine_similarity(parameter.grad.float().flatten(), exact.grad.flatten(), dim=0)
        assert cosine > 0.95


def test_autocast_computes_the_encoder_in_bfloat16_and_keeps_gradients_in_float32():
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=64, k=4)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae(torch.randn(50, 16), state=TrainingState(normaliser=16.0)).loss
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("factored", [True, False])
def test_a_list_of_entries_has_the_values_and_gradients_of_dense_products(share: float, factored: bool) -> None:
    torch.manual_seed(0)
    keep = torch.rand(TOKENS, D_SAE) < share
    keep[5] = False  # a token without any
    positions = keep.flatten().nonzero().squeeze(1)
    x, target = torch.randn(TOKENS, D_IN).double(), torch.randn(TOKENS, D_OUT).double()
    shapes = ((D_SAE, D_IN), (D_SAE,), (D_IN,), (D_SAE, D_OUT), (D_OUT,))
    tensors = [x, target, *(torch.randn(shape).double() for shape in shapes)]
    upstream, results = torch.rand(TOKENS).double(), []
    for ours in (True, False):
        a, t, e, b, s, w, c = (tensor.clone().requires_grad_() for tensor in tensors)
        optimizer = RowAdam([e, w], factored=[e, w] if ours and factored else [])
        if ours:
            values, (indices, offsets, transposed) = select_entries(a, (e, b), s, lambda _: positions)
            squares, error = squared_error_of_entries(values, indices, offsets, (w, c), t, transposed)
        else:
            pre = ((a - s) @ e.T + b) * keep
            error = t - c - pre @ w
            squares = error.square().sum(-1)
        squares.backward(upstream)
        optimizer.materialize()
        results.append([squares.detach(), error.detach(), *(tensor.grad for tensor in (a, t, e, b, s, w, c))])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-6)


def test_the_bias_gradient_of_a_list_with_fewer_entries_than_tokens() -> None:
    transposed = Transposed(torch.tensor([3, 1, 3]), 5, torch.tensor([0, 7, 90]))
    assert transposed.sum_values(torch.tensor([1.0, 2.0, 4.0])).tolist() == [0, 2, 0, 5, 0]
