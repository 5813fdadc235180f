"""`evaluate` against answers that are known in advance."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from hf_sae.data import TokenBatch
from hf_sae.errors import DataError, HookPointError
from hf_sae.evaluation import evaluate
from hf_sae.models import SAEOutput, StandardConfig, StandardSAE, TopKConfig, TopKSAE


D, VOCABULARY, LENGTH = 16, 50, 20
MLP_IN, MLP_OUT = "model.layers.1.mlp:input", "model.layers.1.mlp"
LANGUAGE = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered", "ce_recovered_mean", "kl", "delta_ce")


class Rule(StandardSAE):
    """An SAE whose reconstruction and latents are given functions of its input."""

    def __init__(self, config, reconstruct, latents=None):
        super().__init__(config)
        self.reconstruct_with, self.latents_with = reconstruct, latents or torch.zeros_like

    def forward(self, hidden_states, target=None, state=None):
        return SAEOutput(reconstruction=self.reconstruct_with(hidden_states), latents=self.latents_with(hidden_states))

    def encode(self, hidden_states):
        return self.latents_with(hidden_states)


def rule(reconstruct, latents=None, **config) -> Rule:
    return Rule(StandardConfig(**{"d_in": D, "d_sae": D, "hook_in": "resid_post.0", **config}), reconstruct, latents)


@pytest.fixture(scope="module")
def host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def tokens(rows: int = 12, batch_size: int = 4, padding: int = 0) -> list[TokenBatch]:
    ids = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::3, LENGTH - 5 :] = 0
    documents = torch.arange(rows)[:, None].div(2, rounding_mode="floor").expand(rows, LENGTH)
    keep = mask.bool()
    keep[:, 0] = False
    parts = [torch.nn.functional.pad(part, (0, padding)) for part in (ids, mask, keep, documents)]
    return [TokenBatch(*batch) for batch in zip(*(part.split(batch_size) for part in parts), strict=True)]


def run(sae, host, dataset=None, **options):
    return evaluate(sae, host, None, dataset or tokens(), progress=False, **options)


def test_batches_without_a_kept_token_change_nothing(host):
    batches = tokens()
    empty = TokenBatch(
        *(getattr(batches[0], name) for name in ("input_ids", "attention_mask")),
        torch.zeros_like(batches[0].keep),
        batches[0].documents,
    )
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=32, k=2, hook_in="resid_post.0")).eval()
    told, got = (
        run(sae, host, tokens(), n_tokens=10**6),
        run(sae, host, [batches[0], empty, *batches[1:]], n_tokens=10**6),
    )
    assert told["fvu"] == pytest.approx(got["fvu"], rel=1e-9)
    assert told["l0"] == got["l0"]


def activations(host, layer: int = 0) -> torch.Tensor:
    kept = []
    for batch in tokens():
        with torch.no_grad():
            states = host(
                batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
            ).hidden_states
        kept.append(states[layer + 1][batch.keep])
    return torch.cat(kept)


def test_identity_is_perfect(host):
    report = run(rule(lambda x: x), host)
    for key, value in {"fvu": 0, "explained_variance": 1, "mse": 0, "kl": 0, "delta_ce": 0, "ce_recovered": 1}.items():
        assert report[key] == value
    assert report["ce_recovered_mean"] == 1
    assert report["cosine"] == pytest.approx(1)
    assert report["relative_bias"] == pytest.approx(1)


def test_zero_reconstruction_recovers_exactly_nothing(host):
    report = run(rule(torch.zeros_like), host)
    assert report["ce_recovered"] == 0
    assert report["ce_sae"] == report["ce_zero"] != report["ce_clean"]
    assert report["relative_bias"] is None


def test_mean_reconstruction_explains_nothing(host):
    mean = activations(host).double().mean(0).float()
    report = run(rule(lambda x: mean.expand_as(x)), host)
    assert report["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert report["ce_recovered_mean"] == pytest.approx(0, abs=1e-5)


def test_losses_equal_a_manual_computation(host):
    report = run(rule(lambda x: x), host)
    total, count = 0.0, 0
    for batch in tokens():
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        with torch.no_grad():
            loss = host(batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        n = int((labels[:, 1:] != -100).sum())
        total, count = total + loss.item() * n, count + n
    assert report["ce_clean"] == pytest.approx(total / count, rel=1e-5)
    assert report.counts["predicted"] == count


def test_noise_costs_its_variance(host):
    sigma, generator = 0.5, torch.Generator().manual_seed(1)
    batches = [TokenBatch(*(part.repeat(80, 1) for part in vars(batch).values())) for batch in tokens()]
    report = run(rule(lambda x: x + sigma * torch.randn(x.shape, generator=generator)), host, batches)
    variance = activations(host).double().var(0, correction=0).sum().item()
    assert report["fvu"] == pytest.approx(sigma**2 * D / variance, rel=0.03)


@pytest.mark.parametrize(("batch_size", "padding"), [(1, 0), (3, 7), (12, 1)])
def test_batch_size_and_padding_change_nothing(host, batch_size, padding):
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=40, k=5, hook_in="resid_post.0"))
    reference, other = run(sae, host, controls=True), run(sae, host, tokens(12, batch_size, padding), controls=True)
    assert other.sha256 == reference.sha256
    assert other.counts == reference.counts
    for ours, theirs in (
        (reference.metrics, other.metrics),
        *zip(reference.controls.values(), other.controls.values(), strict=True),
    ):
        for key, metric in ours.items():
            found = theirs[key]
            numbers = [[math.nan if v is None else v for v in vars(m).values()] for m in (metric, found)]
            assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, abs=1e-5, nan_ok=True), key
    torch.testing.assert_close(other.feature_stats, reference.feature_stats)


def test_only_kept_positions_are_replaced(host):
    batches = tokens()
    for batch in batches:
        batch.keep[:] = False
        batch.keep[:, -6] = True
    report = run(rule(torch.zeros_like), host, batches)
    edited = []
    for batch in batches:
        with torch.no_grad():

            def hook(module, args, output, keep=batch.keep):
                return torch.where(keep[..., None], 0.0, output)

            handle = host.model.layers[0].register_forward_hook(hook)
            logits = host(batch.input_ids, attention_mask=batch.attention_mask).logits.log_softmax(-1)
            handle.remove()
        loss = -logits[:, :-1].gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
        edited.append(loss[batch.attention_mask[:, 1:].bool()])
    assert report["ce_sae"] == pytest.approx(torch.cat(edited).mean().item(), rel=1e-5)
    assert report.n_tokens == 12


def test_latent_statistics_are_exact(host):
    def latents(x):
        dense = torch.zeros(len(x), D)
        dense[:, 0] = 2.0
        dense[::2, 1] = -3.0
        return dense

    sae = rule(lambda x: x, latents)
    report = run(sae, host, tokens(12, 12))
    n = report.n_tokens
    half = (n + 1) // 2
    expected = torch.zeros(D)
    expected[0], expected[1] = 1, half / n
    torch.testing.assert_close(report.feature_stats["density"], expected)
    assert report.feature_stats["maximum"].tolist() == [2, -3] + [0] * (D - 2)
    assert report.feature_stats["tokens"].item() == n
    norms = activations(host).norm(dim=-1).mean()
    torch.testing.assert_close(report.feature_stats["input_norm"], norms)
    assert report["dead_fraction"] == (D - 2) / D
    assert report["l0"] == pytest.approx(1 + half / n)
    assert report["density"] == pytest.approx((1 + half / n) / D)
    assert report.density["histogram"]["0"] == D - 2
    assert sum(report.density["histogram"].values()) == D
    assert sae.feature_stats is report.feature_stats


def test_a_transcoder_is_scored_against_its_target(host):
    mlp = host.model.layers[1].mlp
    perfect = rule(mlp, hook_in=MLP_IN, hook_out=MLP_OUT, d_out=D)
    report = run(perfect, host, controls=False)
    assert report["fvu"] == pytest.approx(0, abs=1e-10)
    assert report["ce_recovered"] == pytest.approx(1, abs=1e-5)
    wrong = rule(lambda x: x, hook_in=MLP_IN, hook_out=MLP_OUT, d_out=D)
    assert run(wrong, host)["fvu"] > 0.5


def test_several_share_the_passes_and_agree_with_one_at_a_time(host, monkeypatch):
    saes = {
        name: TopKSAE(TopKConfig(d_in=D, d_sae=40, k=k, hook_in="resid_post.0")) for name, k in (("a", 3), ("b", 9))
    }
    alone = {name: run(sae, host) for name, sae in saes.items()}
    calls = []
    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    together = run(saes, host, tokens(12, 12))
    assert {name: report.to_dict()["metrics"].keys() for name, report in together.items()}.keys() == {"a", "b"}
    for name, report in together.items():
        for key, metric in report.metrics.items():
            assert metric.value == pytest.approx(alone[name].metrics[key].value, rel=1e-4, abs=1e-5)
    assert len(calls) <= 1 + 1 + 2 + 2  # survey, clean, zero and mean, one per autoencoder


def test_controls_are_what_they_claim(host):
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=40, k=4, hook_in="resid_post.0"))
    report = run(sae, host, controls=True)
    x = activations(host).double()
    rank = round(report["l0"])
    eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))
    best = 1 - (eigenvalues[-rank:].sum() / eigenvalues.sum()).item()
    assert report.controls["pca"]["fvu"].value == pytest.approx(best, rel=1e-4)
    assert report.controls["pca"]["l0"].value == rank
    assert report.controls["random"]["l0"].value <= rank
    assert {"fvu", "delta_ce", "ce_recovered"} <= report.controls["random"].keys()
    assert any("flatters" in note for note in report.notes)
    fair = run(sae, host, controls=True, control_sample=activations(host)[:60])
    assert fair.controls["pca"]["fvu"].value > best
    assert not any("flatters" in note for note in fair.notes)
    assert fair.controls["random"] == report.controls["random"]


def test_the_linear_control_of_a_transcoder_is_the_best_affine_map(host):
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=40, k=D, hook_in=MLP_IN, hook_out=MLP_OUT))
    sae.encoder.bias.data.fill_(100)  # every latent positive: L0 is exactly D and the map has full rank
    report = run(sae, host, controls=True)
    x, y = [], []
    mlp = host.model.layers[1].mlp

    def record(module, args, output):
        x.append(args[0])
        y.append(output)

    handle = mlp.register_forward_hook(record)
    with torch.no_grad():
        for batch in tokens():
            host(batch.input_ids, attention_mask=batch.attention_mask)
            x[-1], y[-1] = x[-1][batch.keep], y[-1][batch.keep]
    handle.remove()
    x, y = torch.cat(x).double(), torch.cat(y).double()
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    expected = (residual.square().sum() / (y - y.mean(0)).square().sum()).item()
    assert report.controls["linear"]["fvu"].value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("input_norm", ["none", "scalar", "layer_norm"])
def test_the_random_control_starts_from_the_mean(input_norm):
    torch.manual_seed(0)
    host = BertModel(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    host.encoder.layer[0].output.LayerNorm.bias.data.copy_(torch.linspace(-10, 10, D))
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=64, k=1, hook_in="resid_post.0", input_norm=input_norm, input_scale=0.25))
    # one of 64 random directions explains a little about the mean; a control that missed the mean would be far above 1
    assert run(sae, host, controls=True).controls["random"]["fvu"].value < 1.5


def test_intervals_hold_the_value_and_need_two_documents(host):
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=40, k=4, hook_in="resid_post.0"))
    report = run(sae, host)
    for key in ("fvu", "mse", "cosine", "ce_sae", "kl", "delta_ce", "ce_recovered"):
        metric = report.metrics[key]
        assert metric.low <= metric.value <= metric.high
        assert metric.low < metric.high
    assert report.n_documents == 6
    alone = run(sae, host, tokens(2, 2))
    assert alone.metrics["fvu"].low is None
    assert any("one document" in note for note in alone.notes)


def test_n_tokens_takes_whole_rows_whatever_the_batches(host):
    sae = rule(lambda x: x)
    reports = [run(sae, host, tokens(12, size), n_tokens=40) for size in (1, 5, 12)]
    assert {report.sha256 for report in reports} == {reports[0].sha256}
    assert reports[0].n_tokens == 14 + 19 + 19
    assert reports[0].counts["masked"] == 3
    assert run(sae, host, tokens(12, 5), n_tokens=33).n_tokens == 33


def test_hosts_without_a_causal_head_keep_the_reconstruction_metrics(host):
    small = BertConfig(
        vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    for other, reason in (
        (LlamaModel(host.config), "no language-model head"),
        (BertModel(small), "no language-model head"),
        (BertForMaskedLM(small), "masked language model"),
    ):
        report = run(rule(lambda x: 0.5 * x), other)
        assert all(report[key] is None for key in LANGUAGE)
        assert 0 < report["fvu"] < 10
        assert any(reason in note for note in report.notes)
        assert math.isnan(float(report.metrics["kl"]))


def test_pixels_are_evaluated_without_a_tokenizer():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    images = [{"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.zeros(3)} for _ in range(2)]
    report = run(rule(lambda x: x), ViTModel(config), images)
    assert report.n_tokens == 6 * 5
    assert report.n_documents == 6
    assert report["fvu"] == 0
    assert report["ce_sae"] is None


def test_modes_and_random_state_are_left_alone(host):
    sae = TopKSAE(TopKConfig(d_in=D, d_sae=40, k=4, hook_in="resid_post.0"))
    host.train()
    host.model.layers[0].eval()
    sae.train()
    state = torch.random.get_rng_state()
    run(sae, host, controls=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert host.training
    assert sae.training
    assert not host.model.layers[0].training
    assert host.model.layers[1].mlp.training
    host.eval()


def test_another_host_is_warned_about(host):
    sae = rule(lambda x: x, provenance={"host": {"hidden_size": D + 1, "model_type": "llama"}})
    with pytest.warns(UserWarning, match=rf"hidden size: trained on {D + 1}, this host has {D}"):
        run(sae, host)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(rule(lambda x: x, provenance={"host": {"hidden_size": D, "model_type": "llama"}}), host)


def test_errors_say_what_is_wrong(host):
    with pytest.raises(ValueError, match="n_tokens=0"):
        run(rule(lambda x: x), host, n_tokens=0)
    empty = tokens(2, 2)
    empty[0].keep[:] = False
    with pytest.raises(DataError, match="no token"):
        run(rule(lambda x: x), host, empty)
    with pytest.raises(HookPointError, match="d_in=8"):
        run(rule(lambda x: x, d_in=8, d_sae=8), host)
    with pytest.raises(HookPointError, match="one place to read"):
        run(rule(lambda x: x, hook_in=None), host)
    with pytest.raises(DataError, match="tokenizer"):
        run(rule(lambda x: x), host, ["some text"])
    with pytest.raises(DataError, match="control_sample"):
        run(rule(lambda x: x), host, controls=True, control_sample=torch.zeros(4, D + 1))
    pair = {str(n): rule(lambda x: x, provenance={"data": {"context_length": n}}) for n in (64, 128)}
    with pytest.raises(ValueError, match="context_length"):
        run(pair, host)


def test_activations_that_are_not_finite_are_refused(host):
    weight = host.model.layers[0].mlp.down_proj.weight
    before = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        with pytest.raises(DataError, match="NaN"):
            run(rule(lambda x: x), host)
    finally:
        with torch.no_grad():
            weight[0, 0] = before


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<bos>", "<unk>"]
    inner.train_from_iterator(["def f(x): return x"] * 3, trainers.BpeTrainer(vocab_size=40, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>")


def test_the_default_dataset_is_the_test_split_of_the_standard_library(host, tokenizer):
    sae = rule(lambda x: x, provenance={"data": {"context_length": 16, "positions": "all"}})
    report = evaluate(sae, host, tokenizer, n_tokens=300, progress=False)
    assert report.dataset["name"] == "python-standard-library"
    assert report.dataset["split"] == "test"
    assert report.context_length == 16
    assert 300 <= report.n_tokens < 316
    assert report["fvu"] == 0
    assert "vocabulary_sha256" in report.host["fingerprint"]
    again = evaluate(sae, host, tokenizer, n_tokens=300, batch_size=3, progress=False)
    assert again.sha256 == report.sha256
    assert evaluate(sae, host, tokenizer, n_tokens=300, seed=1, progress=False).sha256 != report.sha256


def test_texts_and_positions_reach_the_dataset(host, tokenizer):
    texts = ["def f(x): return x"] * 6

    def third(batch):
        return torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids) == 3

    sae = rule(lambda x: x)
    report = evaluate(sae, host, tokenizer, texts, context_length=8, positions=third, progress=False)
    assert 1 <= report.n_tokens <= math.ceil(report.counts["seen"] / 8)
    assert report.positions.endswith("third")
    assert report.dataset["split"] is None
    assert report.counts["masked"] > report.n_tokens


def test_the_report_can_be_published(host, tokenizer, tmp_path):
    host.config._name_or_path = str(tmp_path / "my-host")
    report = evaluate(rule(lambda x: x), host, tokenizer, ["def f(x): return x"] * 9, context_length=8, progress=False)
    assert report.host["name"] == "my-host"
    report.to_json(tmp_path / "report.json")
    assert str(tmp_path) not in (tmp_path / "report.json").read_text()
    assert {result.dataset_name for result in report.to_model_index()} == {"list"}
