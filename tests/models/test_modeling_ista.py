from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import ISTASAE, AutoSAE, ConfigError, ISTAConfig, StandardConfig, StandardSAE, TrainingState
from hf_sae.models.modeling_ista import crate_step, gram_norm
from hf_sae.training.optimizer import RowAdam


def build(**changes) -> ISTASAE:
    torch.manual_seed(0)
    sae = ISTASAE(ISTAConfig(**{"d_in": 8, "d_sae": 24, "hook_in": "resid_post.0"} | changes)).double().eval()
    with torch.no_grad():
        sae.decoder.bias.normal_()
    return sae


def objective(sae: ISTASAE, x: Tensor, latents: Tensor) -> Tensor:
    """`½‖x - b - z W‖² + λ Σ z` of each token."""
    error = x - sae.decoder.bias - latents @ sae.decoder.weight
    return (0.5 * error.square().sum(-1) + sae.threshold * latents.sum(-1)).detach()


def test_one_step_is_a_relu_sae() -> None:
    sae = build(n_steps=1)
    relu = StandardSAE(StandardConfig(d_in=8, d_sae=24, hook_in="resid_post.0")).double().eval()
    with torch.no_grad():
        relu.encoder.weight.copy_(sae.step_size * sae.decoder.weight)
        relu.encoder.bias.fill_(-float(sae.step_size * sae.threshold))
        relu.decoder.load_state_dict(sae.decoder.state_dict())
    x = torch.randn(40, 8, dtype=torch.float64)
    torch.testing.assert_close(sae.encode(x), relu.encode(x), atol=1e-14, rtol=0)
    torch.testing.assert_close(sae(x).reconstruction, relu(x).reconstruction, atol=1e-14, rtol=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_objective_falls_with_every_step_to_the_solution(adaptive: bool) -> None:
    sae, x = build(d_sae=10, adaptive_steps=adaptive), 3 * torch.randn(60, 8, dtype=torch.float64)
    assert float(sae.step_size * torch.linalg.matrix_norm(sae.W_dec, 2) ** 2) <= 1
    values = [objective(sae, x, torch.zeros(60, 10, dtype=torch.float64))]
    for sae.config.n_steps in (1, 2, 3, 5, 10, 50, 1000):
        values.append(objective(sae, x, sae.encode(x)))
    assert (torch.stack(values).diff(dim=0) <= 1e-12).all()
    # at the end the conditions of the lasso hold: the correlation with the residual is λ where a latent is on, and no more elsewhere
    latents = sae.encode(x)
    slope = (x - sae.decode(latents)) @ sae.W_dec.T
    assert (slope - sae.threshold)[latents > 0].abs().max() < 1e-3
    assert (slope - sae.threshold).max() < 1e-3


def test_a_step_that_is_too_long_does_not_descend() -> None:
    """What the bound on the step size is for."""
    sae, x = build(n_steps=30, adaptive_steps=False), 3 * torch.randn(60, 8, dtype=torch.float64)
    good = objective(sae, x, sae.encode(x)).mean()
    with torch.no_grad():
        sae.step_size.mul_(3)
    assert objective(sae, x, sae.encode(x)).mean() > 10 * good


def test_adaptive_steps_arrive_sooner() -> None:
    """On atoms that share a direction, as learnt ones do, ten leave a tenth of what ten constant ones do."""
    sae, x = build(d_in=16, d_sae=64), torch.randn(60, 16, dtype=torch.float64)
    with torch.no_grad():
        common = F.normalize(torch.randn(16, dtype=torch.float64), dim=0)
        sae.decoder.weight.copy_(F.normalize(sae.decoder.weight + 0.7 * common, dim=-1))
        sae.after_step(TrainingState(), None)
    sae.config.n_steps = 1000
    best = objective(sae, x, sae.encode(x)).mean()
    sae.config.n_steps, left = 10, []
    for sae.config.adaptive_steps in (True, False):
        left.append(float(objective(sae, x, sae.encode(x)).mean() - best))
    assert 0 <= left[0] < 0.1 * left[1]


def test_training_has_the_gradient_of_the_solution() -> None:
    """Near the solution the last step's gradient is the whole one: the loss does not depend on the code to first order."""
    sae, x = build(d_sae=10, n_steps=1000), torch.randn(30, 8, dtype=torch.float64)
    sae(x, state=TrainingState(normaliser=7.0)).loss.backward()
    ours, sae.decoder.weight.grad = sae.decoder.weight.grad, None
    fixed = sae.encode(x).detach()
    error = (x - sae.decoder.bias - fixed @ sae.decoder.weight).square().sum(-1).mean() / 7.0
    error.backward()
    torch.testing.assert_close(ours, sae.decoder.weight.grad, atol=1e-5, rtol=1e-3)


def test_loss_is_twice_the_objective() -> None:
    for input_norm in ("none", "scalar"):
        sae = build(input_norm=input_norm, input_scale=0.5 if input_norm == "scalar" else 1.0)
        x = torch.randn(30, 8, dtype=torch.float64)
        normalised = sae.normalize(x)[0]
        unit = float(normalised[0, 0] / x[0, 0])
        expected = 2 * objective(sae, normalised, sae.encode(x)).mean() / unit**2 / 7.0
        torch.testing.assert_close(sae(x, state=TrainingState(normaliser=7.0)).loss, expected, check_dtype=False)


def test_power_iteration_finds_the_norm() -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 6, dtype=torch.float64) @ torch.diag(
        torch.tensor([3.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    )
    norm, direction = gram_norm(rows, None, 50)
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(rows, 2) ** 2)
    again, _ = gram_norm(rows, direction, 1)
    torch.testing.assert_close(again, norm)


def test_step_size_follows_the_dictionary_and_training_resumes(tmp_path: Path) -> None:
    """Rows move towards each other, so that the norm grows several times over; the direction is carried by the state."""
    sae, state = build(), TrainingState()
    common = F.normalize(torch.randn(8, dtype=torch.float64), dim=0)
    before = float(sae.step_size)
    for _ in range(60):
        with torch.no_grad():
            sae.decoder.weight.copy_(F.normalize(sae.decoder.weight + 0.02 * common, dim=-1))
        sae.after_step(state, None)
        assert 0.9 < float(sae.step_size * torch.linalg.matrix_norm(sae.W_dec, 2) ** 2) <= 1
    assert float(sae.step_size) < 0.5 * before
    assert set(state.tensors) == {"direction"}
    sae.save_pretrained(tmp_path)
    loaded = AutoSAE.from_pretrained(tmp_path)
    assert sorted(loaded.state_dict()) == ["decoder.bias", "decoder.weight", "step_size", "threshold"]
    assert torch.equal(loaded.step_size, sae.step_size)
    low = AutoSAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert low.step_size.dtype == low.threshold.dtype == torch.float32


def test_threshold_has_the_units_of_the_data() -> None:
    codes = []
    for scale in (1.0, 100.0):
        sae, state = build(l1_coefficient=0.1), TrainingState()
        x = scale * torch.randn(500, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        sae.initialize_from(x, x, state)
        codes.append(sae.encode(x) / scale)
    torch.testing.assert_close(codes[0], codes[1])


def test_crate_step() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(crate_step(x, torch.eye(4, dtype=torch.float64), 1.0, 0.3), torch.relu(x - 0.3))
    torch.manual_seed(0)
    dictionary = torch.randn(4, 4, dtype=torch.float64)  # D, an atom a column
    by_hand = [torch.relu(row + 0.1 * dictionary.T @ (row - dictionary @ row) - 0.1 * 0.5) for row in x]
    torch.testing.assert_close(crate_step(x, dictionary.T, 0.1, 0.5), torch.stack(by_hand))
    # from a non-negative start it is a step down on the lasso, with the token as what is coded
    start, step = x.abs(), 0.9 / float(torch.linalg.matrix_norm(dictionary, 2) ** 2)

    def lasso(z: Tensor) -> Tensor:
        return 0.5 * (start - z @ dictionary.T).square().sum(-1) + 0.2 * z.sum(-1)

    assert (lasso(crate_step(start, dictionary.T, step, 0.2)) <= lasso(start)).all()


@pytest.mark.parametrize("change", [{"n_steps": 0}, {"l1_coefficient": -1.0}, {"pre_bias": False}], ids=str)
def test_bad_config(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        build(**change)


def test_recovers_a_planted_dictionary() -> None:
    """Sums of 2 of 12 atoms in 8 dimensions: more steps leave less error with fewer latents, and find the atoms."""
    results = {}
    for n_steps in (1, 6):
        generator = torch.Generator().manual_seed(0)
        atoms = F.normalize(torch.randn(12, 8, generator=generator), dim=-1)

        def tokens(n: int, atoms: Tensor = atoms, generator: torch.Generator = generator) -> Tensor:
            chosen = torch.rand(n, 12, generator=generator).topk(2).indices
            return torch.zeros(n, 12).scatter(-1, chosen, 0.5 + torch.rand(n, 2, generator=generator)) @ atoms

        torch.manual_seed(0)
        sae = ISTASAE(ISTAConfig(d_in=8, d_sae=12, n_steps=n_steps, l1_coefficient=0.05, hook_in="resid_post.0"))
        x, state = tokens(2000), TrainingState(total_steps=150)
        sae.initialize_from(x, x, state)
        optimizer = RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight], lr=3e-2)
        for state.step in range(150):
            output = sae(tokens(128), state=state)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            sae.after_step(state, output)
        x = tokens(2000)
        with torch.no_grad():
            left = float((x - sae(x).reconstruction).square().sum() / (x - x.mean(0)).square().sum())
        best = (sae.W_dec @ atoms.T).max(0).values
        results[n_steps] = (left, float(sae.encode_sparse(x).l0()), float(best.mean()))
    assert results[6][0] < 0.5 * results[1][0]
    assert results[6][1] < results[1][1]
    assert results[6][2] > 0.9
