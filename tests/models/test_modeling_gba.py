from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import GBASAE, SAE, ConfigError, GBAConfig, SAEOutput, TopKConfig, TopKSAE, TrainingState
from hf_sae.training import SAETrainer, SAETrainingArguments


def build(**changes) -> GBASAE:
    torch.manual_seed(0)
    settings = {"d_in": 16, "d_sae": 40, "hook_in": "resid_post.0", "n_groups": 4, "adapt_every": 1}
    return GBASAE(GBAConfig(**settings | changes))


def test_formula_and_no_gradient_for_biases() -> None:
    sae, x = build().double(), torch.randn(30, 16, dtype=torch.double)
    with torch.no_grad():
        sae.threshold.uniform_(0, 1)
        sae.latent_scale.normal_()
        sae.decoder.bias.normal_()
    v = (x - sae.decoder.bias) @ sae.decoder.weight.T
    latents = sae.latent_scale * v * (v - sae.threshold > 0)
    torch.testing.assert_close(sae.encode(x), latents)
    expected = (x - latents @ sae.decoder.weight - sae.decoder.bias).square().sum(-1).mean() / 7
    output = sae(x, state=TrainingState(normaliser=7.0))
    torch.testing.assert_close(output.loss, expected)
    for name, parameter in sae.named_parameters():
        ours, theirs = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (output.loss, expected))
        torch.testing.assert_close(ours, theirs, msg=name)
    assert {name for name, _ in sae.named_parameters()} == {"decoder.weight", "decoder.bias", "latent_scale"}


def test_one_adaptation_by_hand() -> None:
    """Targets .1 and .001: too often, within the dead zone, never; the same in the second group. Units of 2."""
    sae = build(d_sae=6, n_groups=2, decrease=0.1, increase=0.2)
    with torch.no_grad():
        sae.threshold.copy_(2 * torch.tensor([0.5, 0.5, 0.5, 0.98, 0.5, 0.1]))
    frequency = torch.tensor([0.2, 0.05, 0.0, 0.002, 0.0005, 0.0])
    y_max = 2 * torch.tensor([0.6, 0.2, -0.3, 4.0, 0.5, -0.1])
    sae.adapt(frequency, y_max, unit=2.0)
    # the mean of the positive maxima is 0.4 in the first group, 2.25 in the second
    expected = 2 * torch.tensor([0.5 + 0.06, 0.5, 0.5 - 0.08, 1.0, 0.5, 0.0])
    torch.testing.assert_close(sae.threshold, expected)


def test_biases_stay_between_minus_one_and_zero() -> None:
    sae = build(decrease=3.0, increase=3.0)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        frequency = (torch.rand(40, generator=generator) - 0.5).clamp_min(0)
        sae.adapt(frequency, 5 * torch.randn(40, generator=generator), unit=4.0)
        assert sae.threshold.min() >= 0
        assert sae.threshold.max() <= 4
    assert len(sae.threshold.unique()) > 1


def test_targets_are_geometric_over_equal_groups() -> None:
    sae = build(d_sae=10, n_groups=3, highest_frequency=0.4, lowest_frequency=0.004)
    torch.testing.assert_close(sae.targets(), torch.tensor([0.4] * 4 + [0.04] * 3 + [0.004] * 3))
    one = build(d_sae=10, n_groups=1, highest_frequency=0.4)
    torch.testing.assert_close(one.targets(), torch.full((10,), 0.4))  # Bias Adaptation


def collected(sae: GBASAE, x: Tensor, state: TrainingState) -> None:
    """One training step with fixed weights."""
    output = sae(x, state=state)
    state.step += 1
    sae.after_step(state, output)


def test_each_group_comes_down_to_its_target() -> None:
    """Fixed atoms, Gaussian data, biases that start at 0, where half of all tokens fire a latent."""
    sae = build(start_at_targets=False, highest_frequency=0.1, lowest_frequency=0.01, decrease=0.03)
    generator = torch.Generator().manual_seed(0)
    state = TrainingState(total_steps=1000)
    with torch.no_grad():
        sample = torch.randn(4000, 16, generator=generator)
        sae.initialize_from(sample, sample, state)
        assert (sae.encode(sample) != 0).float().mean() > 0.4
        for _ in range(200):
            collected(sae.train(), torch.randn(1000, 16, generator=generator), state)
        y = sae.pre_activations(torch.randn(50_000, 16, generator=generator)) > sae.threshold
    upper = y.float().mean(0).view(4, 10).amax(1)
    assert (upper <= 1.15 * sae.targets().view(4, 10)[:, 0]).all()
    assert (upper >= 0.3 * sae.targets().view(4, 10)[:, 0]).all()
    assert sae.threshold.max() <= state.values["unit"]


def test_starts_at_the_targets() -> None:
    sae, x, state = build(n_groups=2, input_norm="scalar"), 5 + 20 * torch.randn(4096, 16), TrainingState()
    sae.initialize_from(x, x, state)
    share = (sae.encode(x) != 0).float().mean(0).view(2, 20)
    torch.testing.assert_close(share, torch.tensor([[0.1], [0.001]]).expand(2, 20), rtol=0.1, atol=3e-4)
    assert abs(state.values["unit"] - 4) < 1e-3
    out, centred = sae(x).reconstruction - x.mean(0), x - x.mean(0)
    torch.testing.assert_close((out * centred).sum(), out.square().sum(), rtol=1e-2, atol=0)


def test_statistics_of_several_steps_and_rest_at_the_end() -> None:
    sae, state = build(adapt_every=3, adapt_share=0.5), TrainingState(total_steps=14)
    seen: list[Tensor] = []
    for step in range(14):
        x = torch.randn(50, 16, generator=torch.Generator().manual_seed(step))
        before = sae.threshold.clone()
        expected = copy.deepcopy(sae)
        seen.append(sae.pre_activations(x).detach() - before)
        collected(sae, x, state)
        if step in (2, 5):
            y, seen = torch.cat(seen), []
            expected.adapt((y > 0).float().mean(0), y.amax(0))
            torch.testing.assert_close(sae.threshold, expected.threshold)
            assert not torch.equal(sae.threshold, before)
        else:
            assert torch.equal(sae.threshold, before)


def test_a_resumed_run_has_the_same_biases() -> None:
    sae, state = build(adapt_every=3), TrainingState(total_steps=100)
    x = torch.randn(50, 16)
    for _ in range(5):
        collected(sae, x, state)
    assert state.tensors
    again = copy.deepcopy(sae)
    other = TrainingState(5, total_steps=100, values=dict(state.values), tensors=copy.deepcopy(state.tensors))
    for _ in range(5):
        collected(sae, x, state)
        collected(again, x, other)
    assert torch.equal(sae.threshold, again.threshold)
    assert other.values == state.values


def test_parts_of_a_batch_give_the_statistics_of_the_whole(tmp_path) -> None:
    x, thresholds = torch.randn(6 * 64, 16), []
    for parts in (1, 4):
        sae = build()
        args = SAETrainingArguments(
            output_dir=str(tmp_path / str(parts)),
            total_tokens=len(x),
            tokens_per_batch=64,
            gradient_accumulation_steps=parts,
            disable_tqdm=True,
        )
        SAETrainer(model=sae, args=args, stream=list(x.split(64))).train()
        thresholds.append(sae.threshold)
    torch.testing.assert_close(*thresholds, atol=1e-5, rtol=1e-4)


def test_settings_that_contradict_each_other_are_refused() -> None:
    wrong = ({"n_groups": 41}, {"n_groups": 0}, {"highest_frequency": 1e-4}, {"rare": 0.5}, {"adapt_every": 0})
    for change in (*wrong, {"decrease": -1.0}, {"adapt_share": 1.5}, {"hook_out": "mlp_out.0"}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            build(**change)


def test_without_statistics_nothing_is_adapted() -> None:
    sae, state = build(), TrainingState(total_steps=10)
    sae.after_step(state, SAEOutput())
    assert not state.tensors
    assert not sae.threshold.any()


def recovered(sae: SAE, atoms: Tensor) -> float:
    """The share of planted atoms that a row of the dictionary points along."""
    return float(((atoms @ sae.W_dec.T).amax(1) > 0.9).float().mean())


def test_bias_adaptation_recovers_a_dictionary_of_mixed_sparsity_better_than_topk_of_a_wrong_k(tmp_path) -> None:
    """methods.md, [ran]: BA at the true frequency recovers 96 %, the best TopK 79 %; here half of that margin.

    The best of 1, 2 and 6, as there: between them TopK does as well (`benchmarks.methods`).
    """
    g = torch.Generator().manual_seed(0)
    atoms, n = F.normalize(torch.randn(40, 20, generator=g), dim=-1), 300 * 256
    per_token = torch.where(torch.rand(n, 1, generator=g) < 0.3, 6, 1)
    mask = torch.rand(n, 40, generator=g).argsort(-1).argsort(-1) < per_token
    x = (mask * (0.5 + torch.rand(n, 40, generator=g))) @ atoms
    shared = {"d_in": 20, "d_sae": 40, "hook_in": "resid_post.0"}
    frequency = float(mask.float().mean())
    rivals: dict[str, SAE] = {}
    torch.manual_seed(1)
    rivals["ba"] = GBASAE(GBAConfig(**shared, n_groups=1, highest_frequency=frequency, lowest_frequency=frequency))
    for k in (1, 2, 6):
        rivals[f"top_{k}"] = TopKSAE(TopKConfig(**shared, k=k, aux_coefficient=0.0))
    args = SAETrainingArguments(
        output_dir=str(tmp_path), total_tokens=n, tokens_per_batch=256, learning_rate=6e-3, disable_tqdm=True
    )
    SAETrainer(model=rivals, args=args, stream=[{"resid_post.0": part} for part in x.split(256)]).train()
    scores = {name: recovered(sae, atoms) for name, sae in rivals.items()}
    assert scores["ba"] > 0.9
    assert scores["ba"] > max(score for name, score in scores.items() if name != "ba") + 0.08
