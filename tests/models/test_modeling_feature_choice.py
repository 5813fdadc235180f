"""Feature Choice: budgets of the latents are kept exactly, and its limits are other architectures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import (
    SAE,
    AutoSAE,
    BatchTopKConfig,
    BatchTopKSAE,
    ConfigError,
    FeatureChoiceConfig,
    FeatureChoiceSAE,
    StandardConfig,
    StandardSAE,
    TopKConfig,
    TrainingState,
)
from hf_sae.models.modeling_feature_choice import budgets, feature_top_k, zipf_shares
from tests.training.planted import trainer


FIELDS = {"d_in": 8, "d_sae": 24, "k": 3, "hook_in": "resid_post.0"}


def build(**changes) -> FeatureChoiceSAE:
    torch.manual_seed(0)
    sae = FeatureChoiceSAE(FeatureChoiceConfig(**FIELDS | changes)).double().train()
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.decoder.bias.normal_(std=0.1)
    return sae


def state_of(dead: list[int] | None = None, step: int = 5) -> TrainingState:
    """After the warm start, with ranks that are no identity."""
    since = torch.zeros(24, dtype=torch.long)
    since[dead or []] = 1000
    ranks = torch.randperm(24, generator=torch.Generator().manual_seed(6))
    return TrainingState(
        step=step,
        total_steps=10,
        normaliser=2.0,
        dead_after_tokens=100,
        tokens_since_fired=since,
        tensors={"ranks": ranks},
    )


@pytest.mark.parametrize("seed", range(4))
def test_selection_by_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(11, 37, generator=generator)
    allowed = torch.randint(1, 12, (37,), generator=generator)
    expected = []
    for column in range(37):
        best = sorted(range(11), key=lambda token: -float(pre[token, column]))[: int(allowed[column])]
        expected += [token * 37 + column for token in best if float(pre[token, column]) > 0]
    assert feature_top_k(pre, allowed).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("d_sae", "k", "exponent", "shift"),
    [(24, 3, 1.0, 0), (12288, 32, 1, 0), (64, 2.5, 0, 0), (50, 7, 2.0, 5.0), (9, 8.7, 3, 0)],
)
def test_shares_follow_zipf_below_one_and_add_up_to_k(d_sae: int, k: float, exponent: float, shift: float) -> None:
    shares = zipf_shares(d_sae, k, exponent, shift)
    assert float(shares.sum()) == pytest.approx(k)
    assert (shares.diff() <= 0).all()
    assert shares.max() <= 1
    free = shares < 1
    ranks = torch.arange(1, d_sae + 1)[free] + shift
    torch.testing.assert_close(shares[free] / shares[free][0], (ranks / ranks[0]).double() ** -exponent)
    if free.any() and not free[0]:  # the next one could not have been cut too
        last = int((~free).sum())
        assert shares[free][0] * ((last + 1 + shift) / (last + shift)) ** exponent >= 1 - 1e-9


def test_every_latent_full_where_k_is_d_sae() -> None:
    assert zipf_shares(24, 24, 1.0).tolist() == [1.0] * 24
    assert budgets(zipf_shares(24, 24, 1.0), 40).tolist() == [40] * 24
    assert budgets(torch.tensor([0.001, 0.5]), 10).tolist() == [1, 5]  # at least one


def test_no_latent_exceeds_its_budget_and_those_with_enough_tokens_meet_it() -> None:
    sae, x, state = build(), torch.randn(200, 8).double(), state_of()
    code = sae(x, state=state).code
    allowed = budgets(zipf_shares(24, 3, 1.0), 200)[state.tensors["ranks"]]
    assert (code.firing_counts() <= allowed).all()
    positive = (((x - sae.b_dec) @ sae.W_enc + sae.b_enc) > 0).sum(0)
    assert torch.equal(code.firing_counts(), torch.minimum(allowed, positive))


def test_full_budgets_are_the_relu_sae() -> None:
    ours, relu = build(k=24), StandardSAE(StandardConfig(d_in=8, d_sae=24, hook_in="resid_post.0")).double()
    relu.load_state_dict({name: t for name, t in ours.state_dict().items() if name != "threshold"})
    x = torch.randn(40, 8).double()
    torch.testing.assert_close(ours(x, state=state_of()).reconstruction, relu(x).reconstruction)


def test_gradients_are_those_of_dense_autograd() -> None:
    sae, x, state = build(), torch.randn(30, 8).double(), state_of()
    parameters = list(sae.parameters())
    output = sae(x, state=state)
    ours = torch.autograd.grad(output.losses["reconstruction"], parameters)
    pre = (x - sae.decoder.bias) @ sae.encoder.weight.T + sae.encoder.bias
    allowed = budgets(zipf_shares(24, 3, 1.0), 30)[state.tensors["ranks"]]
    places = pre.argsort(0, descending=True).argsort(0)
    latents = torch.relu(pre) * (places < allowed)
    torch.testing.assert_close(output.code.to_dense(), latents)
    loss = (x - latents @ sae.decoder.weight - sae.decoder.bias).square().sum(-1).mean() / 2.0
    for mine, expected in zip(ours, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("step", [0, 5])
def test_the_warm_start_is_mutual_choice(step: int) -> None:
    ours, batch = build(warm_start_share=0.6), BatchTopKSAE(BatchTopKConfig(**FIELDS)).double().train()
    batch.load_state_dict({name: t for name, t in ours.state_dict().items() if name != "threshold"}, strict=False)
    x = torch.randn(20, 8).double()
    assert torch.equal(ours(x, state=state_of([1], step)).loss, batch(x, state=state_of([1], step)).loss)
    assert not torch.equal(ours(x, state=state_of([1], 6)).loss, batch(x, state=state_of([1], 6)).loss)


def test_aux_zipf_over_dead_latents_alone_is_auxk() -> None:
    dead = [2, 7]
    ours, batch = build(), BatchTopKSAE(BatchTopKConfig(**FIELDS)).double().train()
    x, state = torch.randn(40, 8).double(), state_of(dead)
    state.tensors["density"] = zipf_shares(24, 3, 1.0)[state.tensors["ranks"]]  # all that they may
    assert "aux_zipf" not in ours(x, state=state).losses
    state.tensors["density"][dead] = 0.0
    assert ours.under_used(state, state.tensors["ranks"]).nonzero().flatten().tolist() == dead
    output = ours(x, state=state)
    output.losses["aux_zipf"].backward()
    # AuxK of a model with the same code
    batch.load_state_dict({name: t for name, t in ours.state_dict().items() if name != "threshold"}, strict=False)
    batch.latents_of = lambda rows, norm, state: (output.latents.detach(), None)
    expected = batch(x, state=state).losses["auxk"]
    expected.backward()
    torch.testing.assert_close(output.losses["aux_zipf"], expected)
    torch.testing.assert_close(ours.encoder.weight.grad, batch.encoder.weight.grad)
    torch.testing.assert_close(ours.decoder.weight.grad, batch.decoder.weight.grad)


def test_a_latent_is_under_used_below_its_share_by_the_tolerance() -> None:
    sae, state = build(aux_tolerance=math.log(4)), state_of()
    share = zipf_shares(24, 3, 1.0)[state.tensors["ranks"]]
    state.tensors["density"] = share / torch.where(torch.arange(24) % 2 == 0, 3.9, 4.1)
    assert sae.under_used(state, state.tensors["ranks"]).tolist() == [False, True] * 12


def test_thresholds_and_ranks_by_hand() -> None:
    sae = build(d_in=2, d_sae=2, k=1, warm_start_share=0.0, pre_bias=False, input_norm="none").float()
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(2))
        sae.encoder.bias.zero_()
    state = TrainingState(total_steps=10)
    x = torch.tensor([[0.5, 3.0], [0.1, 2.0], [0.2, 1.0], [-1.0, 0.7]])
    output = sae(x, state=state)  # no ranks yet: 3, 2, 1 and 0.7 are the four largest
    sae.after_step(state, output)
    assert output.code.to_dense().tolist() == [[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, pytest.approx(0.7)]]
    assert sae.threshold.tolist() == [-1.0, pytest.approx(0.7)]
    assert state.tensors["demand"].tolist() == [0.0, 1.0]
    assert state.tensors["ranks"].tolist() == [1, 0]
    state.step = 1
    output = sae(x, state=state)  # shares 2/3 and 1/3: three tokens, and one
    assert output.code.to_dense().tolist() == [[0.5, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.0]]
    sae.after_step(state, output)
    # 0.7 with weight 0.99 and 1.0 with weight 1
    torch.testing.assert_close(sae.threshold, torch.tensor([0.5, (0.99 * 0.7 + 1.0) / 1.99]))
    sae.eval()
    assert sae.encode(x).tolist() == [[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.0]]


def test_a_latent_that_never_fired_stays_silent_and_none_at_all_is_refused(tmp_path: Path) -> None:
    sae, x = build().float().eval(), torch.randn(50, 8)
    with pytest.raises(ConfigError, match="estimate_threshold"):
        sae(x)
    with pytest.raises(ConfigError, match="estimate_threshold"):
        sae.to_jumprelu()
    sae.threshold[:] = 0.3
    sae.threshold[5] = -1
    assert (sae.encode(x)[:, 5] == 0).all()
    assert (sae.encode(x).sum(0) > 0).sum() == 23
    sae.save_pretrained(tmp_path)
    assert torch.equal(AutoSAE.from_pretrained(tmp_path).encode(x), sae.encode(x))
    torch.testing.assert_close(sae.to_jumprelu()(x).reconstruction, sae(x).reconstruction, atol=1e-6, rtol=0)


def test_thresholds_from_a_sample_keep_about_k() -> None:
    sae, x = build(zipf_shift=2.0).float().eval(), torch.randn(8192, 8)
    assert torch.equal(sae.estimate_threshold(x), sae.threshold)
    fresh = sae.encode_sparse(torch.randn(8192, 8))
    assert float(fresh.l0()) == pytest.approx(3, rel=0.1)
    shares = zipf_shares(24, 3, 1.0, 2.0)
    torch.testing.assert_close(
        (fresh.firing_counts() / 8192).sort(descending=True).values.double(), shares, rtol=0.2, atol=0.02
    )
    sae.encoder.bias.data.fill_(-100.0)
    with pytest.raises(ConfigError, match="no pre-activation"):
        sae.estimate_threshold(x)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    x, results = rare_and_common(2560, 1)[0], []
    for folder, cut in (("straight", False), ("cut", True)):
        saes = []
        for _ in range(2):
            torch.manual_seed(0)
            saes.append(
                FeatureChoiceSAE(FeatureChoiceConfig(d_in=32, d_sae=64, k=3, hook_in="resid_post.0", ranking_steps=3))
            )
        if cut:
            run = trainer(saes[0], tmp_path / folder, x)
            for batch in x.split(256)[:5]:
                run.training_step(batch)
            run.save_checkpoint()
        run = trainer(saes[1], tmp_path / folder, x)
        run.train(resume_from_checkpoint=cut or None)
        results.append({**saes[1].state_dict(), **run.trainees[0].state.tensors})
    assert {"ranks", "demand", "density", "threshold_weight"} <= set(results[0])
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def rare_and_common(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """64 planted directions whose frequencies follow Zipf's law, three per token; and the directions."""
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(9)), dim=-1)
    active = torch.rand(n, 64, generator=generator) < zipf_shares(64, 3, 1.0).float()
    return (active * (0.5 + torch.rand(n, 64, generator=generator))) @ atoms, atoms


def test_rare_features_are_learnt(tmp_path: Path) -> None:
    """No latent is dead, more directions are found than by BatchTopK, and the error is below TopK's."""
    (x, atoms), (held_out, _) = rare_and_common(512 * 100, 0), rare_and_common(4096, 10**6)
    found: dict[str, tuple[float, int, float]] = {}
    for config in (TopKConfig, BatchTopKConfig, FeatureChoiceConfig):
        torch.manual_seed(0)
        sae: SAE = AutoSAE.from_config(config(d_in=32, d_sae=64, k=3, hook_in="resid_post.0"))
        trainer(sae, tmp_path / config.model_type, x, size=512, learning_rate=1e-2, dead_after_tokens=10_000).train()
        with torch.no_grad():
            code = sae.eval().encode_sparse(held_out)
            fvu = float((held_out - sae.decode(code)).square().sum() / held_out.var(0).sum() / 4096)
            cosine = float((sae.W_dec @ atoms.T).amax(0).mean())
        found[config.model_type] = fvu, int((code.firing_counts() > 0).sum()), cosine
    topk, batch, ours = found["hf_sae_topk"], found["hf_sae_batch_topk"], found["hf_sae_feature_choice"]
    assert ours[1] == 64 > batch[1]
    assert ours[0] < topk[0] - 0.02
    assert ours[2] > batch[2] + 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 0},
        {"k": 25},
        {"zipf_exponent": -1.0},
        {"zipf_shift": float("nan")},
        {"warm_start_share": 1.5},
        {"ranking_steps": 0},
        {"aux_tolerance": -0.1},
    ],
    ids=str,
)
def test_bad_configs(changes: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        build(**changes)
