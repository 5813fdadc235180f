"""Words of scripts without spaces are found inside a longer run, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sae.features.index import FeatureIndex
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.search.embedders import WordsOnly
from hf_sae.features.search.scripts import cut, joined
from hf_sae.features.writing import FeatureWriter
from tests.features.toy_features import SAES, example, explanation, feature


LABELS = {
    0: "私は東京都に住んでいます",
    1: "東西京と北海道",
    2: "ฉันกินข้าวที่บ้าน",
    3: "กัน",
    4: "서울에서 만나요",
    5: "हिन्दी भाषा",
    6: "Tokyo東京Tower café",
}
CONTEXT = "我们在北京大学学习中文"


@pytest.fixture
def index(tmp_path: Path) -> Any:
    with FeatureWriter(tmp_path / "d", SAES) as writer:
        writer.append(
            "features", [feature(index=i, text="", pos_tokens=[], pos_token_ids=[], pos_logits=[]) for i in range(8)]
        )
        writer.append("examples", [example(index=7, text=CONTEXT)])
        writer.append("explanations", [explanation(index=i, text=text) for i, text in LABELS.items()])
    with FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), tmp_path / "c", WordsOnly()) as index:
        yield index


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("東京", {0, 6}),
        ("京都", {0}),
        ("京", {0, 1, 6, 7}),
        ("住んで", {0}),
        ("北海道", {1}),
        ("กิน", {2}),
        ("กัน", {3}),
        ("ข้าว", {2}),
        ("서울", {4}),
        ("हिन्दी", {5}),
        ("भाष", set()),
        ("北京大学", {7}),
        ("北大", set()),
        ("tower", {6}),
        ("東京 tower", {0, 6}),
        ("cafe", {6}),
    ],
)
def test_a_word_inside_a_run_is_found_and_no_other(index: FeatureIndex, query: str, expected: set[int]):
    assert {hit.feature for hit in index.search(query)} == expected


def test_what_is_shown_is_the_text_itself(index: FeatureIndex):
    hit = next(hit for hit in index.search("東京") if hit.feature == 0)
    (reason,) = hit.reasons
    assert reason.snippet == LABELS[0]
    assert [reason.snippet[a:b] for a, b in reason.spans] == ["東京"]
    (hit,) = index.search("北京大学")
    assert hit.reasons[0].snippet == CONTEXT
    assert [hit.reasons[0].snippet[a:b] for a, b in hit.reasons[0].spans] == ["北京大学"]


def test_cutting_changes_nothing_else():
    assert cut("plain text, été, हिन्दी") == "plain text, été, हिन्दी"
    for text in [*LABELS.values(), CONTEXT]:
        assert joined(cut(text)) == text
