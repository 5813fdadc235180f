from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_sae.models import (
    AutoSAE,
    ConfigError,
    HierarchicalTopKConfig,
    HierarchicalTopKSAE,
    TopKConfig,
    TopKSAE,
    TrainingState,
)
from hf_sae.models.modeling_hierarchical_topk import _PrefixErrors
from hf_sae.training.optimizer import RowAdam


KINDS = [
    {"hook_in": "resid_post.0"},
    {"hook_in": "resid_post.0", "input_norm": "scalar", "input_scale": 0.5},
    {"hook_in": "resid_post.0", "input_norm": "layer_norm"},
    {"hook_in": "mlp_in.0", "hook_out": "mlp_out.0", "d_out": 5, "skip": True},
]


def build(**changes) -> HierarchicalTopKSAE:
    torch.manual_seed(0)
    config = HierarchicalTopKConfig(**{"d_in": 6, "d_sae": 16, "k": 5, "hook_in": "resid_post.0"} | changes)
    sae = HierarchicalTopKSAE(config)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if parameter.ndim == 1 or "skip" in name:
                parameter.normal_(std=0.3)
    return sae.double()


def dense_loss(sae: HierarchicalTopKSAE, x: Tensor, target: Tensor, normaliser: float) -> Tensor:
    """The mean over j of the error with the j largest latents, each from a dense code, by plain autograd."""
    normalised, norm = sae.normalize(x)
    centred = normalised - sae.decoder.bias if sae.config.subtracts_bias else normalised
    pre = centred @ sae.encoder.weight.T + sae.encoder.bias
    order = pre.detach().argsort(dim=-1, descending=True)
    total = x.new_zeros(())
    for j in range(1, sae.config.k + 1):
        mask = torch.zeros_like(pre).scatter(-1, order[..., :j], 1.0)
        out = (torch.relu(pre) * mask) @ sae.decoder.weight + sae.decoder.bias
        out = sae.to_output_units(out, norm)
        if sae.config.undoes_norm_per_token:
            out = out + norm[0]
        if sae.skip is not None:
            out = out + normalised @ sae.skip.weight.T
        total = total + (target - out).square().sum(-1).mean()
    return total / sae.config.k / normaliser


@pytest.mark.parametrize("kind", KINDS, ids=["none", "scalar", "layer_norm", "skip"])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_loss_and_gradients_are_those_of_dense_autograd(kind: dict, k: int) -> None:
    sae, x = build(k=k, **kind), torch.randn(4, 10, 6, dtype=torch.double)
    target = torch.randn(4, 10, 5, dtype=torch.double) if "skip" in kind else x
    expected = dense_loss(sae, x, target, 3.0)
    expected.backward()
    slow = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    output = sae(x, target=target, state=TrainingState(normaliser=3.0))
    torch.testing.assert_close(output.loss, expected, atol=1e-10, rtol=0)
    output.loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, slow[name], atol=1e-8, rtol=0, msg=name)


def test_custom_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    start, values, weight = (
        torch.randn(size, dtype=torch.double, requires_grad=True) for size in ((4, 3), (4, 5), (7, 3))
    )
    indices = torch.stack([torch.randperm(7)[:5] for _ in range(4)])
    assert torch.autograd.gradcheck(lambda s, v, w: _PrefixErrors.apply(s, v, indices, w), (start, values, weight))


def test_factored_and_full_gradients_reach_the_optimiser_together() -> None:
    """Training collects some gradients of the dictionary as factors; those of the prefixes come in full."""
    plain, x = build(), torch.randn(20, 6, dtype=torch.double)
    plain(x, state=TrainingState()).loss.backward()
    factored = build()
    optimizer = RowAdam(factored.parameters(), factored=[factored.encoder.weight, factored.decoder.weight])
    factored(x, state=TrainingState()).loss.backward()
    assert factored.decoder.weight.row_gradients
    optimizer.materialize()
    torch.testing.assert_close(factored.decoder.weight.grad, plain.decoder.weight.grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(factored.encoder.weight.grad, plain.encoder.weight.grad, atol=1e-12, rtol=0)


def test_memory_is_that_of_one_error() -> None:
    """Nothing that autograd keeps has an entry for every token, latent and dimension."""
    sae, x, kept = build(), torch.randn(64, 6, dtype=torch.double), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        sae(x, state=TrainingState())
    assert max(kept) <= 64 * 16
    assert 64 * 5 * 6 > 64 * 16


def test_last_reconstruction_is_topk_and_each_k_too() -> None:
    sae, x = build().eval(), torch.randn(12, 6, dtype=torch.double)
    for k in (1, 3, 5):
        topk = TopKSAE(TopKConfig(d_in=6, d_sae=16, k=k, hook_in="resid_post.0")).double()
        topk.load_state_dict(sae.state_dict())
        for model in (sae.with_k(k), sae) if k == 5 else (sae.with_k(k),):
            torch.testing.assert_close(model(x).reconstruction, topk(x).reconstruction, atol=1e-12, rtol=0)
    assert sae.config.k_inference is None
    assert sae.with_k(3).decoder.weight is sae.decoder.weight


def test_number_of_latents_at_inference_is_saved(tmp_path) -> None:
    sae, x = build(), torch.randn(8, 6, dtype=torch.double)
    sae.with_k(2).save_pretrained(tmp_path)
    loaded = AutoSAE.from_pretrained(tmp_path)
    assert (loaded.config.k, loaded.config.k_inference) == (5, 2)
    assert loaded.encode_sparse(x).l0() == 2
    assert loaded(x, state=TrainingState()).latents.values.shape == (8, 5)


def test_is_better_than_topk_with_few_latents() -> None:
    """Trained with up to 8 latents: with 1 or 2 of them far better than TopK(8) cut short."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(48, 24), dim=-1)
    codes = torch.zeros(4096, 48).scatter(1, torch.rand(4096, 48).topk(8).indices, torch.rand(4096, 8))
    x, fvu = codes @ rows, {}
    sizes = {"d_in": 24, "d_sae": 48, "k": 8, "hook_in": "resid_post.0"}
    for sae in (HierarchicalTopKSAE(HierarchicalTopKConfig(**sizes)), TopKSAE(TopKConfig(**sizes))):
        state = TrainingState(total_steps=150)
        sae.initialize_from(x, x, state)
        optimizer = RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight], lr=1e-2)
        for state.step in range(150):
            sae(x[torch.randint(len(x), (256,))], state=state).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        sae.eval()
        with torch.no_grad():
            for k in (1, 2, 8):
                if isinstance(sae, TopKSAE):
                    sae.config.k = k
                    fvu["topk", k] = float(sae(x, target=x).fvu)
                else:
                    fvu["hierarchical", k] = float(sae.with_k(k)(x, target=x).fvu)
    assert fvu["hierarchical", 1] < fvu["topk", 1] - 0.05, fvu
    assert fvu["hierarchical", 2] < fvu["topk", 2] - 0.05, fvu
    assert fvu["hierarchical", 1] > fvu["hierarchical", 2] > fvu["hierarchical", 8]


@pytest.mark.parametrize(
    ("changes", "match"), [({"k": 17}, "d_sae=16"), ({"k_inference": 6}, "k_inference=6"), ({"k_aux": 0}, "k_aux")]
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)
    with pytest.raises(ConfigError, match="k_inference=9"):
        build().with_k(9)
