from __future__ import annotations

import pytest
import torch

from hf_sae.models import AutoSAE, ConfigError, KSparseConfig, KSparseSAE, TopKConfig, TopKSAE, TrainingState


def build(**changes) -> KSparseSAE:
    torch.manual_seed(0)
    sae = KSparseSAE(KSparseConfig(**{"d_in": 6, "d_sae": 10, "k": 3, "hook_in": "resid_post.0"} | changes)).double()
    with torch.no_grad():
        sae.unit_bias.normal_(std=0.2)
        sae.decoder.bias.normal_(std=0.2)
    return sae


def test_k_equal_to_d_sae_is_a_tied_linear_autoencoder() -> None:
    sae, x = build(k=10), torch.randn(20, 6, dtype=torch.double)
    weight, bias = sae.decoder.weight, sae.decoder.bias
    expected = ((x - bias) @ weight.T + sae.unit_bias) @ weight + bias
    assert (sae(x).reconstruction - expected).abs().max() < 1e-14
    ((x - expected).square().sum(-1).mean()).backward()
    slow = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    sae(x, state=TrainingState(normaliser=1.0)).loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, slow[name], atol=1e-12, rtol=1e-10, msg=name)


def test_orthonormal_rows_and_sparse_non_negative_codes_are_exact() -> None:
    sae = build(d_sae=6, k=3, pre_bias=False)
    with torch.no_grad():
        sae.decoder.weight.copy_(torch.linalg.qr(torch.randn(6, 6, dtype=torch.double))[0])
        sae.unit_bias.zero_()
        sae.decoder.bias.zero_()
    codes = torch.zeros(50, 6, dtype=torch.double)
    for row in range(50):
        codes[row, torch.randperm(6)[: row % 4]] = torch.rand(row % 4, dtype=torch.double) + 0.1
    torch.testing.assert_close(sae(codes @ sae.decoder.weight).reconstruction, codes @ sae.decoder.weight)


def test_units_that_are_not_kept_have_no_gradient() -> None:
    sae, x = build(), torch.randn(1, 6, dtype=torch.double)
    output = sae(x, state=TrainingState(normaliser=1.0))
    output.loss.backward()
    kept = output.latents.indices.reshape(-1).tolist()
    assert len(kept) == 3
    for unit in range(10):
        assert (sae.unit_bias.grad[unit] != 0) == (unit in kept)
        assert bool(sae.decoder.weight.grad[unit].any()) == (unit in kept)


def test_differs_from_topk_exactly_where_fewer_than_k_are_positive() -> None:
    sae, x = build(k=5), torch.randn(200, 6, dtype=torch.double)
    topk = TopKSAE(TopKConfig(d_in=6, d_sae=10, k=5, hook_in="resid_post.0")).double()
    with torch.no_grad():
        topk.encoder.weight.copy_(sae.decoder.weight)
        topk.encoder.bias.copy_(sae.unit_bias)
        topk.decoder.load_state_dict(sae.decoder.state_dict())
        few = (sae.pre_activations(x) > 0).sum(-1) < 5
        differs = (sae.encode(x) != topk.encode(x)).any(-1)
    assert few.any()
    assert not few.all()
    assert torch.equal(differs, few)
    assert (sae.encode(x)[few] < 0).any()


def test_inference_keeps_alpha_times_as_many(tmp_path) -> None:
    sae, x = build(alpha=1.5), torch.randn(8, 6, dtype=torch.double)
    assert sae.config.k_inference == round(1.5 * 3)
    assert sae.train()(x).latents.values.shape == (8, 3)
    assert sae.eval()(x).latents.values.shape == (8, 4)
    assert sae.encode_sparse(x).l0() == 4
    sae.save_pretrained(tmp_path)
    loaded = AutoSAE.from_pretrained(tmp_path)
    assert loaded.config.alpha == 1.5
    assert loaded.config.k_start == 10  # 4 k, at most d_sae
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert not hasattr(loaded.encoder, "weight")
    assert build(alpha=100).config.k_inference == 10


def test_k_falls_over_the_first_half() -> None:
    sae, seen = build(k=2, d_sae=32), []
    state = TrainingState(total_steps=12)
    for state.step in range(8):
        sae.before_step(state)
        seen.append(state.k)
    assert seen == [8, 7, 6, 5, 4, 3, 2, 2]
    state.step = 0
    sae.before_step(state)
    assert sae(torch.randn(4, 6, dtype=torch.double), state=state).latents.values.shape == (4, 8)


def test_initial_rows_give_reconstructions_of_the_right_length() -> None:
    sae, x = build(d_sae=64, k=16), torch.randn(500, 6, dtype=torch.double)
    sae.unit_bias.data.zero_()
    sae.initialize_from(x, x, TrainingState())
    with torch.no_grad():
        centred = x - sae.decoder.bias
        guess = sae.train()(x).reconstruction - sae.decoder.bias
    slope = (guess * centred).sum() / guess.square().sum()
    assert abs(slope - 1) < 1e-6, slope


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"k": 11}, "d_sae=10"),
        ({"k_start": 2}, "annealing"),
        ({"k_start": 11}, "k_start=11"),
        ({"hook_out": "mlp_out.0"}, "TopKConfig"),
    ],
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)
