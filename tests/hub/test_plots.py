"""Plots show figures that are there, say them in words, and are small enough for a card."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_sae.evaluation import CodeNorms, EvalReport, Metric
from hf_sae.hub.plots import Plot, density_histogram, error_against_l0, frontier, training_curve, zf_plot


def make_report(controls: dict[str, float] | None = None) -> EvalReport:
    metrics = {"l0": Metric(32.0), "fvu": Metric(0.1)}
    others = {name: {"l0": Metric(32.0), "fvu": Metric(fvu)} for name, fvu in (controls or {}).items()}
    return EvalReport(metrics, 10, 2, {}, 0, {}, {}, {}, "0", 128, controls=others)


def pixels(plot: Plot) -> Image.Image:
    return Image.open(io.BytesIO(plot.png)).convert("RGB")


def ink(plot: Plot, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    data = torch.from_numpy(np.asarray(pixels(plot)).astype(int))
    rows, columns = ((data - torch.tensor(colour)).abs().sum(-1) < 30).nonzero(as_tuple=True)
    return list(zip(columns.tolist(), rows.tolist(), strict=True))


def all_plots() -> list[Plot | None]:
    rows = [{"tokens": 1000 * i, "loss": 2 / i, "fvu": 1 / i, "l0": 32.0} for i in range(1, 2000)]
    index = {f"layer_{i}": {"hook_in": "resid_post.1", "metrics": {"l0": 8 * i, "fvu": 1 / i}} for i in (1, 2, 3)}
    density = torch.cat([torch.logspace(-5, -0.1, 5000), torch.zeros(100)])
    return [
        training_curve(rows),
        error_against_l0(make_report({"pca": 0.4})),
        density_histogram(density),
        frontier(index),
        zf_plot({"layer <b>$x$": CodeNorms(torch.linspace(1, 90, 5000), torch.linspace(0.5, 80, 5000), 9)}),
    ]


def test_plots_are_twice_as_wide_as_high_and_small():
    for plot in all_plots():
        assert plot is not None
        assert pixels(plot).size == (960, 480)
        assert len(plot.png) < 200_000
        assert "\n" not in plot.alt


def test_the_same_figures_give_the_same_bytes():
    assert [plot.png for plot in all_plots() if plot] == [plot.png for plot in all_plots() if plot]


def test_nothing_is_drawn_where_there_is_nothing_to_see():
    assert training_curve([]) is None
    assert training_curve([{"tokens": 1, "loss": 1.0, "fvu": 1.0}]) is None
    assert training_curve([{"tokens": i, "loss": math.nan, "fvu": 1.0} for i in range(5)]) is None
    assert density_histogram(torch.zeros(8)) is None
    assert error_against_l0(make_report()) is None
    assert frontier({"a": {"metrics": {"l0": 1, "fvu": 0.1}}, "b": {}}) is None


def test_the_curve_falls_from_left_to_right():
    plot = training_curve([{"tokens": 1e6 * i, "loss": 1 / i, "fvu": 1 / i} for i in range(1, 50)])
    assert plot is not None
    line = ink(plot, (230, 85, 13))
    left = min(y for x, y in line if x < min(p[0] for p in line) + 30)
    right = min(y for x, y in line if x > 700)
    assert left + 100 < right, "rows count downwards"


def test_a_better_autoencoder_lies_below_its_baseline():
    plot = error_against_l0(make_report({"pca": 0.4}))
    assert plot is not None
    assert "this autoencoder 0.1 at L0 32; PCA 0.4 at L0 32" in plot.alt
    mine, others = ink(plot, (230, 85, 13)), ink(plot, (119, 119, 119))
    middle = sum(y for _, y in mine) / len(mine)
    assert middle > sum(y for _, y in others if _ > 150) / len([p for p in others if p[0] > 150])


@pytest.mark.parametrize(
    ("density", "share", "rate"), [([0.01] * 9 + [0.0], "10.0%", "100"), ([0.5] * 4, "0.0%", "2")]
)
def test_the_histogram_says_in_words_what_it_shows(density: list[float], share: str, rate: str):
    plot = density_histogram(torch.tensor(density))
    assert plot is not None
    assert f"fewer than 1 in {rate} tokens" in plot.alt
    assert f"{share} of {len(density)} never fired" in plot.alt


def test_under_activated_tokens_lie_below_the_diagonal():
    lengths = torch.linspace(10, 100, 300)
    below = ink_of_cloud(zf_plot(CodeNorms(lengths, lengths / 2, 9)))
    above = ink_of_cloud(zf_plot(CodeNorms(lengths, lengths * 2, 9)))
    # the diagonal goes from the lower left to the upper right of the same frame
    assert sum(x for x, _ in below) / len(below) > sum(x for x, _ in above) / len(above)
    assert sum(y for _, y in below) / len(below) > sum(y for _, y in above) / len(above)
    named = zf_plot({"layer <b>": CodeNorms(lengths, lengths / 2, 9)})
    assert named is not None
    assert "100% of the tokens under-activated" in named.alt
    assert "<b>" not in named.alt


def ink_of_cloud(plot: Plot | None) -> list[tuple[int, int]]:
    assert plot is not None
    data = torch.from_numpy(np.asarray(pixels(plot)).astype(int))
    rows, columns = ((data[..., 0] - data[..., 2]) > 60).nonzero(as_tuple=True)
    return list(zip(columns.tolist(), rows.tolist(), strict=True))
