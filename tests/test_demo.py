"""The demo: what it leaves behind, and the rules by which it chooses what to show."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_sae import AutoSAE, TopKConfig, TopKSAE, default_host
from hf_sae.cli import main
from hf_sae.corpus import stdlib_files
from hf_sae.demo import DemoResult, DemoSettings, excerpts, run_demo
from hf_sae.demo.showcase import feature_lines, largest_effect
from hf_sae.errors import ConfigError
from hf_sae.features import Example, LatentExamples
from hf_sae.features.choice import Consistent, choose_features, consistent_features
from hf_sae.steering import OfMax, add, steer
from hf_sae.steering.recipes import load_presets


TINY = DemoSettings(
    d_sae=128,
    k=8,
    total_tokens=8192,
    ring_bytes=2**22,
    eval_characters=300,
    example_characters=600,
    label_characters=800,
    n_features=4,
    n_candidates=6,
    new_tokens=6,
    least_consistency=0.0,
)


def make_feature(latent: int, peaks: list[str], before: str = "x", density: float = 1e-3, documents: int = 9) -> Any:
    examples = [
        Example(
            [before if i % 2 else f"{before}{i}", peak, "z"], [1, 2, 3], [0.0, 2.0, 0.0], 1, i % documents, frozenset()
        )
        for i, peak in enumerate(peaks)
    ]
    return LatentExamples(latent, examples, density, 2.0, 1000)


class TestRules:
    def test_consistency_counts_the_commonest_token_at_or_before_the_peak(self):
        features = {
            0: make_feature(0, ["a", " A", "a", "a", "b"]),
            1: make_feature(1, ["p", "q", "r", "s", "t"]),
            2: make_feature(2, ["a"] * 5),
        }
        ranked = consistent_features(features, 1e-4, 1e-2)  # ty: ignore[invalid-argument-type]
        assert [(c.examples.latent, c.token, c.before, c.share) for c in ranked] == [
            (2, "a", False, 1.0),
            (0, "a", False, 0.8),
            (1, "x", True, 0.4),
        ]

    def test_rare_frequent_and_one_file_features_are_left_out(self):
        features = {
            0: make_feature(0, ["a"] * 5, density=1e-5),
            1: make_feature(1, ["a"] * 5, density=0.1),
            2: make_feature(2, ["a"] * 4),
            3: make_feature(3, ["a"] * 5, documents=2),
            4: make_feature(4, [" "] * 5, before=" "),
        }
        assert consistent_features(features, 1e-4, 1e-2) == []  # ty: ignore[invalid-argument-type]

    def test_chosen_features_differ_in_token_and_spread_over_density(self):
        ranked = [
            Consistent(make_feature(i, ["a"] * 5, density=10 ** (-2 - i / 20)), f"t{i // 2}", False, 1.0)
            for i in range(40)
        ]
        chosen = choose_features(ranked, 3)
        assert [found.latent for found in chosen] == [0, 20, 38]
        assert [found.latent for found in choose_features(ranked[:2], 3)] == [0]
        assert choose_features([], 3) == []

    def test_excerpts_have_a_stretch_of_every_held_out_file(self):
        files = [text for _, text in stdlib_files("test")]
        made = excerpts(500, seed=1)["text"]
        assert len(made) == len(files)
        assert all(piece in text and 0 < len(piece) <= 500 for piece, text in zip(made, files, strict=True))
        assert excerpts(500, seed=1)["text"] == made != excerpts(500, seed=2)["text"]

    def test_the_largest_effect_is_the_one_that_brute_force_finds(self):
        host, tokenizer = default_host()
        torch.manual_seed(0)
        sae = TopKSAE(TopKConfig(d_in=192, d_sae=16, k=2, hook_in="resid_post.1")).eval()
        sae.feature_stats = {"density": torch.full((16,), 0.1), "maximum": torch.full((16,), 20.0)}
        features = [make_feature(latent, ["a"] * 5) for latent in (3, 5, 8)]
        text, limit = "import os\nclass Thing:\n    def run(self):", 0.6
        effect = largest_effect(sae, host, tokenizer, features, text, (0.5, 1.0), limit)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        words = [i for i in range(len(tokenizer)) if re.fullmatch(r"\s?[A-Za-z]{3,}", tokenizer.decode([i]))]
        best = None
        with torch.no_grad():
            clean = host(input_ids=ids).logits[0, 1:]
            for latent in (3, 5, 8):
                for strength in (0.5, 1.0):
                    with steer(host, sae, add({latent: OfMax(strength)})):
                        steered = host(input_ids=ids).logits[0, 1:]
                    kl = F.kl_div(steered.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none")
                    rise = (steered.softmax(-1) - clean.softmax(-1)).mean(0)[words]
                    found = (rise.max().item(), latent, strength, words[int(rise.argmax())], kl.sum(-1).mean().item())
                    if found[-1] <= limit and (best is None or found > best):
                        best = found
        assert effect is not None
        assert best is not None
        assert (effect.examples.latent, effect.strength, effect.token) == (
            best[1],
            best[2],
            tokenizer.decode([best[3]]),
        )
        assert effect.after - effect.before == pytest.approx(best[0], rel=1e-3)
        assert effect.kl == pytest.approx(best[4], rel=1e-3)
        assert largest_effect(sae, host, tokenizer, features, text, (1.0,), -1.0) is None

    def test_lines_fit_the_terminal(self):
        text = feature_lines(make_feature(3, ["word" * 6] * 5), 2, 40)
        assert max(map(len, text.splitlines()[1:])) <= 40
        assert text.startswith("    3  'wordword")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "out", TINY)


class TestRun:
    def test_the_summary_has_what_the_command_promises(self, demo: DemoResult):
        payload = demo.payload
        assert payload["tokens"] == TINY.total_tokens
        assert payload["l0"] == TINY.k
        assert 0 < payload["fvu"] < 1
        assert {"ce_recovered", "ce_recovered_mean", "delta_ce", "dead_fraction", "seconds"} <= payload.keys()
        assert payload["controls"].keys() == {"pca", "random"}
        assert payload["controls"]["pca"]["l0"] == payload["controls"]["random"]["l0"] == TINY.k
        assert payload["fvu"] < payload["controls"]["random"]["fvu"]
        json.dumps(payload, allow_nan=False)

    def test_it_measures_every_held_out_file_with_a_baseline_fitted_on_training_text(self, demo: DemoResult):
        assert demo.report.n_documents == len(stdlib_files("test"))
        assert not any("flatters" in note for note in demo.report.notes)

    def test_the_folder_loads_and_its_card_runs(self, demo: DemoResult, monkeypatch: pytest.MonkeyPatch):
        sae = AutoSAE.from_pretrained(str(demo.output))
        assert sae.config.d_sae == TINY.d_sae
        assert sae.feature_stats is not None
        card = (demo.output / "README.md").read_text()
        assert str(demo.output.parent) not in card
        assert all(f"**Feature {found.latent}**" in card for found in demo.features)
        assert {"eval_results.json", "examples.json"} <= {path.name for path in demo.output.iterdir()}
        monkeypatch.chdir(demo.output.parent)
        exec(re.findall(r"```python\n(.+?)```", card, re.S)[0], {})

    def test_shown_features_keep_to_the_bounds(self, demo: DemoResult):
        assert 0 < len(demo.features) <= TINY.n_features
        assert all(TINY.least_density <= found.density <= TINY.most_density for found in demo.features)
        if demo.effect is not None:
            assert demo.effect.examples in demo.features
            assert demo.effect.kl <= TINY.most_kl
            assert set(demo.texts) == {"baseline", "steered"}

    def test_every_feature_lies_labelled_beside_it_where_the_page_looks_for_it(self, demo: DemoResult):
        from hf_sae.space.sources import Given

        found = Given(str(demo.output)).features()
        assert found is not None
        assert found.dataset.manifest.rows("features") == TINY.d_sae
        firing = [row for rows in found.dataset.batches("features") for row in rows["density"].to_pylist() if row]
        labels = found.dataset.explanations
        assert len(labels) == demo.payload["labels"]["labelled"]
        assert 0.5 * len(firing) < len(labels) <= len(firing)
        assert set(found.dataset.examples["doc_name"]) <= {path for path, _ in stdlib_files("test")}

    def test_the_preset_is_the_edit_that_it_found(self, demo: DemoResult):
        presets = load_presets(demo.output)
        if demo.effect is None:
            assert presets == []
        else:
            (preset,) = presets
            edit = add({demo.effect.examples.latent: OfMax(demo.effect.strength)})
            assert [row.edit() for row in preset.rows] == [edit]
            assert preset.prompt == TINY.prompt

    def test_a_folder_with_a_readme_of_its_own_is_left_alone(self, tmp_path: Path):
        (tmp_path / "README.md").write_text("# Mine")
        with pytest.raises(ConfigError, match="README of its own"):
            run_demo(tmp_path, TINY)
        assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_command_prints_one_json_object_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("hf_sae.demo.DemoSettings", lambda seed: dataclasses.replace(TINY, seed=seed))
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--no-launch", "--json", "--output", str(tmp_path / "out"), "--total-tokens", "4096"])
    out, err = capsys.readouterr()
    assert not caught.value.code
    payload = json.loads(out)
    assert payload["tokens"] == 4096
    assert payload["output"] == str(tmp_path / "out")
    assert "ce_recovered" in err
    bars = re.findall(r"activations: .*?(\d+)/(\d+) \[", err)  # of the evaluation and of the harvest
    ends = {total for done, total in bars if done == total}
    assert len(ends) == 2
    assert ends == {total for _, total in bars}, "each counts to the end of what there is"
    assert "\x1b" not in err


def test_the_page_is_opened_where_gradio_is_there_and_named_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    opened = []
    monkeypatch.setattr("hf_sae.demo.DemoSettings", lambda seed: TINY)
    monkeypatch.setattr("hf_sae.demo.run_demo", lambda output, settings, say: _Ready(output))
    monkeypatch.setattr("hf_sae.space.serve.serve", lambda settings, **options: opened.append((settings, options)))
    for there, options in ((True, []), (True, ["--no-launch"]), (False, [])):
        monkeypatch.setattr("hf_sae.commands.demo.has_gradio", lambda there=there: there)
        with pytest.raises(SystemExit):
            main(["demo", "--output", str(tmp_path / "out"), *options])
    ((settings, how),) = opened
    assert (settings.repo, how) == (str(tmp_path / "out"), {"inbrowser": True})
    said = capsys.readouterr().out
    assert said.count("hf-sae space open") == 2
    assert said.count("pip install 'hf-sae[space]'") == 1


class _Ready:
    """What a run of the demo gives, without the run."""

    features, effect, texts, seconds, payload = (), None, {}, {}, {"seconds": 1.0}

    def __init__(self, output: Path) -> None:
        self.output = output

    @property
    def report(self) -> Any:
        return type("Report", (), {"to_table": lambda self: "table"})()

    @property
    def labels(self) -> Any:
        facts = {"labelled": 3, "mean_score": None, "control": None, "chance": 0.5}
        return type("Labels", (), {"to_dict": lambda self: facts})()
