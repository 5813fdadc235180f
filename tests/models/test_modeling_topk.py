from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_sae.models import ConfigError, StandardConfig, StandardSAE, TopKConfig, TopKSAE, TrainingState


def build(**changes) -> TopKSAE:
    torch.manual_seed(0)
    return TopKSAE(TopKConfig(**{"d_in": 6, "d_sae": 10, "k": 3, "hook_in": "resid_post.0"} | changes))


def state_with_dead(dead: list[int]) -> TrainingState:
    since = torch.zeros(10, dtype=torch.long)
    since[dead] = 1000
    return TrainingState(normaliser=2.0, dead_after_tokens=100, tokens_since_fired=since)


def test_hand_computed_code() -> None:
    sae = build(d_in=2, d_sae=3, k=2, pre_bias=True)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        sae.encoder.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
        sae.decoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        sae.decoder.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[3.0, 1.0], [1.0, -2.0]])
    # x - b_dec = (2, 1), (0, -2); pre-activations (2, 1.5, -2), (0, -1.5, 0)
    assert sae.encode(x).tolist() == [[2.0, 1.5, 0.0], [0.0, 0.0, 0.0]]
    assert sae(x).reconstruction.tolist() == [[3.0, 1.5], [1.0, 0.0]]
    assert sae.encode_sparse(x).counts().tolist() == [2, 0]


def test_k_equal_to_d_sae_is_a_relu_sae() -> None:
    topk, relu = build(k=10), StandardSAE(StandardConfig(d_in=6, d_sae=10, hook_in="resid_post.0"))
    relu.load_state_dict(topk.state_dict())
    x = torch.randn(20, 6)
    torch.testing.assert_close(topk(x).reconstruction, relu(x).reconstruction)


def test_auxk_reaches_encoder_and_decoder_of_dead_latents_only() -> None:
    dead = [2, 7]
    sae, x = build(), torch.randn(50, 6)
    output = sae(x, state=state_with_dead(dead))
    output.losses["auxk"].backward()
    live = [i for i in range(10) if i not in dead]
    for gradient in (sae.encoder.weight.grad, sae.encoder.bias.grad, sae.decoder.weight.grad):
        assert gradient[live].abs().max() == 0
        assert (gradient[dead].abs().reshape(2, -1).max(dim=1).values > 0).all()
    assert sae.decoder.bias.grad is None or sae.decoder.bias.grad.abs().max() == 0


def test_auxk_value_by_brute_force() -> None:
    dead = [1, 4, 8]
    sae, x, state = build(k_aux=2), torch.randn(30, 6), state_with_dead([1, 4, 8])
    with torch.no_grad():
        sae.decoder.bias.normal_()
        output = sae(x, state=state)
        residual = x - output.reconstruction
        pre = (x - sae.decoder.bias) @ sae.encoder.weight.T + sae.encoder.bias
        expected = 0.0
        for row in range(30):
            best = sorted(dead, key=lambda i: -pre[row, i])[:2]
            guess = sum(torch.relu(pre[row, i]) * sae.decoder.weight[i] for i in best)
            expected += float((residual[row] - guess).square().sum())
    torch.testing.assert_close(float(output.losses["auxk"]), expected / 30 / 2.0 / 32, rtol=1e-5, atol=0)


def test_auxk_is_silent_without_dead_latents_or_coefficient() -> None:
    x = torch.randn(5, 6)
    assert "auxk" not in build()(x, state=state_with_dead([])).losses
    assert "auxk" not in build(aux_coefficient=0)(x, state=state_with_dead([1])).losses


def test_k_falls_linearly_and_config_keeps_it() -> None:
    sae = build(k=2, k_start=10, k_anneal_share=0.5)
    state, seen = TrainingState(total_steps=16), []
    for state.step in range(10):
        sae.before_step(state)
        seen.append(state.k)
    assert seen == [10, 9, 8, 7, 6, 5, 4, 3, 2, 2]
    assert sae.config.k == 2
    state.step = 0
    sae.before_step(state)
    assert sae(torch.randn(4, 6), state=state).code.values.shape == (4, 10)
    assert sae.eval()(torch.randn(4, 6)).code.values.shape == (4, 2)


def test_hooked_encoder_is_called_as_a_module() -> None:
    sae, x, calls = build(), torch.randn(8, 6), []
    plain = sae(x, target=x)
    plain.loss.backward()
    expected = sae.encoder.weight.grad.clone()
    sae.zero_grad()
    with_hook = sae.encoder.register_forward_hook(lambda *_: calls.append(1))
    output = sae(x, target=x)
    output.loss.backward()
    with_hook.remove()
    assert calls
    torch.testing.assert_close(output.reconstruction, plain.reconstruction)
    torch.testing.assert_close(sae.encoder.weight.grad, expected)


def test_subclassed_encoder_is_called_as_a_module() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    sae, x = build(), torch.randn(8, 6)
    doubled = Doubled(6, 10)
    doubled.load_state_dict(sae.encoder.state_dict())
    sae.encoder = doubled
    output = sae(x, target=x)
    output.loss.backward()
    assert torch.equal(output.code.to_dense(), sae.eval().encode(x))
    assert doubled.weight.grad is not None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 11}, "d_sae=10"),
        ({"k_aux": 11}, "k_aux=11"),
        ({"k_start": 2}, "annealing"),
        ({"aux_coefficient": -1.0}, "aux_coefficient"),
        ({"kk": 1}, "Did you mean 'k'"),
        ({"k": 2.5}, "expected int"),
        ({"skip": True}, "hook_out"),
        ({"pre_bias": True, "hook_out": "mlp_out.0"}, "pre_bias"),
        ({"d_out": 5}, "hook_out"),
        ({"input_norm": "batch"}, "input_norm"),
    ],
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)
