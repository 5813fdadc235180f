"""The cards in `model_cards/` are what the code makes of the files beside them, and a reader's tools can read them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_sae.hub.cards import ASSETS, README, RESULTS
from model_cards.render import FOLDER, examples, render


EXAMPLES = examples()
ids = [folder.name for folder in EXAMPLES]


def test_there_are_cards_of_each_kind():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("folder", EXAMPLES, ids=ids)
def test_a_card_is_made_again_to_the_letter(folder: Path):
    text, plots = render(folder)
    assert (folder / README).read_text(encoding="utf-8") == text
    assert {path.name for path in (folder / ASSETS).iterdir()} == {plot.file for plot in plots}
    for plot in plots:
        kept = (folder / ASSETS / plot.file).read_bytes()
        assert Image.open(io.BytesIO(kept)).size == (960, 480)
        assert len(kept) < 200_000


@pytest.mark.parametrize("folder", EXAMPLES, ids=ids)
def test_the_hub_s_own_reader_finds_the_figures(folder: Path):
    card = ModelCard((folder / README).read_text(encoding="utf-8"))
    assert card.data.library_name == "hf-sae"
    assert card.data.license is not None or (folder / RESULTS).exists() is False
    if (folder / RESULTS).exists():
        found = {result.metric_type: result for result in card.data.eval_results or []}
        assert {"l0", "fvu", "delta_ce", "ce_recovered"} <= found.keys()
        args = found["fvu"].metric_args or {}
        assert args["ci95_low"] <= found["fvu"].metric_value <= args["ci95_high"]


@pytest.mark.parametrize("folder", EXAMPLES, ids=ids)
def test_what_a_card_links_to_is_there(folder: Path):
    text = (folder / README).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(\./([^)]+)\)", text):
        assert (folder / link).is_file()


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_500_000
