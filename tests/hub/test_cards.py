"""Cards say what the config and the report say, run as they stand, and let no text act as markup; uploads keep them."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_sae.errors import CheckpointError
from hf_sae.evaluation import EvalReport, Metric
from hf_sae.hub import facts, push_folder, render_card, save_card
from hf_sae.hub.cards import KEPT, README, is_generated
from hf_sae.hub.markdown import escape, strip
from hf_sae.models import AutoSAE, StandardConfig, StandardSAE, TopKConfig, TopKSAE


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
        "controls": {"pca": {"fvu": Metric(0.5)}},
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
    assert re.search(r"\| `fvu` \| 0\.25 \| 0\.5 \|", card)
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
    assert "](" not in body
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
    path.write_text(path.read_text().replace("## Limits", "## Gone") + "\nMy own words.\n")
    save_card(tmp_path, sae, make_report(n_tokens=999))
    text = path.read_text()
    assert "My own words." in text.split(KEPT)[1]
    assert text.count(KEPT) == 1
    assert "## Gone" not in text
    assert "999 tokens" in text
    again = save_card(tmp_path, sae, make_report(n_tokens=999)).read_text()
    assert again == text


def test_a_readme_written_by_hand_is_recognised(tmp_path: Path):
    assert is_generated(tmp_path / README)
    (tmp_path / README).write_text("# Mine\n")
    assert not is_generated(tmp_path / README)


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
