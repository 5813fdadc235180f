"""`EvalReport`: what it writes can be read, published and shown."""

from __future__ import annotations

import json
import math

import pytest
import torch
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_sae.errors import DataError
from hf_sae.evaluation import EvalReport, Metric
from hf_sae.metrics import METRIC_KEYS


@pytest.fixture
def report() -> EvalReport:
    metrics = {key: Metric(0.123456 * (i + 1), 0.1 * i, 0.2 * i) for i, key in enumerate(METRIC_KEYS)}
    metrics["kl"] = Metric(None)
    metrics["mse"] = Metric(1234567.0, 1.2e6, 1.3e6)
    return EvalReport(
        metrics=metrics,
        n_tokens=12345,
        n_documents=67,
        counts={"seen": 20000, "masked": 7655},
        seed=3,
        dataset={"name": "org/data", "split": "test", "revision": "abc", "bad": float("nan")},
        host={"name": "org/<b>host</b>"},
        sae={"name": "org/sae"},
        sha256="00",
        context_length=128,
        notes=["a <note>"],
        controls={"pca": {"fvu": Metric(0.5), "delta_ce": Metric(0.1)}, "random": {"fvu": Metric(0.9)}},
        feature_stats={"density": torch.ones(4)},
    )


def test_round_trip_through_json(report, tmp_path):
    path = tmp_path / "evals" / "core.json"
    report.to_json(path)
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    again = EvalReport.from_dict(data)
    assert again.to_dict() == report.to_dict()
    assert again.metrics == report.metrics
    assert again.controls["pca"]["fvu"] == Metric(0.5)
    assert data["dataset"]["bad"] is None
    assert "feature_stats" not in data
    assert [child.name for child in path.parent.iterdir()] == ["core.json"]


def test_a_failed_write_leaves_the_old_file(report, tmp_path, monkeypatch):
    path = tmp_path / "core.json"
    path.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.to_json(path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "data", [{}, {"format": 1}, {"format": 1, "metrics": {"l0": 3}}, {"format": 2, "metrics": {}}]
)
def test_what_is_not_a_report_is_refused(data):
    with pytest.raises(DataError, match="evaluation report"):
        EvalReport.from_dict(data)


def test_non_finite_values_become_none():
    assert Metric.of(math.nan, (0, 1)) == Metric(None)
    assert Metric.of(math.inf) == Metric(None)
    assert Metric.of(1.0, (0.5, 2.0)) == Metric(1.0, 0.5, 2.0)
    assert math.isnan(float(Metric(None)))


def test_table_fits_a_terminal_and_names_every_metric(report):
    table = report.to_table()
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(key + " ") for line in lines) for key in METRIC_KEYS)
    assert any(line.split() == ["fvu", "0.2469", "0.5000", "0.9000"] for line in lines)
    assert repr(report) == table


def test_model_index_survives_a_card(report):
    results = report.to_model_index("user/sae")
    assert {r.metric_type for r in results} == set(METRIC_KEYS) - {"kl"}
    data = ModelCardData(model_name="sae", eval_results=results).to_dict()
    _, again = model_index_to_eval_results(data["model-index"])
    fvu = next(r for r in again if r.metric_type == "fvu")
    assert fvu.metric_value == report["fvu"]
    assert fvu.dataset_revision == "abc"
    assert fvu.metric_args["seed"] == 3
    assert fvu.metric_args["n_tokens"] == 12345
    assert (fvu.metric_args["ci95_low"], fvu.metric_args["ci95_high"]) == (
        report.metrics["fvu"].low,
        report.metrics["fvu"].high,
    )


def test_html_is_escaped(report):
    html = report._repr_html_()
    assert "<b>host" not in html
    assert "&lt;b&gt;host" in html
    assert "a &lt;note&gt;" in html
