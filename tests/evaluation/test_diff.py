"""`compare_hosts` where what an adapter changes is known beforehand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae.data import TokenBatch
from hf_sae.errors import ConfigError, HookPointError
from hf_sae.evaluation import DiffReport, Metric, compare_hosts
from hf_sae.evaluation.paired import PairedSums
from hf_sae.evaluation.samples import EvalBatch, Sample
from hf_sae.evaluation.significance import Clusters, critical_t, two_sided_p
from hf_sae.hosts.adapters import without_adapters
from hf_sae.models import SparseCode, StandardConfig, StandardSAE, TopKConfig, TopKSAE


D, VOCABULARY, LENGTH, PLANTED = 16, 50, 20, 5
PLACE = "resid_post.0"


def make_host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def adapt(host: LlamaForCausalLM, planted: bool = True) -> PeftModel:
    """A LoRA on the first MLP that writes to one dimension of the residual stream, or (`B` = 0) to none."""
    torch.manual_seed(1)
    adapted = get_peft_model(host, LoraConfig(r=2, lora_alpha=2, target_modules=["layers.0.mlp.down_proj"]))
    if planted:
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data[PLANTED] = 1.5
    return adapted.eval()


def one_latent_per_dimension() -> StandardSAE:
    """Latent `i` is what dimension `i` has above 0.1."""
    sae = StandardSAE(StandardConfig(d_in=D, d_sae=D, hook_in=PLACE, pre_bias=False)).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.encoder.weight.copy_(torch.eye(D))
        sae.decoder.weight.copy_(torch.eye(D))
        sae.encoder.bias.fill_(-0.1)
    return sae


def tokens(rows: int = 36, batch_size: int = 4) -> list[TokenBatch]:
    """Documents of one to three rows, some over two batches, two of them interleaved; BOS and padding left out."""
    ids = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::3, LENGTH - 5 :] = 0
    document = torch.tensor([0, 1, 1, 2, 2, 2] * (rows // 6)) + torch.arange(rows).div(6, rounding_mode="floor") * 3
    document[[7, 20]] = document[[20, 7]]
    documents = document[:, None].expand(rows, LENGTH)
    keep = mask.bool()
    keep[:, 0] = False
    parts = (ids, mask, keep, documents)
    return [TokenBatch(*batch) for batch in zip(*(part.split(batch_size) for part in parts), strict=True)]


def run(sae: Any, host: Any, finetuned: Any, dataset: Any = None, **options: Any) -> DiffReport:
    return compare_hosts(sae, host, finetuned, None, dataset or tokens(), progress=False, **options)


def states(model: Any) -> tuple[Tensor, Tensor]:
    """The residual stream after the first block at every kept token, `[tokens, D]`, and the documents."""
    found, documents = [], []
    for batch in tokens():
        with torch.no_grad():
            out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        found.append(out.hidden_states[1][batch.keep])
        documents.append(batch.documents[batch.keep])
    return torch.cat(found).double(), torch.cat(documents)


def test_rates_means_intervals_and_p_equal_brute_force():
    host = make_host()
    old, documents = states(host)
    adapted = adapt(host)
    new, _ = states(adapted)
    report = run(one_latent_per_dimension(), host, adapted)
    assert report.n_tokens == len(old)
    assert [change.latent for change in report.latents] == [PLANTED]
    assert report.counts["changed"] == 1
    before, after = ((x[:, PLANTED] - 0.1).clamp_min(0) for x in (old, new))
    change = report.latents[0]
    for measure, x, y in ((change.rate, (before > 0).double(), (after > 0).double()), (change.mean, before, after)):
        assert measure.before == pytest.approx(float(x.mean()), rel=1e-5)
        assert measure.after == pytest.approx(float(y.mean()), rel=1e-5)
        theta = float((y - x).mean())
        left_out = [float((y - x)[documents != g].mean()) for g in documents.unique()]
        error = math.sqrt(sum((value - theta) ** 2 for value in left_out))
        sizes = documents.unique(return_counts=True)[1].double()
        df = Clusters(sizes).degrees_of_freedom
        reach = critical_t(df) * error
        assert measure.difference.value == pytest.approx(theta, rel=1e-4)
        assert (measure.difference.low, measure.difference.high) == pytest.approx(
            (theta - reach, theta + reach), rel=1e-4
        )
        assert measure.p == pytest.approx(float(two_sided_p(torch.tensor(theta / error), df)), rel=1e-2)
        tested = report.counts["tested"]
        assert measure.q == pytest.approx(min(1, measure.p * tested)), "one change among many tests without any"
    variance = (before.var(correction=0) + after.var(correction=0)) / 2
    assert change.effect == pytest.approx(float((after.mean() - before.mean()) / variance.sqrt()), rel=1e-4)
    others = [i for i in range(D) if i != PLANTED]
    assert torch.equal(report.statistics["mean_before"][others], report.statistics["mean_after"][others])
    assert report.statistics["mean_q"][others].nan_to_num(1).eq(1).all()


def test_host_metrics_are_those_of_each_host():
    host = make_host()
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=40, k=5, hook_in=PLACE)).eval()
    losses = {}
    adapted = adapt(host)
    for side, model in (("after", adapted), ("before", make_host())):
        total = count = 0.0
        for batch in tokens():
            labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
            with torch.no_grad():
                loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
            n = int((labels[:, 1:] != -100).sum())
            total, count = total + loss.item() * n, count + n
        losses[side] = total / count
    metrics = run(sae, host, adapted).host_metrics
    for side, loss in losses.items():
        assert metrics["ce_clean"][side].value == pytest.approx(loss, rel=1e-5)
    assert metrics["ce_clean"]["difference"].value == pytest.approx(losses["after"] - losses["before"], rel=1e-3)
    for side, model in (("after", adapted), ("before", make_host())):
        x, _ = states(model)
        error = (x - sae(x.float()).reconstruction.double()).square().sum()
        assert metrics["fvu"][side].value == pytest.approx(
            float((error / (x - x.mean(0)).square().sum()).detach()), rel=1e-4
        )
    assert metrics["kl"]["difference"].value > 0
    assert metrics["l0"]["difference"] == Metric(0, 0, 0)


def test_an_adapter_that_does_nothing_changes_nothing():
    host = make_host()
    report = run(one_latent_per_dimension(), host, adapt(host, planted=False))
    assert report.latents == []
    assert report.counts["changed"] == 0
    fired = report.statistics["rate_before"] > 0
    assert report.counts["tested"] == int(fired.sum()) > 0
    for measure in ("rate", "mean"):
        assert report.statistics[f"{measure}_q"][fired].eq(1).all()
        assert report.statistics[f"{measure}_q"][~fired].isnan().all()
        assert torch.equal(report.statistics[f"{measure}_before"], report.statistics[f"{measure}_after"])
    assert report.host_metrics["kl"]["difference"].value == 0
    assert "No latent changed" in report.to_table()


def test_a_whole_model_gives_what_its_adapter_gives():
    host = make_host()
    with_adapter = run(one_latent_per_dimension(), host, adapt(host))
    merged = adapt(make_host()).merge_and_unload()
    with_model = run(one_latent_per_dimension(), make_host(), merged)
    for key, column in with_adapter.statistics.items():
        torch.testing.assert_close(with_model.statistics[key], column, atol=1e-5, rtol=1e-3, equal_nan=True)
    assert with_model.finetuned["class"] == "LlamaForCausalLM"
    merged.resize_token_embeddings(VOCABULARY + 6, mean_resizing=False)
    padded = run(one_latent_per_dimension(), make_host(), merged)
    assert torch.equal(padded.statistics["mean_after"], with_model.statistics["mean_after"])
    assert math.isfinite(padded.host_metrics["kl"]["difference"].value)
    assert with_adapter.finetuned["adapters"]["default"]["type"] == "LORA"


@pytest.mark.parametrize("batch_size", [1, 12])
def test_batches_do_not_matter(batch_size: int):
    host = make_host()
    adapted = adapt(host)
    reference = run(one_latent_per_dimension(), host, adapted)
    other = run(one_latent_per_dimension(), host, adapted, tokens(batch_size=batch_size))
    for key, column in reference.statistics.items():
        torch.testing.assert_close(other.statistics[key], column, atol=1e-9, rtol=1e-5, equal_nan=True)


def snapshot(model: Any) -> Any:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    off = [m.disable_adapters for m in model.modules() if hasattr(m, "base_layer")]
    flags = [p.requires_grad for p in model.parameters()]
    return hooks, off, flags, [m.training for m in model.modules()]


def test_switched_off_it_is_the_plain_host_to_the_bit():
    host, batch = make_host(), tokens()[0]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    plain = host(**inputs).logits
    adapted = adapt(host)
    on, before = adapted(**inputs).logits, snapshot(adapted)
    with without_adapters(adapted):
        assert torch.equal(adapted(**inputs).logits, plain)
        assert torch.equal(host(**inputs).logits, plain)
    assert snapshot(adapted) == before
    assert torch.equal(adapted(**inputs).logits, on)
    assert not torch.equal(on, plain)


@pytest.mark.parametrize("trainable", [True, False])
def test_everything_is_left_as_it_was_after_an_error_too(trainable: bool):
    host = make_host()
    adapted = adapt(host).train()
    adapted.requires_grad_(trainable)
    before = snapshot(adapted)
    run(one_latent_per_dimension(), host, adapted)
    assert snapshot(adapted) == before

    class Breaks(StandardSAE):
        def encode_sparse(self, hidden_states: Any) -> Any:
            raise RuntimeError("stop")

        forward = encode_sparse

    sae = Breaks(one_latent_per_dimension().config)
    with pytest.raises(RuntimeError, match="stop"):
        run(sae, host, adapted)
    assert snapshot(adapted) == before
    with pytest.raises(RuntimeError, match="stop"), without_adapters(adapted):
        raise RuntimeError("stop")
    assert snapshot(adapted) == before


def test_what_cannot_be_switched_off_is_an_error():
    host = make_host()
    with pytest.raises(ConfigError, match="no adapter that can be switched off"):
        run(one_latent_per_dimension(), host, host)
    adapted = adapt(host)
    adapted.merge_adapter()
    with pytest.raises(ConfigError, match="merged"):
        run(one_latent_per_dimension(), host, adapted)
    adapted.unmerge_adapter()
    adapted.base_model.disable_adapter_layers()
    with pytest.raises(ConfigError, match="switched off"):
        run(one_latent_per_dimension(), host, adapted)


def test_an_autoencoder_of_another_width_is_an_error():
    host = make_host()
    sae = TopKSAE(TopKConfig(d_in=8, d_sae=40, k=5, hook_in=PLACE)).eval()
    with pytest.raises(HookPointError, match=r"16 wide.*d_in=8"):
        run(sae, host, adapt(host))
    for option in ("n_tokens", "batch_size", "top"):
        with pytest.raises(ValueError, match=option):
            run(one_latent_per_dimension(), host, host, **{option: 0})


def test_one_document_gives_no_tests():
    host = make_host()
    batches = [TokenBatch(b.input_ids, b.attention_mask, b.keep, torch.zeros_like(b.documents)) for b in tokens()]
    report = run(one_latent_per_dimension(), host, adapt(host), batches)
    assert report.latents == []
    assert report.statistics["mean_q"].isnan().all()
    assert any("one document" in note for note in report.notes)
    json.dumps(report.to_dict(), allow_nan=False)


def test_under_the_null_p_values_are_uniform_whatever_the_latents_density():
    """Two independent draws of the same latents, from silent to dense, alike within a document."""
    generator = torch.Generator().manual_seed(0)
    d_sae, documents, size = 1500, 40, 30
    sample = Sample()
    for part in torch.arange(documents).repeat_interleave(size).view(-1, 120):
        sample.batches.append(EvalBatch({}, torch.ones(1, 120, dtype=torch.bool), part[None]))
    sums = PairedSums(sample, d_sae)
    density = torch.rand(d_sae, generator=generator) * 0.5 + 0.02
    document_effect = torch.rand(2, documents, d_sae, generator=generator) + 0.5
    for batch in sample.batches:
        codes = []
        for run_effect in document_effect:
            fires = torch.rand(120, d_sae, generator=generator) < density
            codes.append(SparseCode.from_dense(fires * run_effect[batch.documents_known[0]]))
        sums.add(batch.documents_known[0], *codes)
    change = sums.totals[1] - sums.totals[0]
    t = change / sums.clusters.tokens / sums.standard_errors()
    p = two_sided_p(t, sums.clusters.degrees_of_freedom)
    assert sums.clusters.degrees_of_freedom == pytest.approx(documents - 1)
    for measure in p:
        for level in (0.5, 0.1, 0.05, 0.01):
            noise = 4 * math.sqrt(level * (1 - level) / d_sae)
            assert abs(float((measure < level).double().mean()) - level) < noise


def test_the_report_as_text_and_json(tmp_path: Any):
    host = make_host()
    report = run(one_latent_per_dimension(), host, adapt(host))
    for width in (80, 120):
        assert max(map(len, report.to_table(width).splitlines())) <= width
    assert repr(report) == report.to_table()
    path = tmp_path / "diff.json"
    report.to_json(path)
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["latents"][0]["latent"] == PLANTED
    assert data["latents"][0]["mean"]["q"] == report.latents[0].mean.q
    assert data["counts"] == report.counts
    assert "statistics" not in data


def test_examples_are_where_the_latent_changed_most_in_its_direction():
    host = make_host()
    old, _ = states(host)
    adapted = adapt(host)
    new, _ = states(adapted)

    class Words:
        all_special_ids = ()
        bos_token_id = None

        def convert_ids_to_tokens(self, index: int) -> str:
            return f"w{index}"

        def decode(self, ids: list[int], **_: Any) -> str:
            return f"w{ids[0]}"

    report = compare_hosts(one_latent_per_dimension(), host, adapted, Words(), tokens(), progress=False)
    before, after = ((x[:, PLANTED] - 0.1).clamp_min(0) for x in (old, new))
    change = (after - before) * (1 if report.latents[0].effect > 0 else -1)
    ids = torch.cat([batch.input_ids[batch.keep] for batch in tokens()])
    examples = report.latents[0].examples
    assert abs(examples[0].activations[examples[0].peak]) == pytest.approx(float(change.max()), rel=1e-4)
    assert examples[0].token_ids[examples[0].peak] == int(ids[change.argmax()])
    assert f"w{int(ids[change.argmax()])}" in report.to_table()
