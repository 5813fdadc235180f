"""Documents that are made from data say what the data say."""

from __future__ import annotations

from tests.online.table import PAGE, load, render


def test_the_table_of_published_autoencoders_is_rendered_from_its_data():
    rows = load()
    assert PAGE.read_text(encoding="utf-8") == render(rows)
    assert render(rows).count("not run yet") == sum(row["measured"] is None for row in rows)


def test_a_measured_row_shows_its_figures_and_its_commit():
    row = load()[0] | {
        "revision": "0123456789abcdef",
        "measured": {"l0": 61.234, "fvu": 0.1, "delta_ce": None, "best_reading": "as loaded", "version": "1.2"},
    }
    line = render([row]).splitlines()[-1]
    assert "| `01234567` |" in line
    assert line.endswith("| 61.2 | 0.1 | – | as loaded | 1.2 |")
