"""g-SAE: the formulas by hand, and TopK where the gradient says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_sae.models import (
    AutoSAE,
    CheckpointError,
    ConfigError,
    GradientConfig,
    GradientSAE,
    TopKConfig,
    TopKSAE,
    TrainingState,
)
from hf_sae.models.modeling_gradient import unit_rms


D, N, K = 16, 32, 4


def pair(beta: float = 1.0, dtype: torch.dtype = torch.float64, **changes) -> tuple[GradientSAE, TopKSAE]:
    """A g-SAE and a TopK SAE with the same weights."""
    torch.manual_seed(0)
    sae = GradientSAE(GradientConfig(d_in=D, d_sae=N, k=K, beta=beta, **changes)).to(dtype).eval()
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.randn(N, D))
        sae.encoder.bias.normal_()
        sae.decoder.bias.normal_()
    topk = TopKSAE(TopKConfig(d_in=D, d_sae=N, k=K)).to(dtype).eval()
    topk.load_state_dict({key: value for key, value in sae.state_dict().items() if key != "threshold"})
    return sae, topk


def batch(dtype: torch.dtype = torch.float64, n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(n, D, generator=generator, dtype=dtype),
        torch.randn(n, D, generator=generator, dtype=dtype) * 1e-3,
    )


def state_with(gradient: Tensor) -> TrainingState:
    return TrainingState(
        normaliser=3.0,
        given={"gradient": gradient},
        dead_after_tokens=5,
        tokens_since_fired=torch.arange(N) % 9,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_weight_on_the_gradient_it_is_topk_bit_for_bit(dtype):
    sae, topk = pair(beta=0.0, dtype=dtype)
    x, gradient = batch(dtype)
    mine, theirs = sae.encode_sparse(x, gradient=gradient), topk.encode_sparse(x)
    assert torch.equal(mine.values, theirs.values)
    assert torch.equal(mine.indices, theirs.indices)
    state = state_with(gradient)
    outputs = [model.train()(x, target=x, state=state) for model in (sae, topk)]
    assert "auxk" in outputs[0].losses
    for output in outputs:
        output.loss.backward()
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    for name, parameter in topk.named_parameters():
        assert torch.equal(sae.get_parameter(name).grad, parameter.grad), name


def test_an_effect_that_is_the_same_for_all_latents_chooses_as_topk():
    sae, topk = pair(beta=3.0)
    x, _ = batch()
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
        sae.decoder.weight.copy_(torch.cat([basis, -basis]))
    gradient = (0.02 * basis.sum(0)).expand_as(x)  # |w · g| = 0.02 for every row of the dictionary
    assert torch.equal(sae.encode(x, gradient=gradient), topk.encode(x))


def test_the_size_of_a_gradient_changes_nothing_and_none_is_topk():
    sae, topk = pair()
    x, gradient = batch()
    chosen = sae.encode(x, gradient=gradient)
    assert not torch.equal(chosen, topk.encode(x))
    for factor in (1e-30, 0.3, 1e20):
        assert torch.equal(sae.encode(x, gradient=factor * gradient), chosen), factor
    assert torch.equal(sae.encode(x, gradient=-gradient), chosen)
    assert torch.equal(sae.encode(x, gradient=torch.zeros_like(x)), topk.encode(x))
    tiny = torch.full((1, D), 1e-30)
    assert torch.allclose(unit_rms(tiny), torch.ones(1, D))
    assert torch.equal(unit_rms(torch.zeros(1, D)), torch.zeros(1, D))


@pytest.mark.parametrize("input_norm", ["none", "layer_norm"])
def test_latents_are_ranked_by_the_formula_and_passed_on_as_they_are(input_norm):
    sae, _ = pair(beta=2.0, input_norm=input_norm)
    x, gradient = batch()
    z = torch.relu(sae.pre_activations(sae.normalize(x)[0]))
    expected = torch.zeros_like(z)
    for token in range(len(x)):
        g = gradient[token] / gradient[token].square().mean().sqrt()
        score = z[token] + 2.0 * z[token] * (sae.decoder.weight @ g).abs()
        best = score.argsort(descending=True)[:K]
        expected[token, best] = z[token, best]
    torch.testing.assert_close(sae.encode(x, gradient=gradient), expected)
    code = sae.encode_sparse(x, gradient=gradient)
    torch.testing.assert_close(code.to_dense(), expected)
    for output in (sae(x, gradient=gradient), sae(x, target=x, gradient=gradient), sae.train()(x, gradient=gradient)):
        torch.testing.assert_close(output.code.to_dense(), expected)
        torch.testing.assert_close(output.reconstruction, sae.decode(code))


def test_influential_latents_are_kept_and_the_error_grows():
    """Of each token four loud atoms do nothing to the loss and four quiet ones all of it; the dictionary is the true one."""
    generator = torch.Generator().manual_seed(2)
    atoms = torch.linalg.qr(torch.randn(N, N, generator=generator)).Q
    half = N // 2
    which = torch.stack([torch.randperm(half, generator=generator)[:4] for _ in range(500)])
    amplitudes = torch.zeros(500, N).scatter(1, which, 1 + torch.rand(500, 4, generator=generator))
    amplitudes = amplitudes.scatter(1, which + half, 0.3 + 0.2 * torch.rand(500, 4, generator=generator))
    x = amplitudes @ atoms
    gradient = (atoms[half:].sum(0) * torch.rand(500, 1, generator=generator)).expand(500, N)
    effects, errors, counts = [], [], []
    for beta in (0.0, 1.0, 5.0):
        sae = GradientSAE(GradientConfig(d_in=N, d_sae=N, k=4, beta=beta))
        with torch.no_grad():
            sae.decoder.weight.copy_(atoms)
            sae.encoder.weight.copy_(atoms)
        output = sae.eval()(x, gradient=gradient)
        error = (x - output.reconstruction).detach()
        effects.append(float((gradient * error).sum(1).abs().mean()))
        errors.append(float(error.square().sum(1).mean()))
        counts.append(float(output.code.l0()))
    assert counts == [4.0, 4.0, 4.0]
    assert effects[0] > effects[1] > effects[2]
    assert effects[2] < 0.1 * effects[0]
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 2 * errors[0]


def test_what_is_done_without_a_gradient():
    x, gradient = batch()
    sae, topk = pair(inference="topk")
    assert torch.equal(sae.encode(x), topk.encode(x))
    assert torch.equal(sae.train().encode(x), topk.encode(x))
    faithful, _ = pair(inference="gradient")
    assert torch.equal(faithful.encode(x, gradient=gradient), sae.encode(x, gradient=gradient))
    for call in (faithful, faithful.encode, faithful.encode_sparse, faithful.train()):
        with pytest.raises(ConfigError, match=r"got none: call it with gradient="):
            call(x)
    with pytest.raises(ConfigError, match=r"state.given\['gradient'\]"):
        sae(x, target=x, state=TrainingState())
    faithful.initialize_from(x, x, TrainingState())  # has no gradients either, and needs none


def test_k_latents_per_token_exceed_the_threshold_on_average(tmp_path: Path):
    sae, _ = pair(inference="threshold")
    x, gradient = batch()
    with pytest.raises(ConfigError, match="none yet"):
        sae(x)
    expected = None
    for part in (x[:25], x[25:]):
        output = sae.train()(part, target=part, state=state_with(gradient[:25]))
        sae.after_step(TrainingState(), output)
        exceeded = sae.pre_activations(part).flatten().sort(descending=True).values[25 * K - 1]
        if expected is None:
            assert float((sae.pre_activations(part) > sae.threshold).sum()) / 25 == pytest.approx(K, abs=1.01 / 25)
        expected = exceeded if expected is None else 0.999 * expected + 0.001 * exceeded
        torch.testing.assert_close(sae.threshold.double(), expected, rtol=1e-6, atol=0)
    pre = sae.eval().pre_activations(x)
    assert torch.equal(sae.encode(x), pre * (pre > sae.threshold))
    sae.float().save_pretrained(tmp_path)
    again = AutoSAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.config.inference == "threshold"
    assert torch.equal(again.threshold, sae.threshold)


def test_a_checkpoint_without_a_threshold_cannot_be_loaded_for_one(tmp_path: Path):
    sae, _ = pair(dtype=torch.float32)
    sae.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="threshold"):
        AutoSAE.from_pretrained(tmp_path, inference="threshold")
    other = AutoSAE.from_pretrained(tmp_path, inference="gradient")
    x, gradient = batch(torch.float32)
    assert torch.equal(other.encode(x, gradient=gradient), sae.encode(x, gradient=gradient))


@pytest.mark.parametrize(
    "wrong", [{"beta": -1.0}, {"beta": float("inf")}, {"k": 0}, {"k": N + 1}, {"inference": "none"}]
)
def test_values_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GradientConfig(d_in=D, d_sae=N, **{"k": K} | wrong)
