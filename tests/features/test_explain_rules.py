"""Labels by rules: latents whose rule is planted, and latents that follow none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_sae.features.explaining import NGramLabeller, detect, explain_features
from hf_sae.features.explaining.latent import Latent
from hf_sae.features.explaining.latents import Latents
from hf_sae.features.explaining.ngram import RuleDetector, _Search
from hf_sae.features.explaining.rules import Rule
from hf_sae.features.explaining.splitting import AFTER, BEFORE
from hf_sae.features.explaining.vocabulary import TokenSet, Vocabulary, listing, quoted
from hf_sae.features.explaining.windows import Windows
from tests.features.planted import WORDS, Fires, at_random, documents, opened, plant


def token(wanted: str, *before: str) -> Fires:
    def fires(tokens: Any, place: int) -> float:
        preceded = place >= len(before) and tuple(tokens[place - len(before) : place]) == before
        return 2.0 * (tokens[place] == wanted and preceded)

    return fires


def anything_after(before: str) -> Fires:
    return lambda tokens, place: float(place > 0 and tokens[place - 1] == before)


def one_of(*wanted: str) -> Fires:
    return lambda tokens, place: float(tokens[place] in wanted)


def before(wanted: str) -> Fires:
    return lambda tokens, place: float(place + 1 < len(tokens) and tokens[place + 1] == wanted)


def on_line_of(first: str) -> Fires:
    """On every later word of a line that starts with one."""

    def fires(tokens: Any, place: int) -> float:
        breaks = [at for at in range(place) if "\n" in tokens[at]]
        known = bool(breaks) and breaks[-1] + 1 < place and "\n" not in tokens[place]
        return float(known and tokens[breaks[-1] + 1] == first)

    return fires


def everywhere(tokens: Any, place: int) -> float:
    return 1.0 + (tokens[place] == "self")


PLANTED: dict[str, Fires] = {
    'the token " import"': token(" import"),
    'the token " os" after " import"': token(" os", " import"),
    'the token " x" after "self."': token(" x", "self", "."),
    'what comes after "self"': anything_after("self"),
    "a newline followed by 8 spaces": token("\n        "),
    "a number": one_of(" 1", "27", "3", " 45", "6", " 7"),
    'a token that ends with "ing"': one_of(" running", " walking", " talking", " sing", "king", " bring"),
    '" if" or " for"': one_of(" if", " for"),
    'what comes before " None", which it promotes': before(" None"),
}
MORE = [*WORDS, "3", " 45", "6", " 7", " talking", " sing", "king", " bring"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    latents = dict(enumerate(PLANTED.values()))
    promoted = {list(PLANTED).index('what comes before " None", which it promotes'): [" None"]}
    texts = documents(words=MORE, n=120)
    # two tokens before are rare in random text
    for number, text in enumerate(texts):
        text[30:33] = ["self", ".", " x"]
        text[45:48] = ["self", ".", MORE[number % len(MORE)]]
        text[60:62] = [" import", " os"]
        text[90 + number % 5 : 92 + number % 5] = [" import", " sys"]
    return plant(tmp_path_factory.mktemp("planted") / "d", latents, texts, promoted)


def latents_of(folder: Path, seed: int = 0) -> list[Latent]:
    latents = Latents(opened(folder), seed)
    return list(latents.of(set(latents.fired())))


@pytest.mark.parametrize("number", range(len(PLANTED)))
def test_a_planted_rule_is_found_and_scores_1(folder: Path, number: int):
    latent = latents_of(folder)[number]
    (label,) = NGramLabeller().label([latent])
    assert label is not None
    assert label.text.split(" (as in")[0] == list(PLANTED)[number]
    found = detect(label.detector, latent.held_out)
    assert found.score == 1.0
    assert found.low is not None
    assert 0.8 < found.low < 1.0, "twenty right answers do not prove that every one is"
    assert found.counterexamples == ()


def test_a_rule_about_the_line_is_found(tmp_path: Path):
    latent = latents_of(plant(tmp_path / "d", {0: on_line_of(" return")}, documents(words=[*WORDS, "\n"], n=200)))[0]
    (label,) = NGramLabeller().label([latent])
    assert label is not None
    assert label.text == 'words on a line that starts with " return"'
    assert (detect(label.detector, latent.held_out).score or 0) > 0.8, "a window may begin within the line"


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_random_firing_gets_no_rule_and_scores_chance(tmp_path: Path, share: float):
    folder = plant(tmp_path / "d", {number: at_random(share, number) for number in range(20)}, documents(n=100))
    labels, scores, covered = [], [], 0
    for latent in latents_of(folder):
        (label,) = NGramLabeller().label([latent])
        assert label is not None
        labels.append(label.text)
        found = detect(label.detector, latent.held_out)
        assert found.score is not None
        scores.append(found.score)
        covered += found.low <= 0.5 <= found.high  # ty: ignore[unsupported-operator]
    assert all(text.startswith("no clear rule") for text in labels)
    assert abs(np.mean(scores) - 0.5) < 0.05
    assert covered >= 18, "a 95 % interval may miss 1 of 20"


def test_a_latent_that_fires_on_most_tokens_is_called_that(tmp_path: Path):
    (latent,) = latents_of(plant(tmp_path / "d", {0: everywhere}))
    (label,) = NGramLabeller().label([latent])
    assert label is not None
    assert label.text == "fires on most tokens (100%)"
    found = detect(label.detector, latent.held_out)
    assert (found.score, found.reason) == (None, "fewer than 4 silent contexts in other documents")


def test_no_document_is_on_both_sides(folder: Path):
    for latent in latents_of(folder):
        tested = {*latent.held_out.firing.documents.tolist(), *latent.held_out.silent.documents.tolist()}
        assert not tested & set(latent.seen.documents.tolist())
        assert latent.seen.fires.sum() >= len(latent.held_out.firing) - 1
        assert latent.held_out.firing.fires.all()
        assert not latent.held_out.silent.fires.any()
        assert not latent.held_out.silent.acts.any(), "verified: no token of a silent context fires"


def test_a_label_does_not_depend_on_what_it_is_tested_on(folder: Path):
    """Held-out contexts, and background of their documents, become full of the very token; the label and its fit stay."""
    latent = latents_of(folder)[0]
    held, background = latent.held_out, latent.background.windows
    there = np.isin(background.documents, held.documents)
    assert 0.2 < there.mean() < 0.9
    before = _Search(latent).best()
    wanted = int(latent.firing.numbers[0, latent.firing.peaks[0]])
    for windows, rows in ((held.firing, slice(None)), (held.silent, slice(None)), (background, there)):
        windows.numbers[rows] = wanted
    after = _Search(latent).best()
    assert (after.rule.text, after.fit) == (before.rule.text, before.fit)
    assert after.rule.text == 'the token " import"'


def test_the_line_of_a_token_is_known_only_where_its_beginning_is_seen():
    texts = ["a", "b", "\n", " ", "c"]
    vocabulary = Vocabulary(np.arange(5), texts)
    rows = np.array([[1, 2, 3, 4, 5, 1, 2, 3, 2, 1, 0]])
    nothing = np.zeros_like(rows)
    windows = Windows(vocabulary, rows, nothing, nothing > 0, rows[:, 0], rows[:, 0] > 0, rows[:, 0])
    # a b ⏎ _ c a b ⏎ b a: after the first break the line starts with c, after the second with b
    assert windows.line_starts.tolist() == [[0, 0, 0, 0, 0, 5, 5, 5, 0, 2, 2]]


def test_hard_negatives_have_the_token_and_silence(tmp_path: Path):
    """It fires on " os" after " import" only: an " os" elsewhere is a hard one, and it is cut as its pair is."""
    texts = documents(n=80, words=[word for word in WORDS if word not in (" import", " os")])
    for text in texts:
        text[50:52], text[45] = [" import", " os"], " os"
        text[80:82] = [" import", " sys"]
    # the contexts in which others are silent are the background
    others = {number: at_random(0.01, number) for number in range(1, 6)}
    latent = latents_of(plant(tmp_path / "d", {0: token(" os", " import"), **others}, texts))[0]
    held = latent.held_out
    assert held.n_hard == len(held.firing) // 2, "every context has one, and half of them may be used"
    hard = held.silent.take(slice(len(held.silent) - held.n_hard, None))
    pairs = held.firing.take(slice(len(held.firing) - held.n_hard, None))
    assert all(hard.texts(row)[BEFORE] == pairs.texts(row)[BEFORE] == " os" for row in range(held.n_hard))
    assert all(len(one.texts(row)) == BEFORE + AFTER + 1 for one in (hard, pairs) for row in range(held.n_hard))
    assert not hard.acts.any()
    (label,) = NGramLabeller().label([latent])
    assert label is not None
    found = detect(label.detector, held)
    assert label.text.startswith('the token " os" after " import"')
    assert (found.score, found.hard) == (1.0, held.n_hard)
    assert "of them with the same token" in found.method
    too_wide = detect(RuleDetector(Rule(here=latent.seen.vocabulary.one(latent.firing.numbers[0, 12]))), held)
    fooled = [row for row in range(len(held.silent)) if " os" in held.silent.texts(row)]
    assert too_wide.score == (1 + 1 - len(fooled) / len(held.silent)) / 2
    assert len(fooled) >= held.n_hard, "a rule that forgets what stands before it falls for every hard one"
    assert too_wide.counterexamples == tuple(held.silent.text(row) for row in fooled[:3])


def test_equal_seeds_give_equal_labels_and_scores(folder: Path, tmp_path: Path):
    results = []
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / name)
        report = explain_features(tmp_path / name, progress=False).to_dict()
        results.append((report["labels"], report["control"]))
    assert results[0] == results[1]


def test_tokens_read_as_people_write_them():
    assert quoted(" import") == '" import"'
    assert quoted('"""') == '\'"""\''
    assert quoted("\n") == "a newline"
    assert quoted("\n        ") == "a newline followed by 8 spaces"
    assert quoted("\t") == "a tab"
    assert quoted("\x1b[31m") == '"\\x1b[31m"', "nothing acts on a terminal"
    assert len(quoted("x" * 500)) < 50
    assert listing(["\n    ", "\n  ", "\n        "]) == "a newline followed by 2, 4 or 8 spaces"
    assert listing([" if", "if", "elif"]) == '"if" or "elif"'
    assert listing(["a", " "]) == '"a" or a space'


def test_docstring_quotes_are_called_what_people_search_for():
    def rule(text: str) -> Rule:
        return Rule(TokenSet(f"the token {text!r}", np.zeros(1, bool), (text,)))

    assert rule(' """').text.endswith(" (docstring quotes)")
    assert rule("'''").text.endswith(" (docstring quotes)")
    assert "docstring" not in rule('""').text


def test_a_rule_never_means_special_or_absent_tokens(folder: Path):
    latent = latents_of(folder)[0]
    windows = latent.seen
    everything = Rule()
    assert (everything.matches(windows) == (windows.numbers != 0)).all()
    windows.special[:, 0] = True
    fresh = windows.take(slice(None))
    assert not everything.matches(fresh)[:, 0].any()


def test_numbers_of_a_vocabulary_find_their_texts():
    vocabulary = Vocabulary(np.array([70, 3, 12]), ["x", "y", "z"])
    assert [vocabulary.texts[number] for number in vocabulary.numbers(np.array([3, 12, 70]))] == ["y", "z", "x"]
