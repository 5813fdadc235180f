"""The benchmark of feature search, small."""

from __future__ import annotations

from benchmarks import feature_search


def test_every_question_is_timed_and_the_planted_label_found():
    result = feature_search.measure(60, repeats=2)
    assert result["found"]
    assert all(0 < times["median"] <= times["slowest"] for times in result["queries"].values())
    result |= {"index_s": 31.0}
    result["queries"]["two words"]["median"] = 0.2
    page = feature_search.markdown(result, "two cores.")
    assert "Index: 31.0 s (aim 30: missed)" in page
    assert "| 200.0 |" in page.split("| two words |")[1].splitlines()[0]
    assert page.split("| two words |")[1].splitlines()[0].endswith("| missed |")
    assert "comes first: yes" in page
