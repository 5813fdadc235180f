"""The benchmark of the harvest, small."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import features


def test_a_harvest_is_timed_and_its_memory_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features.harvesting, "CorpusPass", features.harvesting.CorpusPass)
    monkeypatch.setattr(features.harvesting.CorpusPass, "run", features.harvesting.CorpusPass.run)
    run: dict[str, Any] = features.measure(300, 64, None)
    assert run["tokens"] >= 300
    assert 0 < run["live"] <= 64
    assert run["before"] <= run["peak"]
    assert min(run["pass_s"], run["write_s"]) > 0
    page = features.markdown([run | {"saves": 0}, run | {"peak": 5 << 30, "saves": 1}], 64, "two cores.")
    rows = [line for line in page.splitlines() if line.startswith("| 3")]
    assert [row.endswith("| yes |") for row in rows] == [True, False]
    assert "Extrapolated" in page
