from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import ConfigError, PAnnealConfig, PAnnealSAE, StandardConfig, StandardSAE, TrainingState
from hf_sae.training import SAETrainer, SAETrainingArguments


def build(**changes) -> PAnnealSAE:
    torch.manual_seed(0)
    settings = {"d_in": 6, "d_sae": 12, "hook_in": "resid_post.0", "l1_warmup_share": 0.0} | changes
    return PAnnealSAE(PAnnealConfig(**settings)).double()


def walk(sae: PAnnealSAE, x: Tensor, state: TrainingState, stop: int) -> list[float]:
    """Steps of fixed weights up to step `stop`: the penalty of each."""
    penalties = []
    while state.step < stop:
        sae.before_step(state)
        output = sae(x, state=state)
        penalties.append(output.losses["l1"].item())
        state.step += 1  # as training does, before `after_step`
        sae.after_step(state, output)
    return penalties


def test_exponent_falls_in_equal_steps_from_one_to_its_end() -> None:
    sae = build(p_end=0.2, p_steps=4, anneal_start_share=0.2, anneal_end_share=0.6)
    exponents = [sae.exponent(step, 100) for step in range(100)]
    assert exponents[:20] == [1.0] * 20
    torch.testing.assert_close(exponents[20:60:10], [0.8, 0.6, 0.4, 0.2])
    assert exponents[20:30] == [exponents[20]] * 10
    torch.testing.assert_close(exponents[60:], [0.2] * 40)


def test_with_p_of_one_it_is_the_standard_autoencoder() -> None:
    sae, x = build(p_end=1.0), torch.randn(30, 6, dtype=torch.double)
    relu = StandardSAE(StandardConfig(d_in=6, d_sae=12, hook_in="resid_post.0", l1_warmup_share=0.0)).double()
    relu.load_state_dict(sae.state_dict())
    assert torch.equal(sae(x).reconstruction, relu(x).reconstruction)
    expected = relu(x, state=TrainingState(normaliser=3.0)).losses["l1"].item()
    penalties = walk(sae, x, TrainingState(total_steps=40, normaliser=3.0), 40)
    torch.testing.assert_close(penalties, [expected] * 40)


def test_penalty_goes_on_at_its_value_where_p_falls() -> None:
    """With fixed weights and one batch the ratio of sums is exact: the penalty is the same at every step."""
    sae, x = build(p_steps=5), torch.randn(30, 6, dtype=torch.double)
    state = TrainingState(total_steps=200, normaliser=3.0)
    penalties = walk(sae, x, state, 200)
    torch.testing.assert_close(penalties, [penalties[0]] * 200, rtol=1e-6, atol=0)
    torch.testing.assert_close(state.values["p"], 0.2)
    z = sae.encode(x) / 3.0**0.5  # decoder rows have norm 1
    at_the_end = ((z + 1e-3).pow(0.2) - 1e-3**0.2).sum(-1).mean()
    torch.testing.assert_close(
        state.values["l1_scale"], float((z.sum(-1).mean() / at_the_end).detach()), rtol=1e-6, atol=0
    )


def test_the_ratio_is_one_of_sums_over_the_queue() -> None:
    sae = build(p_steps=1, p_end=0.5, anneal_start_share=0.5)
    batches = [torch.randn(30, 6, dtype=torch.double) * (1 + i) for i in range(20)]
    state = TrainingState(total_steps=40, normaliser=3.0)
    sums = torch.zeros(2, dtype=torch.double)
    for step, x in enumerate(batches):
        walk(sae, x, state, step + 1)
        if step >= 10:  # the last ten before the fall at step 20
            z = sae.encode(x) / 3.0**0.5
            sums += torch.stack([z.sum(-1).mean(), ((z + 1e-3).sqrt() - 1e-3**0.5).sum(-1).mean()]).detach()
    assert "l1_scale" not in state.values
    sae.before_step(state)
    torch.testing.assert_close(state.values["l1_scale"], float(sums[0] / sums[1]))
    assert not state.tensors, "the next fall has a queue of its own"


def test_a_resumed_run_has_the_same_penalties() -> None:
    sae, x = build(p_steps=5), torch.randn(30, 6, dtype=torch.double)
    state = TrainingState(total_steps=100)
    walk(sae, x, state, 20)
    assert state.tensors
    other = TrainingState(step=20, total_steps=100, values=dict(state.values), tensors=copy.deepcopy(state.tensors))
    assert walk(sae, x, state, 60) == walk(sae, x, other, 60)
    assert state.values == other.values


def test_gradient_is_bounded_where_a_latent_barely_fires() -> None:
    sae, x = build(), torch.randn(30, 6, dtype=torch.double)
    with torch.no_grad():
        sae.encoder.bias.copy_(-sae.pre_activations(x).amax(0) + 1e-12)
    sae(x, state=TrainingState(values={"p": 0.2})).losses["l1"].backward()
    assert torch.isfinite(sae.encoder.bias.grad).all()
    assert sae.encoder.bias.grad.abs().max() > 0


def test_settings_out_of_range_are_refused() -> None:
    wrong = ({"p_end": 0.0}, {"p_end": 1.5}, {"p_steps": 0}, {"l1_coefficient": -1.0}, {"anneal_start_share": 1.5})
    for change in (*wrong, {"anneal_end_share": 0.05}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            build(**change)


def train(sae, x: Tensor, folder, tokens: int) -> tuple[float, float]:
    args = SAETrainingArguments(
        output_dir=str(folder), total_tokens=len(x), tokens_per_batch=tokens, learning_rate=5e-3, disable_tqdm=True
    )
    SAETrainer(model=sae, args=args, stream=list(x.split(tokens))).train()
    with torch.no_grad():
        code, out = sae.eval().encode(x), sae(x).reconstruction
    return float((code != 0).sum(-1).float().mean()), float(out.square().sum() / (out * x).sum())


def test_it_shrinks_less_than_l1_with_fewer_latents(tmp_path) -> None:
    torch.manual_seed(0)
    atoms, n = F.normalize(torch.randn(40, 20), dim=-1), 250 * 256
    code = torch.zeros(n, 40).scatter_(-1, torch.rand(n, 40).topk(2, dim=-1).indices, 0.5 + torch.rand(n, 2))
    x, shared = code @ atoms, {"d_in": 20, "d_sae": 40, "hook_in": "resid_post.0", "l1_coefficient": 0.3}
    torch.manual_seed(1)
    l0, gamma = train(PAnnealSAE(PAnnealConfig(**shared)), x, tmp_path / "p", 256)
    relu_l0, relu_gamma = train(StandardSAE(StandardConfig(**shared)), x, tmp_path / "relu", 256)
    assert l0 < relu_l0
    assert 1 - gamma < 0.7 * (1 - relu_gamma)
