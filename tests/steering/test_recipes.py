from __future__ import annotations

import json

import pytest

from hf_sae.errors import DataError
from hf_sae.steering import OfMax, OfNorm, ablate, add, clamp, scale, when
from hf_sae.steering.recipes import EditRow, Preset, load_presets, plan_of, rows_from_json, save_presets


ROWS = {
    '{"feature": 3}': add({3: OfMax(1.0)}),
    '{"feature": 3, "strength": 2, "unit": "norm"}': add({3: OfNorm(2.0)}),
    '{"feature": 3, "operation": "clamp", "strength": 5, "unit": "latent"}': clamp({3: 5.0}),
    '{"feature": 3, "operation": "raise", "strength": 5, "unit": "latent"}': clamp({3: 5.0}, only_raise=True),
    '{"feature": 3, "operation": "scale", "strength": -1.5}': scale({3: -1.5}),
    '{"feature": 3, "operation": "ablate", "when": 7}': when(ablate(3), 7),
}


@pytest.mark.parametrize("text", ROWS)
def test_a_row_is_its_edit_its_json_and_its_python(text) -> None:
    row = EditRow.from_json(json.loads(text))
    assert row.edit() == ROWS[text]
    assert EditRow.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert eval(row.python()) == row.edit()


def test_rows_compose_in_order_by_autoencoder_and_only_those_that_are_on() -> None:
    rows = [EditRow(1), EditRow(2, sae="b"), EditRow(3, on=False), EditRow(4, "ablate")]
    plan = plan_of(rows, "generated")
    assert plan.edits == {"": (add({1: OfMax(1.0)}), ablate(4)), "b": (add({2: OfMax(1.0)}),)}
    assert plan.positions == "generated"
    assert not plan_of([EditRow(3, on=False)])


@pytest.mark.parametrize(
    "row",
    [
        {}, [], "x", None, 3, {"feature": "3"}, {"feature": -1}, {"feature": 2**31}, {"feature": True}, {"feature": 1.0},
        {"feature": 3, "operation": "explode"}, {"feature": 3, "unit": "miles"}, {"feature": 3, "strength": float("nan")},
        {"feature": 3, "strength": float("inf")}, {"feature": 3, "strength": 1e9}, {"feature": 3, "strength": "2"},
        {"feature": 3, "strength": True}, {"feature": 3, "on": 1}, {"feature": 3, "sae": 4}, {"feature": 3, "when": -2},
        {"feature": 3, "code": "import os"},
    ],
)  # fmt: skip
def test_rows_that_cannot_be_are_refused(row) -> None:
    with pytest.raises(DataError, match=r".+\."):
        EditRow.from_json(row)


@pytest.mark.parametrize("rows", [None, "abc", {"feature": 1}, [{"feature": 1}] * 65])
def test_lists_that_are_none_or_too_long_are_refused(rows) -> None:
    with pytest.raises(DataError, match="edits"):
        rows_from_json(rows)


def test_presets_come_back_as_they_were_saved(tmp_path) -> None:
    presets = [
        Preset(
            "docstrings",
            (EditRow(3, strength=2.0), EditRow(4, "ablate")),
            "writes «docstrings»",
            "def f():",
            "generated",
        )
    ]
    assert load_presets(tmp_path) == []
    save_presets(tmp_path, presets)
    assert load_presets(tmp_path) == presets
    assert [path.name for path in tmp_path.iterdir()] == ["presets.json"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"presets": 3}', '{"presets": [{"name": "x"}]}', '{"presets": [{"name": 3, "edits": []}]}',
        '{"presets": [{"name": "x", "edits": [{"feature": -1}]}]}', '{"presets": [{"name": "x", "edits": [], "run": "rm"}]}',
        '{"presets": [{"name": "x", "edits": [], "positions": "everywhere"}]}', "[" * 100_000,
        json.dumps({"presets": [{"name": "x", "edits": []}] * 201}), json.dumps({"presets": [{"name": "x" * 5000, "edits": []}]}),
    ],
)  # fmt: skip
def test_damaged_presets_are_refused(tmp_path, text) -> None:
    (tmp_path / "presets.json").write_text(text)
    with pytest.raises(DataError, match=r".+"):
        load_presets(tmp_path)
