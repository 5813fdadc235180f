"""Lengths of codes against answers that are known in advance."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae.data import TokenBatch
from hf_sae.evaluation import CodeNorms, code_norms, norms_of
from hf_sae.hub.plots import zf_plot
from hf_sae.models import AbsTopKConfig, AbsTopKSAE, StandardConfig, StandardSAE, TopKConfig, TopKSAE


def build(**changes) -> TopKSAE:
    torch.manual_seed(0)
    config = {"d_in": 6, "d_sae": 10, "k": 3, "hook_in": "resid_post.0"} | changes
    sae = TopKSAE(TopKConfig(**config)).eval()
    with torch.no_grad():
        sae.decoder.bias.normal_(std=0.3)
        sae.decoder.weight.mul_(0.5 + torch.rand(10, 1))
    return sae


@pytest.mark.parametrize(
    "changes",
    [{}, {"input_norm": "scalar", "input_scale": 0.5}, {"input_norm": "layer_norm"}, {"input_norm": "unit_rms"}],
    ids=["none", "scalar", "layer_norm", "unit_rms"],
)
def test_lengths_by_brute_force(changes: dict) -> None:
    sae, x = build(**changes), torch.randn(20, 6) + 1
    found = norms_of(sae, x)
    dense = sae.requires_grad_(False).encode(x)
    scale = {"scalar": 2.0, "layer_norm": x.std(-1), "unit_rms": (x.square().mean(-1) + 1e-5).sqrt()}
    for row in range(20):
        energy = sum(float(dense[row, i] * sae.decoder.weight[i].norm()) ** 2 for i in range(10))
        length = math.sqrt(energy + float(sae.decoder.bias.norm()) ** 2)
        unit = scale.get(changes.get("input_norm", ""), 1.0)
        unit = float(unit[row]) if isinstance(unit, torch.Tensor) else unit
        assert float(found.code[row]) == pytest.approx(length * unit, rel=1e-4)
        target = x[row] - x[row].mean() if changes.get("input_norm") == "layer_norm" else x[row]
        assert float(found.dense[row]) == pytest.approx(float(target.norm()), rel=1e-5)
    assert found.n_rows == 11


def test_orthonormal_rows_give_codes_as_long_as_their_inputs() -> None:
    sae = StandardSAE(StandardConfig(d_in=8, d_sae=16, hook_in="resid_post.0")).eval()
    rows = torch.linalg.qr(torch.randn(8, 8))[0]
    with torch.no_grad():  # both directions of every axis: the code is exact
        sae.decoder.weight.copy_(torch.cat([rows, -rows]))
        sae.encoder.weight.copy_(sae.decoder.weight)
    found = norms_of(sae, torch.randn(50, 8))
    torch.testing.assert_close(found.code, found.dense)
    assert float(found.epsilon.max()) < 1e-6
    assert found.to_dict()["correlation"] == pytest.approx(1.0)


def test_latents_below_zero_count() -> None:
    sae = AbsTopKSAE(AbsTopKConfig(d_in=2, d_sae=2, k=2, hook_in="resid_post.0")).eval()
    with torch.no_grad():
        sae.decoder.weight.copy_(torch.eye(2))
        sae.encoder.weight.copy_(torch.eye(2))
    assert norms_of(sae, torch.tensor([[-3.0, 4.0]])).code.tolist() == [5.0]


def test_a_transcoder_codes_for_its_target_without_the_skip() -> None:
    sae = build(hook_in="mlp_in.0", hook_out="mlp_out.0", skip=True)
    with torch.no_grad():
        sae.skip.weight.copy_(2 * torch.eye(6))
    x, target = torch.randn(5, 6), torch.randn(5, 6)
    torch.testing.assert_close(norms_of(sae, x, target).dense, (target - 2 * x).norm(dim=-1))
    with pytest.raises(ValueError, match="targets"):
        norms_of(sae, x)


def test_summary_of_known_lengths() -> None:
    norms = CodeNorms(torch.tensor([1.0, 2.0, 4.0, 2.0]), torch.tensor([2.0, 1.0, 2.0, 2.0]), 5)
    # |1-4|/(4·4), |4-1|/(4·1), |16-4|/(4·4), 0
    torch.testing.assert_close(norms.epsilon, torch.tensor([0.1875, 0.75, 0.75, 0.0], dtype=torch.double))
    found = norms.to_dict()
    assert (found["under_activated"], found["over_activated"], found["tokens"]) == (0.5, 0.25, 4)
    assert (found["mean_dense_norm"], found["mean_code_norm"], found["largest_epsilon_lbo"]) == (2.25, 1.75, 0.75)
    empty = CodeNorms(torch.ones(2), torch.zeros(2), 5)
    assert empty.epsilon.isinf().all()
    assert empty.to_dict()["largest_epsilon_lbo"] is None
    assert zf_plot(empty) is None


def test_every_epsilon_is_allowed_by_the_bound_of_the_theorem() -> None:
    """Rows that overlap by at most μ explain every exact code with an ε of at most μ."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    overlap = (rows @ rows.T - torch.eye(5)).abs().max()
    codes = torch.rand(300, 5)
    norms = CodeNorms((codes @ rows).norm(dim=-1), codes.norm(dim=-1), 5)
    assert 0 < float(norms.epsilon.max()) <= float(overlap)


def test_tokens_of_a_host_are_those_that_evaluation_keeps() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    host = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **sizes)).eval()
    ids = torch.randint(1, 50, (8, 12))
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[:, 0] = keep[3] = False
    documents = torch.arange(8)[:, None].expand(8, 12)
    batches = [TokenBatch(*part) for part in zip(*(t.split(4) for t in (ids, torch.ones_like(ids), keep, documents)))]  # noqa: B905
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=32, k=4, hook_in="resid_post.0")).eval()
    found = code_norms(sae, host, None, batches, progress=False)
    with torch.no_grad():
        hidden = host(ids, output_hidden_states=True).hidden_states[1]
    expected = norms_of(sae, hidden[keep])
    torch.testing.assert_close(found.dense, expected.dense)
    torch.testing.assert_close(found.code, expected.code)
    places = {"hook_in": "model.layers.1.mlp:input", "hook_out": "model.layers.1.mlp"}
    transcoder = TopKSAE(TopKConfig(d_in=16, d_sae=32, k=4, **places)).eval()
    assert len(code_norms(transcoder, host, None, batches, n_tokens=20, progress=False).dense) >= 20
    with pytest.raises(ValueError, match="n_tokens=0"):
        code_norms(sae, host, None, batches, n_tokens=0)
