"""`explain_features` and `hf-sae explain`: what is written, what stays, what a crash leaves, what is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_sae.cli import main
from hf_sae.errors import ConfigError, DataError
from hf_sae.features import writing
from hf_sae.features.copying import copy_dataset
from hf_sae.features.explaining import (
    Label,
    NGramLabeller,
    ScriptedJudge,
    balanced_accuracy,
    explain_features,
)
from hf_sae.features.explaining import explain as explaining
from hf_sae.features.explaining.choosing import chosen, most_active, parse_features
from hf_sae.features.explaining.detection import wilson
from hf_sae.features.index import FeatureIndex
from hf_sae.features.search.embedders import HashingEmbedder
from hf_sae.terminal import columns
from tests.features.planted import WORDS, Fires, at_random, documents, opened, plant
from tests.features.toy_features import ROWS, write


HOSTILE = " <img src=x onerror=alert(1)>\x1b[31m"
TIMES = ("created",)
CHI2 = 3.841458820694124  # the 95 % point with one degree of freedom


def on(word: str) -> Fires:
    return lambda tokens, place: float(tokens[place] == word)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    latents = {0: on(" import"), 1: on(" class"), 2: at_random(0.01), 4: on("never"), 5: on(HOSTILE), 6: on(" def")}
    texts = documents(words=[*WORDS, HOSTILE])
    return plant(tmp_path_factory.mktemp("planted") / "d", latents, texts)


@pytest.fixture
def folder(planted: Path, tmp_path: Path) -> Path:
    shutil.copytree(planted, tmp_path / "d")
    return tmp_path / "d"


def labels(folder: Path) -> list[dict[str, Any]]:
    return list(opened(folder).explanations)


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_labels_scores_and_vectors_are_written_and_found(folder: Path, tmp_path: Path):
    before = files(folder)
    report = explain_features(folder, progress=False)
    dataset = opened(folder)
    dataset.validate()
    row = dataset.feature("sae", 0).explanations[0]
    assert (row["text"], row["method"], row["number"], row["model"]) == ('the token " import"', "n-gram rule", 0, None)
    assert (row["score"], row["score_chance"], row["score_failed"]) == (1.0, 0.5, 0)
    assert 0.5 < row["score_low"] < row["score_high"] == 1.0
    assert row["score_method"].startswith("balanced accuracy of detection on 20 firing and ")
    assert [one.feature for one in report.labelled] == [0, 1, 2, 5, 6]
    assert (report.silent, report.known) == (3, 0), "3, 4 and 7 never fired"
    vectors = list(dataset.embeddings)
    assert [(v["feature"], v["source"], v["text"]) for v in vectors] == [
        (row["feature"], "explanation", row["text"]) for row in labels(folder)
    ]
    np.testing.assert_allclose(vectors[0]["vector"], HashingEmbedder().embed([row["text"]])[0], atol=1e-6)
    with FeatureIndex.open(dataset, tmp_path / "cache") as index:
        hit = index.search("import")[0]
        assert (hit.feature, hit.label, hit.label_score) == (0, 'the token " import"', 1.0)
        assert "label" in {reason.kind for reason in hit.reasons}
    kept = {name: content for name, content in before.items() if "examples" in name or "features-" in name}
    assert kept.items() <= files(folder).items(), "the other tables are as they were"
    assert not list(tmp_path.glob(".d-*"))


def test_labels_of_other_features_score_chance(folder: Path):
    report = explain_features(folder, progress=False)
    assert len(report.control) == 4
    assert abs(np.mean(report.control) - 0.5) < 0.15


def test_a_second_run_makes_nothing_twice(folder: Path):
    explain_features(folder, features=[0, 1], progress=False)
    first = labels(folder)
    report = explain_features(folder, progress=False)
    assert (report.known, [one.feature for one in report.labelled]) == (2, [2, 5, 6])
    assert labels(folder)[:2] == first, "not even their time"
    before = files(folder)
    assert explain_features(folder, progress=False).labelled == []
    assert files(folder) == before


class Fixed:
    """Gives every latent the same label."""

    method, model, revision, prompt, batch_size = "by hand", "somebody", None, None, 4

    def label(self, latents: Any) -> list[Label | None]:
        return [Label(f"label of {latent.feature}", None) for latent in latents]


def test_other_labels_stay_and_numbers_go_on(folder: Path):
    explain_features(folder, Fixed(), features=[0, 1], progress=False)
    explain_features(folder, features=[0], progress=False)
    explain_features(folder, judge=ScriptedJudge(lambda messages: "a judge's"), features=[0], progress=False)
    rows = opened(folder).feature("sae", 0).explanations
    assert [(row["number"], row["text"]) for row in rows] == [
        (0, "label of 0"), (1, 'the token " import"'), (2, "a judge's"),
    ]  # fmt: skip
    assert (rows[0]["score"], rows[0]["score_method"][:34]) == (None, "not scored: nothing to predict with")[
        :2
    ] or rows
    assert rows[0]["score_chance"] is None
    stale = explain_features(folder, features=[0], overwrite=True, progress=False)
    assert [one.feature for one in stale.labelled] == [0]
    rows = opened(folder).feature("sae", 0).explanations
    assert [(row["number"], row["method"]) for row in rows] == [(0, "by hand"), (2, "judge"), (3, "n-gram rule")]
    vectors = [(v["feature"], v["number"]) for v in opened(folder).embeddings]
    assert vectors == [(0, 0), (0, 2), (0, 3), (1, 0)]
    opened(folder).validate()


def test_a_crash_leaves_the_old_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch):
    explain_features(folder, features=[0], progress=False)
    before = files(folder)

    class Breaks(NGramLabeller):
        batch_size = 1

        def label(self, latents: Any) -> list[Label | None]:
            if latents[0].feature == 5:
                raise RuntimeError("power cut")
            return super().label(latents)

    with pytest.raises(RuntimeError):
        explain_features(folder, Breaks(), progress=False)
    assert files(folder) == before
    append = writing._Sink.append

    def full(self: Any, rows: Any) -> None:
        if self.table.name == "embeddings":
            raise OSError("no space left on device")
        append(self, rows)

    monkeypatch.setattr(writing._Sink, "append", full)
    with pytest.raises(DataError, match="no space left"):
        explain_features(folder, progress=False)
    assert files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["d"]


def test_what_was_saved_before_a_crash_is_not_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(explaining, "_SAVE_EVERY", -1.0)

    class Breaks(NGramLabeller):
        batch_size = 1

        def label(self, latents: Any) -> list[Label | None]:
            if latents[0].feature == 5:
                raise RuntimeError("power cut")
            return super().label(latents)

    with pytest.raises(RuntimeError):
        explain_features(folder, Breaks(), progress=False)
    assert [row["feature"] for row in labels(folder)] == [0, 1, 2]
    report = explain_features(folder, progress=False)
    assert (report.known, [one.feature for one in report.labelled]) == (3, [5, 6])
    whole = folder.parent / "whole"
    shutil.copytree(folder, whole)
    explain_features(whole, overwrite=True, progress=False)
    assert untimed(labels(whole)) == untimed(labels(folder))


def test_vectors_by_another_model_are_not_mixed(tmp_path: Path):
    folder = write(tmp_path / "d", ROWS)
    before = files(folder)
    with pytest.raises(DataError, match="pass that model as embedder="):
        explain_features(folder, progress=False)
    assert files(folder) == before


def test_a_dataset_without_contexts_is_refused(tmp_path: Path):
    folder = write(tmp_path / "d", {"features": ROWS["features"]})
    with pytest.raises(DataError, match="hf-sae features"):
        explain_features(folder, embedder=None, progress=False)


def test_text_of_tokens_is_shown_and_not_acted_on(folder: Path):
    explain_features(folder, features=[5], progress=False)
    (row,) = labels(folder)
    assert row["text"] == 'the token " <img src=x onerror=alert(1)>\\x1b[31m"'


@pytest.mark.parametrize(
    ("text", "numbers"), [("7", [7]), ("0-3", [0, 1, 2, 3]), ("2,0-1, 9", [2, 0, 1, 9]), ("3-3,3", [3])]
)
def test_ranges_are_read(text: str, numbers: list[int]):
    assert parse_features(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1;2", str(2**31)])
def test_ranges_that_are_none_are_refused(text: str):
    with pytest.raises(ConfigError, match="0-99,205"):
        parse_features(text)


def test_which_latents_are_chosen():
    fired, widths = {("a", 0): 0.1, ("a", 1): 0.3, ("b", 0): 0.2}, {"b": 1, "a": 3}
    assert chosen(fired, widths) == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert chosen(fired, widths, "a", [2, 0, 2]) == [("a", 0), ("a", 2)]
    assert chosen(fired, widths, None, [0]) == [("a", 0), ("b", 0)]
    assert most_active(fired, fired, 2) == [("a", 1), ("b", 0)]
    with pytest.raises(ConfigError, match="0 to 2"):
        chosen(fired, widths, None, [3])
    with pytest.raises(ConfigError, match="'b', 'a'"):
        chosen(fired, widths, "c")


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(10, 10, 10 / (10 + CHI2), 1.0), (0, 10, 0.0, CHI2 / (10 + CHI2)), (8, 10, 0.4901625, 0.9433178)],
)
def test_wilson_intervals_are_those_of_the_tables(right: int, n: int, low: float, high: float):
    np.testing.assert_allclose(wilson(right, n), (right / n, low, high), atol=1e-6)


def test_balanced_accuracy_is_the_mean_of_two_shares_and_covers():
    assert balanced_accuracy(10, 10, 0, 40)[0] == 0.5, "always yes, whatever the shares of the sides"
    score, low, high = balanced_accuracy(10, 10, 10, 10)
    np.testing.assert_allclose((score, low, high), (1.0, 1 - CHI2 / (10 + CHI2) / np.sqrt(2), 1.0), atol=1e-6)
    rng, a, b, covered = np.random.default_rng(0), 0.9, 0.6, 0
    for _ in range(2000):
        _, low, high = balanced_accuracy(rng.binomial(20, a), 20, rng.binomial(12, b), 12)
        covered += low <= (a + b) / 2 <= high
    assert 0.93 < covered / 2000 < 0.985


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["explain", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_the_command_shows_labels_scores_and_chance(run: Any, folder: Path):
    code, out, _ = run(folder)
    lines = out.splitlines()
    assert code == 0
    assert max(columns(line) for line in lines[:-1]) <= 80
    assert lines[0].split() == ["feature", "score", "95", "%", "interval", "contexts", "label"]
    assert lines[1].split()[:2] == ["0", "1.00"]
    assert lines[1].endswith('the token " import"')
    folded = " ".join(out.split())
    assert "Labelled 5 features by n-gram rule. 3 never fired." in folded
    assert "chance is 0.5" in folded
    assert "\x1b" not in out
    assert lines[-1] == f'Next: hf-sae search {folder} "words of a label"'


def test_the_command_as_json(run: Any, folder: Path):
    code, out, err = run(folder, "--features", "0-1", "--json")
    payload = json.loads(out)
    assert (code, out.count("\n")) == (0, 1)
    assert [label["label"] for label in payload["labels"]] == ['the token " import"', 'the token " class"']
    assert (payload["chance"], payload["scored"], payload["mean_score"]) == (0.5, 2, 1.0)
    assert "the token" in err
    again = json.loads(run(folder, "--n-features", "1", "--json")[1])
    assert len(again["labels"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "gpt"], "write none, local:MODEL or hf:MODEL"),
        (["--judge", "hf:"], "write none, local:MODEL or hf:MODEL"),
        (["--judge", "local:nobody/nothing"], "nobody/nothing"),
        (["--judge-url", "http://127.0.0.1:1"], "go with --judge hf:MODEL"),
        (["--judge", "hf:m", "--judge-url", "ftp://x"], "http(s)"),
        (["--features", "9-1"], "0-99,205"),
        (["--features", "99"], "there is no feature 99"),
        (["--sae-id", "sea"], "'sae'"),
        (["--output-dir", "x"], "is a folder: leave it out"),
    ],
)
def test_mistakes_are_explained_and_change_nothing(run: Any, folder: Path, arguments: list[str], message: str):
    before = files(folder)
    code, out, err = run(folder, *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert files(folder) == before


def test_a_dataset_of_the_hub_needs_a_folder(run: Any):
    code, _, err = run("user/dashboards")
    assert code == 2
    assert "add --output-dir FOLDER" in " ".join(err.split())


def test_before_spending_the_command_asks(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda text, **_: told.append(text) or False)
    before = files(folder)
    options = ["--judge", "hf:m", "--judge-url", "http://127.0.0.1:9", "--price-in", "0.5", "--price-out", "2"]
    code, _, err = run(folder, *options)
    assert (code, told) == (2, ["Go on?"])
    assert "tokens to read" in " ".join(err.split())
    assert "nothing spent" in " ".join(err.split())
    assert files(folder) == before


def test_a_copy_has_the_same_rows_and_never_overwrites(folder: Path, tmp_path: Path):
    copy = copy_dataset(opened(folder), tmp_path / "copy")
    assert list(copy.examples) == list(opened(folder).examples)
    copy.validate()
    with pytest.raises(DataError, match="holds something already"):
        copy_dataset(opened(folder), tmp_path / "copy")
