"""Cards say what the config and the report say, run as they stand, and let no text act as markup; uploads keep them."""

from __future__ import annotations

import html
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae.errors import CheckpointError
from hf_sae.evaluation import EvalReport, Metric
from hf_sae.hub import example_features, facts, push_folder, render_card, save_card
from hf_sae.hub.cards import LOG, README, RESULTS, is_generated
from hf_sae.hub.markdown import escape, strip
from hf_sae.models import AutoSAE, CrosscoderConfig, CrosscoderSAE, StandardConfig, StandardSAE, TopKConfig, TopKSAE
from hf_sae.training import SAETrainer, SAETrainingArguments
from tests import toy_text


HOSTILE = "<img src=x onerror=alert(1)> | `*_[a](javascript:b)\n@all"


def make_sae(**fields: Any) -> TopKSAE:
    torch.manual_seed(0)
    options = {"d_in": 8, "d_sae": 32, "k": 4, "hook_in": "resid_post.1", "base_model": "org/model"} | fields
    return TopKSAE(TopKConfig(**options))


def make_report(**fields: Any) -> EvalReport:
    metrics = {"l0": Metric(4.0, 4.0, 4.0), "fvu": Metric(0.25, 0.2, 0.3), "ce_recovered": Metric(None)}
    options: dict[str, Any] = {
        "metrics": metrics,
        "n_tokens": 1234,
        "n_documents": 56,
        "counts": {},
        "seed": 0,
        "dataset": {"name": "org/data", "split": "test"},
        "host": {},
        "sae": {},
        "sha256": "0",
        "context_length": 128,
        "controls": {"pca": {"fvu": Metric(0.5), "l0": Metric(4.0)}},
        "notes": ["a note"],
    }
    return EvalReport(**options | fields)


def header_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def code_of(card: str) -> str:
    return re.findall(r"```python\n(.+?)```", card, re.S)[0]


def test_header_names_library_base_model_data_and_metrics():
    sae = make_sae(provenance={"data": {"dataset": "org/data"}})
    header = header_of(render_card(sae, make_report(), repo_id="user/name"))
    assert header["library_name"] == "hf-sae"
    assert (header["base_model"], header["base_model_relation"]) == ("org/model", "adapter")
    assert header["datasets"] == ["org/data"]
    assert {"sparse-autoencoder", "topk"} <= set(header["tags"])
    index = header["model-index"][0]
    assert index["name"] == "name"
    values = {m["type"]: m["value"] for result in index["results"] for m in result["metrics"]}
    assert values == {"l0": 4.0, "fvu": 0.25}  # what is not defined is left out


@pytest.mark.parametrize("base", [None, "default_host", "/home/me/model", "./model", "some/folder", "gpt2"])
def test_a_base_model_that_is_no_hub_id_stays_out_of_the_header(
    base: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    header = header_of(render_card(make_sae(base_model=base)))
    assert not {"base_model", "base_model_relation", "model-index"} & header.keys()


def test_a_canonical_id_counts_where_its_commit_is_known():
    assert facts.hub_id("gpt2", "607a30d7") == "gpt2"
    assert facts.hub_id("gpt2") is None


def test_the_metrics_table_has_values_intervals_and_controls():
    card = render_card(make_sae(), make_report())
    assert re.search(r"\| `fvu` \| 0\.25 \| 0\.2 to 0\.3 \| variance not explained \|", card)
    assert "|  | Value | 95 % interval | PCA |" in card
    assert re.search(r"\| FVU, variance not explained \| \*\*0\.25\*\* \| 0\.2 to 0\.3 \| 0\.5 \|", card)
    assert "`ce_recovered`" not in card
    assert "1,234 tokens of 56 documents" in card
    assert "> a note" in card


def test_summary_says_what_it_is():
    assert "A TopK sparse autoencoder with 32 latents, 4 active on each token," in render_card(make_sae())
    assert "`resid_post.1` (the residual stream after block 1) of `org/model`" in render_card(make_sae())
    transcoder = make_sae(hook_in="mlp_in.3", hook_out="mlp_out.3", skip=True)
    card = render_card(transcoder)
    assert "A TopK skip transcoder" in card
    assert "reads `mlp_in.3` (the input of the MLP of block 3) and predicts `mlp_out.3`" in card
    assert "transcoder" in header_of(card)["tags"]
    assert "An" not in facts.summary(StandardSAE(StandardConfig(d_in=4, d_sae=8)), str).split()[0:1]


def test_a_converted_checkpoint_says_where_it_comes_from_and_what_was_done():
    origin = {
        "format": "gemma-scope",
        "source": "google/some`-repo\n# x",
        "place": "layer_1",
        "commit": "abc123",
        "sha256": {"params.npz": "00ff"},
        "transforms": ["decoder <b>scaled</b>"],
        "published": {"l0": 71.0},
    }
    card = render_card(make_sae(provenance={"conversion": origin}))
    section = card.split("## Origin")[1].split("##")[0]
    assert "`google/some-repo # x`, `layer_1`, commit `abc123` (format gemma-scope)" in section
    assert "File `params.npz` with SHA-256 `00ff`" in section
    assert "<b>" not in section
    assert "l0 71" in section
    assert "## Origin" not in render_card(make_sae())


def test_no_path_of_this_machine_gets_into_a_card(tmp_path: Path):
    sae = make_sae(base_model=str(tmp_path / "secret" / "model"))
    sae.save_pretrained(tmp_path / "out")
    save_card(tmp_path / "out", sae, make_report())
    assert str(tmp_path) not in (tmp_path / "out" / README).read_text()


@pytest.mark.parametrize("base", ["default_host", "/somewhere/model"])
def test_the_quickstart_runs_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str):
    shape = {"d_in": 192, "hook_in": "resid_post.1"} if base == "default_host" else {}
    sae = make_sae(base_model=base, **shape)
    sae.save_pretrained(tmp_path / "my sae")
    save_card(tmp_path / "my sae", sae)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(code_of((tmp_path / "my sae" / README).read_text()), namespace)
    assert namespace["sae"].config.d_sae == 32


def test_the_quickstart_of_several_places_reads_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    places = ["resid_post.0", "resid_post.2"]
    sae = CrosscoderSAE(CrosscoderConfig(d_in=384, d_sae=32, k=4, hook_in=places, base_model="default_host"))
    sae.save_pretrained(tmp_path / "sae")
    save_card(tmp_path / "sae", sae)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(code_of((tmp_path / "sae" / README).read_text()), namespace)
    assert list(namespace["acts"]) == places
    assert set(namespace["code"].counts().tolist()) == {4}


def test_a_card_shows_what_each_place_costs():
    values = {"fvu": Metric(0.125), "delta_ce": Metric(0.5)}
    card = render_card(make_sae(), make_report(places={"resid_post.0": values, "resid_post.1": values}))
    assert "| `resid_post.0` | 0.125 | 0.5 |" in card
    assert "Each place" not in render_card(make_sae(), make_report())


def test_the_quickstart_names_repo_subfolder_and_revision():
    card = render_card(make_sae(base_revision="abc123"), repo_id="user/name", subfolder="layer_1")
    assert 'AutoSAE.from_pretrained("user/name", subfolder="layer_1")' in code_of(card)
    assert 'load_host("org/model", revision="abc123")' in code_of(card)
    compile(code_of(card), "card", "exec")


def test_hostile_text_is_text():
    example = {"feature": 3, "label": HOSTILE, "contexts": [{"tokens": ["a", HOSTILE, "b"], "activations": [0, 2, 1]}]}
    report = make_report(dataset={"name": HOSTILE}, notes=[HOSTILE])
    card = render_card(make_sae(), report, {"who": HOSTILE}, [example])
    body = card.split("---", 2)[2]
    assert "<img" not in body
    links = re.findall(r"\]\(([^)]*)\)", body)
    assert [
        link for link in links if not link.startswith(("https://huggingface.co/org/", "https://arxiv.org/", "./"))
    ] == []
    assert html.unescape(escape(HOSTILE)) == HOSTILE.replace("\n", "⏎")
    assert len([line for line in body.splitlines() if line.startswith("|") and line.count("|") > 5]) == 0


def test_a_strip_marks_its_strongest_token_even_if_it_is_negative():
    assert strip(["a", " b", "c"], [1.0, -3.0, 2.0]) == "<code>a<b> b</b>c</code>"
    assert strip([], []) == "<code></code>"
    assert "\u202e" not in strip(["a\u202eb"], [1.0])


def test_own_text_survives_and_the_rest_is_made_again(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    path = save_card(tmp_path, sae, make_report())
    text = path.read_text().replace("## Limits", "## Gone").replace("## Quickstart", "## Quickstart, mangled")
    text = text.replace("<!-- hf-sae:quickstart:start -->", "Why I made this.\n\n<!-- hf-sae:quickstart:start -->")
    text = text.replace("library_name: hf-sae", "license: mit\nlibrary_name: hf-sae\nbase_model: somebody/else")
    path.write_text(text + "\nMy own words.\n")
    save_card(tmp_path, sae, make_report(n_tokens=999))
    text = path.read_text()
    assert text.index("Why I made this.") < text.index("## Quickstart\n") < text.index("## Limits")
    assert text.rstrip().endswith("My own words.")
    assert "## Gone" not in text
    assert "mangled" not in text
    assert "999 tokens" in text
    assert (header_of(text)["license"], header_of(text)["base_model"]) == ("mit", "org/model")
    assert save_card(tmp_path, sae, make_report(n_tokens=999)).read_text() == text


def test_a_readme_written_by_hand_keeps_its_text_and_gets_a_header(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    assert is_generated(tmp_path / README)
    (tmp_path / README).write_text("---\nlicense: mit\ntags: [mine]\n---\n\n# Mine\n")
    assert not is_generated(tmp_path / README)
    text = save_card(tmp_path, sae, make_report()).read_text()
    assert text.split("---")[2].strip() == "# Mine"
    header = header_of(text)
    assert (header["license"], header["library_name"], header["tags"][-1]) == ("mit", "hf-sae", "mine")
    assert header["model-index"][0]["results"]
    assert "## Quickstart" in save_card(tmp_path, sae, overwrite=True).read_text()


def test_a_header_alone_is_no_text_of_the_readers(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    (tmp_path / README).write_text("---\nlicense: apache-2.0\n---\n")
    text = save_card(tmp_path, sae).read_text()
    assert header_of(text)["license"] == "apache-2.0"
    assert "## Quickstart" in text


def test_a_damaged_header_is_an_error_and_nothing_is_lost(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    (tmp_path / README).write_text("---\nlicense: [mit\n---\n# Mine\n")
    with pytest.raises(CheckpointError, match=r"header of README\.md is no YAML"):
        save_card(tmp_path, sae)
    assert (tmp_path / README).read_text() == "---\nlicense: [mit\n---\n# Mine\n"


def test_metadata_is_the_callers_and_stays(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    save_card(tmp_path, sae, metadata={"license": "mit", "language": ["en"]})
    header = header_of(save_card(tmp_path, sae).read_text())
    assert (header["license"], header["language"]) == ("mit", ["en"])


def test_figures_of_a_report_that_is_gone_leave_card_and_header(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    assert "model-index" in header_of(save_card(tmp_path, sae, make_report()).read_text())
    text = save_card(tmp_path, sae).read_text()
    assert "model-index" not in header_of(text)
    assert "## Evaluation" not in text
    assert not (tmp_path / "assets" / "l0_fvu.png").exists()


HISTORY = [{"step": i, "tokens": 100 * i, "loss": 1 / i, "fvu": 0.9 / i, "l0": 4.0} for i in (1, 2, 3)]


def test_a_card_shows_the_plots_that_there_are_figures_for(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    assert "## Plots" not in save_card(tmp_path, sae).read_text()
    assert not list(tmp_path.glob("assets/*"))
    sae.feature_stats = {"density": torch.full((32,), 0.01), "maximum": torch.ones(32)}
    text = save_card(tmp_path, sae, make_report(), history=HISTORY).read_text()
    shown = re.findall(r"!\[(.+)\]\(\./(assets/\w+\.png)\)", text)
    assert [Path(file).stem for _, file in shown] == ["training", "l0_fvu", "density"]
    assert all((tmp_path / file).is_file() for _, file in shown)
    assert "from 1 to 0.3333" in shown[0][0]
    assert (tmp_path / LOG).is_file()
    assert "## Plots" in save_card(tmp_path, sae).read_text(), "the log of training is kept beside the weights"


def test_figures_that_are_not_finite_are_no_json(tmp_path: Path):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    save_card(tmp_path, sae, history=[*HISTORY, {"step": 4, "tokens": 400, "loss": float("nan"), "fvu": float("inf")}])
    log = json.loads((tmp_path / LOG).read_text(), parse_constant=pytest.fail)
    assert log == [*HISTORY, {"step": 4, "tokens": 400}]


def test_training_again_takes_away_what_was_measured_before(tmp_path: Path):
    x = [torch.randn(64, 8) for _ in range(4)]
    sae = make_sae(base_model=None)
    sae.feature_stats = {"density": torch.full((32,), 0.01), "maximum": torch.ones(32)}
    sae.save_pretrained(tmp_path)
    save_card(tmp_path, sae, make_report(), examples=[])
    again = make_sae(base_model=None)
    SAETrainer(again, SAETrainingArguments(output_dir=str(tmp_path), total_tokens=256, tokens_per_batch=64), x).train()
    assert not (tmp_path / RESULTS).exists()
    assert not (tmp_path / "examples.json").exists()
    assert AutoSAE.from_pretrained(str(tmp_path)).feature_stats is None
    log = json.loads((tmp_path / LOG).read_text())
    assert (log[-1]["step"], log[-1]["tokens"]) == (4, 256)
    assert {"loss", "fvu", "l0", "dead_fraction"} <= log[-1].keys()


def test_a_card_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sae = make_sae()
    sae.save_pretrained(tmp_path)
    before = save_card(tmp_path, sae).read_text()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(EvalReport, "to_json", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_card(tmp_path, sae, make_report())
    assert (tmp_path / README).read_text() == before
    assert not list(tmp_path.glob(".saving-*"))
    AutoSAE.from_pretrained(str(tmp_path))


def test_push_refuses_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        push_folder(tmp_path, "user/name")


def one_latent_per_token(width: int = 128) -> tuple[TopKSAE, LlamaForCausalLM]:
    """A host whose embeddings are one-hot, and an autoencoder on them whose latent i fires on token i alone."""
    config = LlamaConfig(
        vocab_size=toy_text.FIRST_WORD + toy_text.WORDS, hidden_size=width, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    host = LlamaForCausalLM(config).eval()
    sae = TopKSAE(TopKConfig(d_in=width, d_sae=width, k=1, hook_in="embed")).eval()
    with torch.no_grad():
        host.get_input_embeddings().weight.zero_()[:width].copy_(torch.eye(width))
        sae.encoder.weight.copy_(torch.eye(width))
        sae.decoder.weight.copy_(torch.eye(width))
    return sae, host


def test_example_features_are_those_whose_contexts_agree():
    sae, host = one_latent_per_token()
    rng = random.Random(0)
    texts = [[rng.randrange(100) for _ in range(40)] for _ in range(60)]
    dataset = [toy_text.word(*numbers) for numbers in texts]
    options = {"n_features": 4, "n_tokens": 10_000, "context_length": 32, "progress": False}
    found = example_features(sae, host, toy_text.tokenizer(), dataset, **options)
    assert len(found) == 4
    for example in found:
        number = example["feature"] - toy_text.FIRST_WORD
        share = sum(numbers.count(number) for numbers in texts) / 2400
        assert example["label"].startswith(f"'w{number}' 100% of 10 peaks")
        assert example["density"] == pytest.approx(share, rel=0.05)
        for context in example["contexts"]:
            peak = max(range(len(context["tokens"])), key=lambda i: context["activations"][i])
            assert context["tokens"][peak].strip() == f"w{number}"
    assert [e["density"] for e in found] == sorted((e["density"] for e in found), reverse=True)
