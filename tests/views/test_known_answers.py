from __future__ import annotations

import math
import re

import pytest

from hf_sae import views
from hf_sae.shades import contrast, text_on
from hf_sae.views import ContextView, FeatureView, LabelView, StreamView, words
from hf_sae.views.charts import bar_height
from hf_sae.views.labels import badge
from hf_sae.views.levels import STEPS, background, level, underline
from hf_sae.views.themes import DARK, LIGHT


def luminance(colour):
    return contrast(colour, "#000000")


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_on_every_step_and_strong_stands_out(dark):
    paper = (DARK if dark else LIGHT)["paper"]
    for sign in (1, -1):
        steps = [background(sign * step, dark) for step in range(STEPS + 1)]
        assert min(contrast(colour, text_on(colour)) for colour in steps) >= 4.5
        away = [contrast(colour, paper) for colour in steps]
        assert away == sorted(away), "stronger is further from the paper, in greyscale too"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_words_are_readable_in_both_themes(theme):
    for name in ("ink", "quiet", "accent", "bad"):
        assert contrast(theme[name], theme["paper"]) >= 4.5, name
    assert contrast(theme["quiet"], theme["soft"]) >= 4.5
    assert contrast(theme["accent"], theme["accent-soft"]) >= 4.5


def test_the_style_sheet_is_about_views_only():
    style = re.sub(
        r"/\*.*?\*/|@media[^{]*\{|@container[^{]*\{|@keyframes[^{]*\{[^}]*\}\s*\}", "", views.STYLE, flags=re.S
    )
    for selector in re.findall(r"([^{}]+)\{", style):
        assert all(".hs" in part for part in re.sub(r":is\([^)]*\)", "", selector).split(",")), selector
    assert "url(" not in views.STYLE
    assert "@import" not in views.STYLE


@pytest.mark.parametrize(
    ("activation", "maximum", "step", "line"),
    [(0.0, 2.0, 0, 0), (1.0, 2.0, 10, 2), (2.0, 2.0, 20, 4), (9.0, 2.0, 20, 4), (-1.5, 2.0, -15, 3), (1e-9, 2.0, 1, 1),
     (math.nan, 2.0, 0, 0), (math.inf, 2.0, 20, 4), (1.0, None, 20, 4), (-1.0, -2.0, -10, 2)],
)  # fmt: skip
def test_shade_and_line_grow_with_the_activation(activation, maximum, step, line):
    assert (level(activation, maximum), underline(step)) == (step, line)


def rule(name):
    return re.search(rf"\.hs \.hs-f{name},[^{{]*\{{([^}}]*)\}}", views.STYLE)[1]


def test_the_line_of_a_negative_activation_is_dashed():
    assert "border-bottom-width:2px" in rule("10")
    assert "dashed" not in rule("10")
    assert rule("n20").endswith("border-bottom-width:4px;border-bottom-style:dashed")


def test_a_strip_says_everything_of_a_token():
    strip = views.token_strip([" def", "\n", "x"], [1.0, 0.0, 3.0], maximum=4.0, token_ids=[7, 8, 9], first_position=5)
    assert 'title="“ def” · id 7 · position 5 · activation 1 · strongest 2 of 3 here"' in strip
    assert 'title="“⏎” · id 8 · position 6 · does not fire"' in strip
    assert '<span class="hs-t hs-f15 hs-r20 hs-peak" data-position="7"' in strip
    assert "hs-f5 hs-r7" in strip
    assert '<span class="hs-nl">⏎</span>\n' in strip
    assert "Fires on “x” 3, “ def” 1." in strip
    assert "tabindex" not in strip
    ranked = views.token_strip(["a"], [1.0], maximum=1.0, latent_ranks=[4], clickable=True)
    assert "rank 4 among the latents of this token" in ranked
    assert 'tabindex="0"' in ranked


def test_far_tokens_are_folded_away_and_none_is_lost():
    tokens = [f"w{i};" for i in range(40)]
    strip = views.token_strip(tokens, [float(i == 20) for i in range(40)], maximum=1.0, around=12)
    assert re.findall(r"… (\d+) more", strip) == ["8", "7"]
    assert re.findall(r">(w\d+;)</span>", strip) == tokens
    assert "more" not in views.token_strip(tokens, [0.0] * 40, maximum=1.0)


def test_bars_of_a_histogram_have_the_height_of_their_logarithm():
    assert bar_height(100, 100, True, 90) == 90
    assert bar_height(1, 100, True, 90) == pytest.approx(90 * math.log(2) / math.log(200))
    assert (bar_height(0, 100, True, 90), bar_height(50, 100, False, 90)) == (0, 45)
    drawn = views.histogram([100, 0, 1], [0.0, 1.0, 2.0, 3.0])
    heights = re.findall(r'<rect[^>]*height="([\d.]+)"', drawn)
    assert [float(h) for h in heights] == [94.0, pytest.approx(94 * math.log(2) / math.log(200), abs=0.05)]
    assert "101 values from 0 to 3, most (100) between 0 and 1, logarithmic axis" in drawn
    assert re.findall(r"width:([\d.]+)%", views.bars(["a", "b"], [4.0, -1.0])) == ["100.0", "25.0"]


@pytest.mark.parametrize(
    ("density", "said"),
    [(1 / 850, "1 in 850 tokens"), (1 / 123456, "1 in 123,000 tokens"), (0.12, "12 % of tokens"), (0.0, "never fired"),
     (1.0, "every token"), (math.nan, "density not known"), (None, "density not known"), (0.05, "1 in 20 tokens")],
)  # fmt: skip
def test_density_in_words(density, said):
    assert words.rate(density) == said


def test_numbers_have_sensible_digits():
    assert [words.number(x) for x in (12.3456, 0.5, -3.0, 1234.5, 0.0, math.nan, math.inf, None)] == [
        "12.3", "0.5", "−3", "1,230", "0", "–", "∞", "–"
    ]  # fmt: skip
    assert [words.count(x) for x in (7, 9999, 12_345, 1_000_000, 999_999, 3.2e9)] == [
        "7",
        "9,999",
        "12k",
        "1.0M",
        "1.0M",
        "3.2B",
    ]
    assert words.strength(12.4, 1_000_000) == "max 12.4 over 1.0M tokens"
    assert words.silence(1 / 850) == "Zero on 99.88 % of tokens."
    assert words.place("resid_post.3") == "the residual stream after block 3 (resid_post.3)"
    assert words.place("model.layers.3:output") == "model.layers.3:output"


def test_a_score_whose_interval_reaches_chance_is_grey_and_says_so():
    sure, unsure = (LabelView("x", "rule", None, 0.7, "detection", 0.5, low, 0.9) for low in (0.6, 0.45))
    assert "hs-grey" not in badge(sure)
    assert "hs-grey" in badge(unsure)
    assert "near chance" in badge(unsure)
    assert "not scored" in badge(LabelView("x"))
    page = views.feature_page(FeatureView("s", 1, 1 / 850, 12.4, 1_000_000, labels=[sure]))
    assert "Label by rule, detection 0.7 (chance 0.5, 95 % interval 0.6 to 0.9)." in page
    assert "Fires on 1 in 850 tokens" in page
    assert "max 12.4 over 1.0M tokens" in page


def test_equal_contexts_are_shown_once_and_only_groups_that_are_there():
    one, other = ContextView(["a"], [1.0], document="f.py"), ContextView(["b"], [1.0])
    page = views.feature_page(FeatureView("s", 1, contexts={"Top": [one, one, other], "Low": []}))
    assert "Top <small>2</small>" in page
    assert "Low" not in page
    assert page.count("f.py") == 1


def test_streams_say_where_they_part_and_how_fluent_they_are():
    steered = StreamView(
        "Steered", ["a", "b"], kl=[0.0, 2.0], perplexity=9.0, coherence="drifting", diverges_at=1, state="done"
    )
    drawn = views.stream_columns([StreamView("Baseline", ["a", "c"], state="done"), steered])
    assert "■■□" in drawn
    assert "Differs from token 2 on." in drawn
    assert re.findall(r'hs-diverges" data-position="(\d)"', drawn) == ["1"]
    assert '<polyline points="0.0,26.0 300.0,2.0"/>' in drawn
    assert "mean 1, most 2 nats per token" in drawn


def test_an_empty_search_gives_three_ways_on():
    found = views.hit_list([], query="zebra", clickable=True)
    assert found.count("<li>") == 3
    assert 'data-action="search-examples"' in found
