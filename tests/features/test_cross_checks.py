"""Tables that do not fit each other are refused, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sae.errors import DataError
from hf_sae.features.reading import FeatureDataset

from . import toy_features
from .toy_features import ROWS, embedding, example, explanation, feature


def written(folder: Path, **tables: list[dict[str, Any]]) -> FeatureDataset:
    toy_features.write(folder, ROWS | tables)
    return FeatureDataset.open(folder)


def test_a_dataset_whose_tables_fit_passes(tmp_path: Path):
    written(tmp_path / "d").validate()
    negative = example(index=3, acts=[0.0] * 6 + [-6.5] + [0.25] * 4)
    written(
        tmp_path / "n", features=[feature(index=3, max_act=-6.5)], examples=[negative], explanations=[], embeddings=[]
    ).validate()


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("examples", example("layer_2", 4)),
        ("explanations", explanation("layer_2", 4)),
        ("embeddings", embedding("layer_2", 4)),
    ],
)
def test_a_row_about_a_feature_that_is_not_there_is_refused(tmp_path: Path, table: str, row: dict[str, Any]):
    rows = [given for given in ROWS[table] if given["sae_id"] == "layer_1"]
    with pytest.raises(
        DataError, match=f"{table}.*about feature 4 of 'layer_2', which the table 'features' does not have"
    ):
        written(tmp_path / "d", **{table: [*rows, row]}).validate()


@pytest.mark.parametrize("strongest", [6.501, -6.501])
def test_a_context_above_the_maximum_is_refused(tmp_path: Path, strongest: float):
    row = example(index=3, acts=[0.0] * 6 + [strongest] + [0.25] * 4)
    with pytest.raises(DataError, match=r"activation of 6.501, and its max_act in 'features' is 6.5.*Harvest again"):
        written(tmp_path / "d", examples=[row]).validate()
