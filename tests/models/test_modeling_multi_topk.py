from __future__ import annotations

import pytest
import torch

from hf_sae.models import ConfigError, MultiTopKConfig, MultiTopKSAE, TopKConfig, TopKSAE, TrainingState


KINDS = [
    {"hook_in": "resid_post.0"},
    {"hook_in": "resid_post.0", "input_norm": "scalar", "input_scale": 0.5},
    {"hook_in": "resid_post.0", "input_norm": "layer_norm"},
    {"hook_in": "mlp_in.0", "hook_out": "mlp_out.0", "d_out": 5, "skip": True},
]


def build(**changes) -> MultiTopKSAE:
    torch.manual_seed(0)
    sae = MultiTopKSAE(MultiTopKConfig(**{"d_in": 6, "d_sae": 16, "k": 2, "hook_in": "resid_post.0"} | changes))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if parameter.ndim == 1 or "skip" in name:
                parameter.normal_(std=0.3)
    return sae.double()


def state_with_dead(dead: list[int]) -> TrainingState:
    since = torch.zeros(16, dtype=torch.long)
    since[dead] = 1000
    return TrainingState(normaliser=3.0, dead_after_tokens=100, tokens_since_fired=since)


def as_topk(sae: MultiTopKSAE, k: int) -> TopKSAE:
    fields = {
        key: getattr(sae.config, key)
        for key in ("d_in", "d_out", "d_sae", "hook_in", "hook_out", "skip", "input_norm", "input_scale")
    }
    topk = TopKSAE(TopKConfig(**fields, k=k)).double()
    topk.load_state_dict(sae.state_dict())
    return topk


@pytest.mark.parametrize("kind", KINDS, ids=["none", "scalar", "layer_norm", "skip"])
@pytest.mark.parametrize("hooked", [False, True])
def test_loss_and_gradients_are_those_of_two_topk_models(kind: dict, hooked: bool) -> None:
    sae = build(**kind)
    x = torch.randn(30, 6, dtype=torch.double)
    target = torch.randn(30, 5, dtype=torch.double) if "skip" in kind else x
    if hooked:
        sae.encoder.register_forward_hook(lambda *_: None)
    losses = {}
    gradients: dict[str, torch.Tensor] = {}
    for k, weight in ((2, 1.0), (8, 1 / 8)):
        topk = as_topk(sae, k)
        losses[k] = topk(x, target=target, state=TrainingState(normaliser=3.0)).losses["reconstruction"]
        (weight * losses[k]).backward()
        for name, parameter in topk.named_parameters():
            gradients[name] = gradients.get(name, 0) + parameter.grad
    output = sae(x, target=target, state=TrainingState(normaliser=3.0))
    torch.testing.assert_close(output.losses["reconstruction"], losses[2])
    torch.testing.assert_close(output.losses["wide"], losses[8] / 8)
    output.loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-10, rtol=1e-8, msg=name)


def test_weight_zero_is_topk() -> None:
    sae, x = build(wide_weight=0), torch.randn(30, 6, dtype=torch.double)
    topk = as_topk(sae, 2)
    ours, theirs = (model(x, state=state_with_dead([3, 5])) for model in (sae, topk))
    assert ours.losses.keys() == theirs.losses.keys() == {"reconstruction", "auxk"}
    for output in (ours, theirs):
        output.loss.backward()
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-12, rtol=0)
    for mine, its in zip(sae.parameters(), topk.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-12, rtol=0)


def test_inference_is_topk_with_the_k_of_the_config() -> None:
    sae, x = build().eval(), torch.randn(12, 6, dtype=torch.double)
    assert sae.encode_sparse(x).values.shape == (12, 2)
    torch.testing.assert_close(sae(x).reconstruction, as_topk(sae, 2)(x).reconstruction, atol=1e-12, rtol=0)
    sae.config.k = 7
    torch.testing.assert_close(sae(x).reconstruction, as_topk(sae, 7)(x).reconstruction, atol=1e-12, rtol=0)


def test_second_number_of_latents_follows_the_schedule_and_ends_at_d_sae() -> None:
    sae, x = build(k=3, k_start=6, k_anneal_share=1.0, wide_multiplier=2), torch.randn(4, 6, dtype=torch.double)
    state = TrainingState(total_steps=6)
    for state.step, narrow, wide in ((0, 6, 12), (6, 3, 6)):
        sae.before_step(state)
        code = sae(x, state=state).latents
        assert (code.values.shape[-1], code.wider.values.shape[-1]) == (narrow, wide)
    assert build(k=6)(x, state=TrainingState()).latents.wider.values.shape[-1] == 16


@pytest.mark.parametrize(
    ("changes", "match"), [({"wide_multiplier": 1}, "wide_multiplier=1"), ({"wide_weight": -1}, "wide_weight")]
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)
