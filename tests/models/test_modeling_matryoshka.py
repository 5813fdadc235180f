"""Matryoshka: every prefix reconstructs, and one prefix alone is BatchTopK."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_sae.models import (
    SAE,
    AutoSAE,
    BatchTopKConfig,
    BatchTopKSAE,
    ConfigError,
    MatryoshkaConfig,
    MatryoshkaSAE,
    TrainingState,
)
from hf_sae.models.sparse_code import SparseCode
from tests.training.planted import trainer


FIELDS = {"d_in": 8, "d_sae": 24, "k": 3, "hook_in": "resid_post.0"}
BOUNDS = [2, 9, 24]


def build(**changes) -> MatryoshkaSAE:
    torch.manual_seed(0)
    sae = MatryoshkaSAE(MatryoshkaConfig(**FIELDS | {"group_bounds": BOUNDS} | changes)).double()
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.decoder.bias.normal_(std=0.1)
        sae.threshold.fill_(0.3)
    return sae


def state_of(dead: list[int]) -> TrainingState:
    since = torch.zeros(24, dtype=torch.long)
    since[dead] = 1000
    return TrainingState(normaliser=2.0, dead_after_tokens=100, tokens_since_fired=since)


def test_one_prefix_is_batch_topk_exactly() -> None:
    ours, batch = build(group_bounds=[24]).train(), BatchTopKSAE(BatchTopKConfig(**FIELDS)).double()
    batch.load_state_dict(ours.state_dict())
    results = []
    for sae in (ours, batch):
        output = sae(torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).double(), state=state_of([3]))
        output.loss.backward()
        results.append([output.loss, *output.statistics.values(), *(p.grad for p in sae.parameters())])
    for mine, expected in zip(*results, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input_norm": "layer_norm"},
        {"input_norm": "scalar", "input_scale": 0.5},
        {"hook_out": "mlp_out.0", "skip": True, "d_out": 6},
        {"hook_out": "mlp_out.0", "center_target": True},
    ],
)
def test_loss_and_gradients_are_the_mean_over_prefixes_by_dense_autograd(changes: dict) -> None:
    sae = build(**changes).train()
    if sae.skip is not None:
        sae.skip.weight.data.normal_()
    x = torch.randn(3, 10, 8).double()
    target = x if "hook_out" not in changes else torch.randn(3, 10, sae.config.d_out).double()
    state, parameters = state_of([]), list(sae.parameters())
    output = sae(x, target=target, state=state)
    ours = torch.autograd.grad(output.loss, parameters)
    rows, norm = sae.normalize(x)
    shift = sae.decoder.bias if sae.config.subtracts_bias else 0
    pre = (rows - shift) @ sae.encoder.weight.T + sae.encoder.bias
    latents = pre * (pre >= pre.flatten().topk(90).values[-1])
    errors = []
    for bound in BOUNDS:
        out = latents[..., :bound] @ sae.decoder.weight[:bound] + sae.decoder.bias
        out = sae.to_output_units(out, norm)
        out = out + norm[0] if sae.config.undoes_norm_per_token else out
        out = out + sae.skip(rows) if sae.skip is not None else out
        errors.append((sae.comparable(target) - out).square().sum(-1).mean() / 2.0)
    torch.testing.assert_close(output.loss, sum(errors) / 3)
    torch.testing.assert_close(output.fvu, errors[-1])
    for mine, expected in zip(ours, torch.autograd.grad(sum(errors) / 3, parameters), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-7)
    dense = sae.eval()(x, target=target).losses["prefixes"]  # from dense latents
    assert torch.isfinite(dense)


def test_auxk_is_on_what_the_whole_code_leaves_over() -> None:
    ours, batch = build().train(), BatchTopKSAE(BatchTopKConfig(**FIELDS)).double()
    batch.load_state_dict(ours.state_dict())
    x = torch.randn(20, 8).double()
    expected = batch(x, state=state_of([1, 20])).losses["auxk"]
    assert torch.equal(ours(x, state=state_of([1, 20])).losses["auxk"], expected)


@pytest.mark.parametrize("kind", ["none", "layer_norm"])
def test_a_prefix_decodes_as_if_later_latents_were_zero(kind: str) -> None:
    sae, x = build(input_norm=kind).eval(), torch.randn(4, 5, 8).double()
    code, dense, norm = sae.encode_sparse(x), sae.encode(x), sae.normalize(x)[1]
    for group, bound in enumerate(BOUNDS):
        cut = dense.clone()
        cut[..., bound:] = 0
        expected = sae.decode(cut, norm)
        torch.testing.assert_close(sae.decode_prefix(code, group), expected)
        torch.testing.assert_close(sae.decode_prefix(dense, group, norm), expected)
        truncated = sae.truncate(code, group)
        assert isinstance(truncated, SparseCode)
        torch.testing.assert_close(truncated.to_dense(), cut)
    for group in (-1, 3):
        with pytest.raises(ConfigError, match="3 prefixes"):
            sae.truncate(code, group)


def test_default_prefixes_double() -> None:
    assert MatryoshkaConfig(d_in=8, d_sae=64).bounds == [4, 8, 16, 32, 64]
    assert MatryoshkaConfig(d_in=8, d_sae=6, k=2).bounds == [1, 3, 6]
    assert MatryoshkaConfig(d_in=8, d_sae=1, k=1).bounds == [1]


def test_round_trip_keeps_bounds_and_threshold(tmp_path: Path) -> None:
    sae = build().float().eval()
    sae.save_pretrained(tmp_path)
    loaded = AutoSAE.from_pretrained(tmp_path)
    assert loaded.config.bounds == BOUNDS
    assert torch.equal(loaded.threshold, sae.threshold)


@pytest.mark.parametrize("bounds", [[], [24, 24], [9, 2, 24], [0, 24], [2, 9], [2, 25], [-1, 24]])
def test_bounds_that_do_not_rise_to_d_sae_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ConfigError, match="end at d_sae=24"):
        build(group_bounds=bounds)


@pytest.mark.parametrize("changes", [{"k": 0}, {"k": 25}, {"k_aux": 0}, {"aux_coefficient": float("inf")}])
def test_bad_configs(changes: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        build(**changes)


def families(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three parents, each alone or with one of its three children (which never come alone); who is active; the directions."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(20, 12, generator=torch.Generator().manual_seed(5))).Q.T
    parents = torch.rand(n, 3, generator=generator) < 0.4
    which = torch.randint(0, 6, (n, 3), generator=generator)  # 3, 4 and 5: no child
    children = (which.unsqueeze(-1) == torch.arange(3)) & parents.unsqueeze(-1)
    active = torch.cat([parents, children.flatten(1)], dim=1)
    return (active * (0.8 + 0.4 * torch.rand(n, 12, generator=generator))) @ atoms, active, atoms


def hole_rate(sae: SAE) -> float:
    """How often the latent that stands for a parent is silent while one of its children is there."""
    x, active, _ = families(4096, 10**6)
    fires = sae.encode(x) != 0
    rates = []
    for parent in range(3):
        alone = active[:, parent] & ~active[:, 3:].view(-1, 3, 3)[:, parent].any(-1)
        best = int((fires[alone].float().mean(0) - fires[~active[:, parent]].float().mean(0)).argmax())
        with_child = active[:, 3:].view(-1, 3, 3)[:, parent].any(-1)
        rates.append(1 - float(fires[with_child, best].float().mean()))
    return sum(rates) / 3


def test_parents_keep_firing_with_their_children(tmp_path: Path) -> None:
    fields = {"d_in": 20, "d_sae": 12, "k": 1.8, "hook_in": "resid_post.0"}
    x, rates = families(256 * 150, 0)[0], []
    for config in (BatchTopKConfig(**fields), MatryoshkaConfig(**fields, group_bounds=[3, 12])):
        torch.manual_seed(1)
        sae = AutoSAE.from_config(config)
        trainer(sae, tmp_path / config.model_type, x, learning_rate=1e-2).train()
        rates.append(hole_rate(sae.eval()))
    assert rates[1] < rates[0] - 0.2
