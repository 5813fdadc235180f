from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import ConfigError, GatedConfig, GatedSAE, StandardConfig, StandardSAE, TrainingState
from hf_sae.training import SAETrainer, SAETrainingArguments


KINDS = {
    "sae": {"hook_in": "resid_post.0"},
    "scalar": {"hook_in": "resid_post.0", "input_norm": "scalar", "input_scale": 0.5},
    "layer_norm": {"hook_in": "resid_post.0", "input_norm": "layer_norm"},
    "skip": {"hook_in": "mlp_in.0", "hook_out": "mlp_out.0", "d_out": 5, "skip": True},
}


def build(**changes) -> GatedSAE:
    torch.manual_seed(0)
    sae = GatedSAE(GatedConfig(**{"d_in": 6, "d_sae": 12, "target_l0": 3, "hook_in": "resid_post.0"} | changes))
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.4)
    return sae.double()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_jumprelu_of_its_export(kind: str) -> None:
    """`θ = b_mag - e^r b_gate`, of either sign: where it is negative the export stops at 0 and is exact all the same."""
    sae = build(**KINDS[kind])
    if sae.skip is not None:
        sae.skip.weight.data.normal_()
    sae.feature_stats = {"density": torch.rand(12)}
    exported, x = sae.to_jumprelu(), 2 * torch.randn(500, 6, dtype=torch.double)
    raw = sae.b_mag - sae.r_mag.exp() * sae.b_gate
    assert raw.min() < 0 < raw.max()
    assert exported.threshold.min() == 0
    torch.testing.assert_close(exported.encode(x), sae.encode(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(exported(x).reconstruction, sae(x).reconstruction, atol=1e-6, rtol=0)
    assert (sae.encode(x) != 0).any(0).all()
    assert torch.equal(exported.feature_stats["density"], sae.feature_stats["density"])


def formula(sae: GatedSAE, x: Tensor, target: Tensor, strength: float) -> dict[str, Tensor]:
    """The paper's loss, written out for an SAE without normalisation and a skip transcoder."""
    weight, bias, frozen = sae.decoder.weight, sae.decoder.bias, sae.config.frozen_decoder
    v = (x - bias if sae.config.subtracts_bias else x) @ sae.encoder.weight.T
    gates = v + sae.encoder.bias
    latents = (gates > 0) * F.relu(v * sae.r_mag.exp() + sae.b_mag)
    skip = x @ sae.skip.weight.T if sae.skip is not None else torch.zeros_like(target)
    norms = weight.norm(dim=-1) if sae.config.weighted_l1 else torch.ones(12, dtype=torch.double)
    cut = (lambda t: t.detach()) if frozen else (lambda t: t)
    own = F.relu(gates) @ cut(weight) + cut(bias) + cut(skip)
    return {
        "reconstruction": (target - latents @ weight - bias - skip).square().sum(-1).mean() / 7,
        "l1": strength * (F.relu(gates) * norms).sum(-1).mean() / 7**0.5,
        "gate": (target - own).square().sum(-1).mean() / 7,
    }


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", ["sae", "skip"])
def test_losses_and_gradients_are_those_of_the_paper(kind: str, frozen: bool) -> None:
    changes = {"frozen_decoder": frozen, "weighted_l1": not frozen, "l1_coefficient": 0.3, "l1_warmup_share": 0.0}
    sae = build(**KINDS[kind] | changes)
    x = torch.randn(50, 6, dtype=torch.double)
    target = x if kind == "sae" else torch.randn(50, 5, dtype=torch.double)
    losses = sae(x, target=target, state=TrainingState(normaliser=7.0)).losses
    expected = formula(sae, x, target, 0.3)
    assert set(losses) == set(expected)
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name])
        parameters = list(sae.parameters())
        ours = torch.autograd.grad(losses[name], parameters, retain_graph=True, materialize_grads=True)
        theirs = torch.autograd.grad(expected[name], parameters, retain_graph=True, materialize_grads=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_who_learns_from_what() -> None:
    """The gate's bias learns nothing from the reconstruction, the magnitude nothing from the penalty, a frozen decoder neither."""
    sae, x = build(), torch.randn(50, 6, dtype=torch.double)
    losses = sae(x, state=TrainingState(normaliser=7.0)).losses
    bias, weight = sae.encoder.bias, sae.decoder.weight
    for name, parameters in {"reconstruction": [bias], "l1": [sae.r_mag, sae.b_mag, weight], "gate": [weight]}.items():
        grads = torch.autograd.grad(losses[name], parameters, retain_graph=True, materialize_grads=True)
        assert all(not grad.any() for grad in grads), name


def test_the_gate_is_soft_thresholding_and_the_magnitude_is_not() -> None:
    """On an orthonormal dictionary the gate's best bias is -λ/2, as the ReLU autoencoder's; b_mag stays at 0: no shrinkage."""
    d, strength = 6, 0.4
    sae = build(d_sae=d, target_l0=None, l1_coefficient=strength, l1_warmup_share=0.0)
    with torch.no_grad():
        rows = torch.linalg.qr(torch.randn(d, d, dtype=torch.double)).Q
        for tensor, value in ((sae.encoder.weight, rows), (sae.decoder.weight, rows)):
            tensor.copy_(value)
        for tensor in (sae.decoder.bias, sae.r_mag, sae.b_mag, sae.encoder.bias):
            tensor.zero_()
    x = (2 + torch.rand(200, d, dtype=torch.double)) @ rows
    optimizer = torch.optim.SGD([sae.encoder.bias, sae.b_mag], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        sae(x, state=TrainingState(normaliser=1.0)).loss.backward()
        optimizer.step()
    torch.testing.assert_close(sae.b_gate, torch.full_like(sae.b_gate, -strength / 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(sae.b_mag.detach(), torch.zeros_like(sae.b_mag), atol=1e-6, rtol=0)


def test_dead_gates_are_pulled_open() -> None:
    sae, x = build(dead_coefficient=1.0), torch.randn(40, 6, dtype=torch.double)
    with torch.no_grad():
        sae.encoder.bias[3] = -50.0
    since = torch.zeros(12, dtype=torch.long)
    since[3] = 1000
    sae(x, state=TrainingState(dead_after_tokens=10, tokens_since_fired=since)).losses["dead"].backward()
    assert sae.encoder.bias.grad[3] < 0
    assert sae.encoder.bias.grad.count_nonzero() == 1


def test_starts_at_the_target_and_is_kept_there() -> None:
    sae = build(d_in=16, d_sae=64, target_l0=5, input_norm="scalar")
    with torch.no_grad():
        for parameter in (sae.r_mag, sae.b_mag):
            parameter.zero_()
    x, state = 30 + 50 * torch.randn(4096, 16, dtype=torch.double), TrainingState()
    sae.initialize_from(x, x, state)
    assert abs(float(sae.eval().encode_sparse(x).l0()) - 5) < 0.5
    before, high = sae.b_gate.clone(), copy.deepcopy(state)
    high.l0 = 15.0
    for _ in range(50):
        sae.after_step(high, sae(x[:4]))
    assert (sae.b_gate < before).all()
    assert high.values["l1_coefficient"] > 2 * sae.config.l1_coefficient


def test_bad_settings_are_refused() -> None:
    for change in ({"target_l0": 13}, {"l1_coefficient": -1.0}, {"l1_warmup_share": 2.0}, {"dead_coefficient": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            GatedConfig(**{"d_in": 6, "d_sae": 12, "target_l0": 3} | change)


def train(sae, x: Tensor, tmp_path, steps: int) -> dict[str, float]:
    args = SAETrainingArguments(
        output_dir=str(tmp_path), total_tokens=steps * 256, tokens_per_batch=256, learning_rate=5e-3, disable_tqdm=True
    )
    SAETrainer(model=sae, args=args, stream=[x[i * 256 :][:256] for i in range(steps)]).train()
    with torch.no_grad():
        code, out = sae.eval().encode(x), sae(x).reconstruction
    return {
        "l0": float((code != 0).sum(-1).float().mean()),
        "fvu": float((x - out).square().sum() / (x - x.mean(0)).square().sum()),
        "gamma": float(out.square().sum() / (out * x).sum()),
    }


def test_at_the_same_l0_nothing_shrinks_where_l1_does(tmp_path) -> None:
    """Two-sparse planted data: methods.md has FVU .029 and γ 1.00 against .169 and .74; here half the margins."""
    torch.manual_seed(0)
    atoms = F.normalize(torch.randn(40, 20), dim=-1)
    steps = 300
    chosen = torch.rand(steps * 256, 40).topk(2, dim=-1).indices
    code = torch.zeros(steps * 256, 40).scatter_(-1, chosen, 0.5 + torch.rand(steps * 256, 2))
    x = code @ atoms
    shared = {"d_in": 20, "d_sae": 40, "hook_in": "resid_post.0", "input_norm": "scalar"}
    torch.manual_seed(1)
    gated = train(GatedSAE(GatedConfig(**shared, target_l0=2.2)), x, tmp_path / "gated", steps)
    relu = train(StandardSAE(StandardConfig(**shared, l1_coefficient=0.6)), x, tmp_path / "relu", steps)
    assert abs(gated["l0"] - 2.2) < 0.3
    assert relu["l0"] > 2
    assert abs(gated["gamma"] - 1) < 0.03
    assert relu["gamma"] < 0.9
    assert gated["fvu"] < relu["fvu"] / 2
