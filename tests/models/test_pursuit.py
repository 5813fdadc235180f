"""Solvers on frozen dictionaries, against closed forms and brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import (
    SAE,
    ConfigError,
    GradientPursuit,
    MatchingPursuit,
    OrthogonalMatchingPursuit,
    Solver,
    TopKConfig,
    TopKSAE,
    pursuit,
)


SOLVERS = [MatchingPursuit, GradientPursuit, OrthogonalMatchingPursuit]


def dense(values: Tensor, indices: Tensor, d_sae: int) -> Tensor:
    for row in indices.tolist():
        assert len(set(row)) == len(row), "a latent is listed twice"
    return values.new_zeros(len(values), d_sae).scatter(-1, indices, values)


def coherent(n: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that are sums of 3 of 64 random unit atoms in 16 dimensions; the atoms; the amounts."""
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(64, 16, generator=generator, dtype=torch.float64), dim=-1)
    chosen = torch.rand(n, 64, generator=generator).topk(3).indices
    amounts = torch.zeros(n, 64, dtype=torch.float64).scatter(
        -1, chosen, 0.5 + torch.rand(n, 3, generator=generator, dtype=torch.float64)
    )
    return amounts @ atoms, atoms, amounts


def one_shot(target: Tensor, atoms: Tensor, k: int) -> Tensor:
    """The baseline: the k largest projections, all at once."""
    projections = target @ atoms.T
    values, indices = projections.topk(k)
    return torch.zeros_like(projections).scatter(-1, indices, values.relu())


def build(**changes) -> SAE:
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(**{"d_in": 16, "d_sae": 64, "k": 3, "hook_in": "resid_post.0"} | changes)).double().eval()
    with torch.no_grad():
        sae.decoder.bias.normal_()
    return sae


@pytest.mark.parametrize("solver", SOLVERS)
def test_orthonormal_atoms_give_top_k(solver: type[Solver]) -> None:
    torch.manual_seed(0)
    atoms, x = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q, torch.randn(200, 16, dtype=torch.float64)
    for k in (1, 4, 16):  # with 16, half of the picks find no positive correlation
        code = dense(*solver(k).solve(x, atoms), 16)
        torch.testing.assert_close(code, one_shot(x, atoms, k), atol=1e-12, rtol=0)


def test_order_on_a_coherent_dictionary() -> None:
    """At the same L0: least squares < gradient < matching pursuit < projections taken at once."""
    for seed in range(3):
        x, atoms, _ = coherent(seed=seed)
        codes = [dense(*solver(3).solve(x, atoms), 64) for solver in reversed(SOLVERS)] + [one_shot(x, atoms, 3)]
        left = [float((x - code @ atoms).square().sum() / (x - x.mean(0)).square().sum()) for code in codes]
        orthogonal, gradient, matching, at_once = left
        assert orthogonal < 0.03 < gradient < 0.047 < matching < 0.06 < 0.4 < at_once
        assert all((code != 0).sum(-1).max() <= 3 for code in codes)
        assert all((code >= 0).all() for code in codes)
        assert (codes[-1] != 0).sum() == 3 * len(x)  # the baseline has no fewer latents than the solvers


@pytest.mark.parametrize("solver", SOLVERS)
def test_residuals_do_not_grow_with_k(solver: type[Solver]) -> None:
    x, atoms, _ = coherent(300)
    codes = [dense(*solver(k).solve(x, atoms), 64) for k in range(1, 8)]
    lengths = torch.stack([(x - code @ atoms).norm(dim=-1) for code in codes])
    if solver is GradientPursuit:  # a clipped step may be too long: mean only
        lengths = lengths.mean(-1, keepdim=True)
    assert (lengths.diff(dim=0) <= 1e-12).all()


def test_orthogonal_pursuit_is_optimal_in_the_span() -> None:
    """The residual is orthogonal to every chosen atom, and no other non-negative amounts of the chosen atoms do better."""
    x, atoms, _ = coherent(60, seed=1)
    code = dense(*OrthogonalMatchingPursuit(5).solve(x, atoms), 64)
    residual = x - code @ atoms
    assert ((residual @ atoms.T)[code > 0]).abs().max() < 1e-11
    for row in range(60):
        support = code[row].nonzero().squeeze(1)
        best = min(
            float((x[row] - least_squares(x[row], atoms[list(subset)])).norm())
            for size in range(1, len(support) + 1)
            for subset in itertools.combinations(support.tolist(), size)
            if (torch.linalg.lstsq(atoms[list(subset)].T, x[row]).solution >= 0).all()
        )
        assert float(residual[row].norm()) <= best + 1e-10


def least_squares(target: Tensor, atoms: Tensor) -> Tensor:
    return torch.linalg.lstsq(atoms.T, target).solution @ atoms


def test_orthogonal_pursuit_drops_atoms_that_would_turn_negative() -> None:
    """In the plane: the first pick lies between the other two, which alone give the target."""
    atoms = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.9]], dtype=torch.float64), dim=-1)
    target = torch.tensor([[1.0, 0.5]], dtype=torch.float64)  # nearest to the third, exactly a sum of the first two
    assert MatchingPursuit(1).solve(target, atoms)[1].item() == 2
    code = dense(*OrthogonalMatchingPursuit(2).solve(target, atoms), 3)
    torch.testing.assert_close(code @ atoms, target, atol=1e-12, rtol=0)
    target = torch.tensor([[1.0, 0.05], [1.0, -0.5]], dtype=torch.float64)
    thin = torch.cat([atoms, F.normalize(torch.tensor([[1.0, 0.3]], dtype=torch.float64), dim=-1)])
    code = dense(*OrthogonalMatchingPursuit(3).solve(target, thin), 4)
    assert (code >= 0).all()
    torch.testing.assert_close(code[1] @ thin, target.new_tensor([1.0, 0.0]), atol=1e-12, rtol=0)


def test_least_squares_of_crowded_supports_are_non_negative_and_optimal() -> None:
    """Many atoms on one side of few dimensions, so that several leave at once: Kuhn and Tucker's conditions hold on those that stay,
    and no error ever grows."""
    generator = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(60, 8, generator=generator, dtype=torch.float64) + 1.5, dim=-1)
    x = torch.randn(600, 8, generator=generator, dtype=torch.float64) + 1.5
    lengths = []
    for k in range(1, 13):
        code = dense(*OrthogonalMatchingPursuit(k).solve(x, atoms), 60)
        residual = x - code @ atoms
        assert (code >= 0).all()
        assert (residual @ atoms.T)[code > 0].abs().max() < 1e-9
        lengths.append(residual.norm(dim=-1))
    assert (torch.stack(lengths).diff(dim=0) <= 1e-11).all()


def test_matching_pursuit_merges_an_atom_that_comes_again() -> None:
    atoms = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [0.0, -1.0]], dtype=torch.float64)
    target = (2 * atoms[0] + atoms[1]).unsqueeze(0)  # picks 0, 1 and, with what 1 took too much of it, 0 again
    values, indices, residual = [], [], target[0]
    for _ in range(3):
        best = int((atoms @ residual).argmax())
        indices.append(best)
        values.append(float(atoms[best] @ residual))
        residual = residual - values[-1] * atoms[best]
    assert indices == [0, 1, 0]
    expected = torch.zeros(1, 3, dtype=torch.float64)
    for value, index in zip(values, indices, strict=True):
        expected[0, index] += value
    torch.testing.assert_close(dense(*MatchingPursuit(3).solve(target, atoms), 3), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_explain(solver: type[Solver]) -> None:
    """Zero tokens, tokens with no positive correlation, zero atoms, an empty batch."""
    atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0], [-1.0, -2.0], [3.0, -1.0]])
    code = dense(*solver(2).solve(target, atoms), 3)
    assert code.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]
    assert solver(2).solve(target[:0], atoms)[0].shape == (0, 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_decoder_norms_change_latents_and_not_the_reconstruction(solver: type[Solver]) -> None:
    sae, x = build(), torch.randn(50, 16, dtype=torch.float64)
    before = sae.encode_sparse(x, solver=solver(4))
    expected = sae.decode(before)
    norms = 0.1 + 5 * torch.rand(64, dtype=torch.float64)
    with torch.no_grad():
        sae.decoder.weight.mul_(norms.unsqueeze(1))
    after = sae.encode_sparse(x, solver=solver(4))
    torch.testing.assert_close(sae.decode(after), expected)
    torch.testing.assert_close(after.to_dense() * norms, before.to_dense())


@pytest.mark.parametrize("input_norm", ["none", "scalar", "layer_norm", "unit_rms"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_tokens_that_the_dictionary_can_write_are_found(solver: type[Solver], input_norm: str) -> None:
    """Bias and units: tokens are decoded from one latent each, and the solver returns that latent."""
    sae = build(input_norm=input_norm, input_scale=0.1 if input_norm == "scalar" else 1.0)
    x = 3 + torch.randn(10, 16, dtype=torch.float64)
    normalised, norm = sae.normalize(x)
    amounts = torch.zeros(10, 64, dtype=torch.float64)
    amounts[torch.arange(10), torch.arange(10)] = 2.0
    wanted = amounts @ sae.decoder.weight + sae.decoder.bias
    values, indices = solver(1).solve((wanted - sae.decoder.bias).detach(), sae.decoder.weight)
    torch.testing.assert_close(dense(values, indices, 64), amounts)
    code = sae.encode_sparse(x.view(2, 5, 16), solver=solver(3))
    assert code.shape == (2, 5)
    by_hand = dense(*solver(3).solve((normalised - sae.decoder.bias).detach(), sae.decoder.weight), 64)
    torch.testing.assert_close(code.to_dense().view(10, 64), by_hand)
    reconstruction = by_hand @ sae.decoder.weight + sae.decoder.bias
    undone = sae.to_output_units(reconstruction, norm) + (norm[0] if norm is not None else 0)
    torch.testing.assert_close(sae.decode(code).view(10, 16), undone)


def test_as_many_as_the_encoder_takes() -> None:
    """Without k, each token has the budget of the SAE's own code, and is solved as it would be with that k."""
    from hf_sae.models import StandardConfig, StandardSAE

    torch.manual_seed(0)
    sae = StandardSAE(StandardConfig(d_in=16, d_sae=64, hook_in="resid_post.0")).double().eval()
    with torch.no_grad():
        sae.encoder.bias.fill_(-1.2)
    x = torch.randn(40, 16, dtype=torch.float64)
    own = sae.encode_sparse(x).counts()
    assert own.min() < own.max()
    for solver in SOLVERS:
        code = sae.encode_sparse(x, solver=solver())
        assert (code.counts() <= own).all()
        for row in range(0, 40, 7):
            if count := int(own[row]):
                alone = sae.encode_sparse(x[row : row + 1], solver=solver(count))
                torch.testing.assert_close(code.to_dense()[row : row + 1], alone.to_dense())


@pytest.mark.parametrize("solver", SOLVERS)
def test_chunks_and_tables_change_nothing(solver: type[Solver], monkeypatch: pytest.MonkeyPatch) -> None:
    x, atoms, _ = coherent(100)
    whole = dense(*solver(4).solve(x, atoms), 64)
    monkeypatch.setattr(pursuit, "GRAM_BYTES", 0)
    torch.testing.assert_close(dense(*solver(4).solve(x, atoms), 64), whole)
    monkeypatch.setattr(pursuit, "CHUNK_BYTES", 5000)
    torch.testing.assert_close(dense(*solver(4).solve(x, atoms), 64), whole)


def test_a_transcoder_is_coded_by_its_target() -> None:
    places = {"hook_in": "mlp_in.0", "hook_out": "mlp_out.0", "d_out": 10, "skip": True}
    sae = build(**places)
    with torch.no_grad():
        sae.skip.weight.normal_()
    x, amounts = torch.randn(20, 16, dtype=torch.float64), torch.zeros(20, 64, dtype=torch.float64)
    amounts[torch.arange(20), torch.arange(20)] = 1.5
    target = (sae.decode(amounts) + sae.skip(x)).detach()
    code = GradientPursuit(1).encode(sae, x, target=target)
    torch.testing.assert_close(code.to_dense(), amounts)
    with pytest.raises(ConfigError, match=r"mlp_out\.0.*target="):
        sae.encode_sparse(x, solver=GradientPursuit(1))
    with pytest.raises(ConfigError, match="target"):
        GradientPursuit(1).encode(build(), x, target=x)


def test_bad_input() -> None:
    for solver in SOLVERS:
        with pytest.raises(ConfigError, match="k=0"):
            solver(0)
        with pytest.raises(ConfigError, match=r"k=65.*d_sae=64"):
            build().encode_sparse(torch.randn(2, 16), solver=solver(65))
        with pytest.raises(ConfigError, match="budget"):
            solver().solve(torch.randn(2, 16), torch.randn(8, 16))
        with pytest.raises(ConfigError, match=r"\[2, 15\]"):
            solver(1).solve(torch.randn(2, 15), torch.randn(8, 16))


def test_half_precision_is_solved_in_float32() -> None:
    sae, x = build(), torch.randn(30, 16)
    low = build().to(torch.bfloat16)
    code = low.encode_sparse(x.bfloat16(), solver=GradientPursuit(3))
    assert code.values.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        same = sae.float().encode_sparse(x, solver=GradientPursuit(3))
    torch.testing.assert_close(same.to_dense(), build().float().encode_sparse(x, solver=GradientPursuit(3)).to_dense())
