"""The benchmark that trains every architecture at three sparsities on the same activations."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import frontier, frontier_orderings, frontier_runs, real_activations
from benchmarks.frontier_orderings import ORDERINGS, Ordering, at_l0, judged
from benchmarks.frontier_plot import draw, means, spread
from benchmarks.frontier_runs import Cache, Log, Sizes, coefficient, run
from benchmarks.frontier_settings import SETTINGS, TARGETS, config_of, further_places, left_out, names
from hf_sae.errors import DataError
from hf_sae.models import TopKSAE


SIZES = Sizes(d_sae=128, steps=3, batch=32, calibration=2, evaluated=0)
FLAGS = ["--d-sae", "128", "--steps", "3", "--batch", "32", "--calibration", "2", "--evaluated", "0", "--threads", "1"]
WIDTHS = dict.fromkeys(("resid_post.1", *further_places("resid_post.1")), 24)


@pytest.fixture
def cache_file(tmp_path):
    torch.manual_seed(0)
    tensors = {"train": torch.randn(256, 24).half(), "held_out": torch.randn(64, 24).half()}
    save_file(tensors, tmp_path / "acts.safetensors", metadata={"hook": "resid_post.1"})
    return tmp_path / "acts.safetensors"


def line(arch: str, target: int, seed: int = 0, **figures: float) -> dict:
    shown = {
        "l0": float(target),
        "fvu": 0.3,
        "dead": 0.1,
        "gamma": 1.0,
        "seconds": 2.0,
        "ce_recovered": 0.9,
        "delta_ce": 0.1,
    }
    key = {"kind": "run", "arch": arch, "target": target, "seed": seed, "d_sae": 128, "steps": 3, "batch": 32}
    return key | {"fields": {"k": target}} | shown | figures


def test_every_registered_architecture_has_a_setting_that_its_config_takes():
    for name in names():
        assert left_out(name) is None, name
        for target in TARGETS:
            config = config_of(name, WIDTHS, 128, "resid_post.1", target, 0.1)
            assert config.input_norm == "scalar"
            field = SETTINGS[name].name
            if SETTINGS[name].between is None and not SETTINGS[name].free:
                assert getattr(config, field) == target
    assert left_out("no_such") == "not in this version"


def test_a_file_without_its_place_is_refused(tmp_path):
    save_file({"train": torch.zeros(4, 2)}, tmp_path / "x")
    with pytest.raises(DataError, match=r"benchmarks\.real_activations"):
        Cache.load(tmp_path / "x")


def test_what_an_architecture_needs_besides_comes_from_the_cache(cache_file, tmp_path, monkeypatch):
    monkeypatch.setattr(TopKSAE, "needs", ("gradient",))
    cache = Cache.load(cache_file)
    failed = run("topk", 16, 0, cache, SIZES, Log([]))["failed"]
    assert "real_activations --needs gradient" in failed
    gradients = torch.randn(256, 24).bfloat16()
    tensors = load_file(cache_file) | {"train/gradient": gradients}
    save_file(tensors, tmp_path / "more", metadata={"hook": "resid_post.1"})
    cache = Cache.load(tmp_path / "more")
    cache.require("topk")
    assert torch.equal(cache.rows_for("topk")["resid_post.1/gradient"], gradients)
    assert list(cache.rows_for("standard")) == ["resid_post.1"]


def test_a_run_is_written_at_once_and_not_made_again(cache_file, tmp_path, monkeypatch):
    cache, path = Cache.load(cache_file), tmp_path / "runs.jsonl"
    first = run("topk", 16, 0, cache, SIZES, Log([path]))
    assert (first["l0"] <= 16, first["fields"], first["seconds"] > 0) == (True, {"k": 16}, True)
    with path.open("a") as file:
        file.write('{"kind": "run", "arch": "to')  # stopped while writing
    log = Log([path])
    monkeypatch.setattr(frontier_runs, "fit", None)
    assert run("topk", 16, 0, cache, SIZES, log) == first
    log.add(line("topk", 32))
    assert [one["target"] for one in Log([path]).lines] == [16, 32]
    other = Sizes(d_sae=64)
    assert not log.find(kind="run", **frontier_runs._sizes(other))


def test_a_coefficient_is_searched_once_for_all_targets(cache_file, monkeypatch):
    tried = []

    def fit(config, rows, **options):
        tried.append(config.l1_coefficient)
        return SimpleNamespace(sae=None)

    monkeypatch.setattr(frontier_runs, "fit", fit)
    monkeypatch.setattr(frontier_runs, "measure", lambda sae, *held_out: SimpleNamespace(l0=3.2 / tried[-1]))
    cache, log = Cache.load(cache_file), Log([])
    found = [coefficient("standard", target, cache, SIZES, log) for target in (16, 64)]
    assert 3.2 / found[0] == pytest.approx(16, rel=0.2)
    assert 3.2 / found[1] == pytest.approx(64, rel=0.2)
    count = len(tried)
    assert coefficient("standard", 16, cache, SIZES, log) == found[0]
    assert len(tried) == count <= 12
    assert coefficient("topk", 16, cache, SIZES, log) is None


def test_the_command_makes_what_is_missing_and_shows_all(cache_file, tmp_path, capsys):
    runs, page, picture, docs = (
        tmp_path / name for name in ("runs.jsonl", "page.md", "images/frontier.png", "methods.md")
    )
    docs.write_text("# Methods\n<!-- frontier -->\n<!-- /frontier -->\n")
    argv = [str(cache_file), *FLAGS, "--arch", "topk", "jumprelu", "--seeds", "1", "--resume", str(runs)]
    frontier.main([*argv, "--estimate"])
    assert "minutes: topk" in capsys.readouterr().out
    assert not runs.exists()
    frontier.main([*argv, "--results", str(page), "--plot", str(picture), "--docs", str(docs)])
    out = capsys.readouterr().out
    assert out.index("minutes") < out.index("architecture")
    assert len(runs.read_text().splitlines()) == 6
    assert "| topk | k=16 | 16 | " in page.read_text()
    assert 'src="images/frontier.png"' in docs.read_text()
    assert 'srcset="images/frontier_narrow.png"' in docs.read_text()
    frontier.main([*argv, "--report", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert {(r["arch"], r["target"]) for r in report["runs"]} == {
        (a, t) for a in ("topk", "jumprelu") for t in TARGETS
    }
    assert len(runs.read_text().splitlines()) == 6


def test_an_architecture_that_has_no_row_is_refused(cache_file, capsys):
    with pytest.raises(SystemExit):
        frontier.main([str(cache_file), "--arch", "no_such"])
    assert "Allowed: " in capsys.readouterr().err


def test_the_loss_of_the_host_is_measured_at_the_place_of_the_activations(cache_file, monkeypatch):
    seen = []

    def evaluate(sae, host, tokenizer, **options):
        seen.append((sae.config.hook_in, sae.training, host, options["n_tokens"]))
        return SimpleNamespace(metrics={key: SimpleNamespace(value=0.5) for key in ("ce_recovered", "delta_ce")})

    monkeypatch.setattr(frontier_runs, "evaluate", evaluate)
    monkeypatch.setattr(frontier_runs, "_host", lambda: ("host", "tokenizer"))
    found = run("topk", 16, 0, Cache.load(cache_file), replace(SIZES, evaluated=64), Log([]))
    assert (found["ce_recovered"], found["delta_ce"]) == (0.5, 0.5)
    assert seen == [("resid_post.1", False, "host", 64)]


def test_what_takes_gradients_is_measured_with_them_as_well(tmp_path, cache_file, monkeypatch):
    def evaluate(sae, host, tokenizer, **options):
        value = 0.9 if sae.config.inference == "gradient" else 0.5
        return SimpleNamespace(metrics={key: SimpleNamespace(value=value) for key in ("ce_recovered", "delta_ce")})

    monkeypatch.setattr(frontier_runs, "evaluate", evaluate)
    monkeypatch.setattr(frontier_runs, "_host", lambda: ("host", "tokenizer"))
    tensors = load_file(cache_file) | {"train/gradient": torch.randn(256, 24)}
    save_file(tensors, tmp_path / "more", metadata={"hook": "resid_post.1"})
    found = run("gradient", 16, 0, Cache.load(tmp_path / "more"), replace(SIZES, evaluated=64), Log([]))
    assert (found["ce_recovered"], found["ce_recovered_with_gradient"]) == (0.5, 0.9)
    claims = {row[0]: row for row in judged([found, line("topk", 16, ce_recovered=0.7)])}
    assert claims["g-SAE, without gradients at inference"][5] == "no"
    assert next(row for claim, row in claims.items() if claim.startswith("g-SAE, given"))[5] == "yes"


def test_gradients_are_collected_beside_the_activations_they_belong_to(monkeypatch):
    class Stream:
        def __init__(self, host, tokenizer, dataset, points, **options):
            assert points == ["resid_post.1", "resid_post.1/gradient"]

        def batches(self, n_tokens):
            for i in range(4):
                x = torch.full((4, 2), float(i))
                yield {"resid_post.1": x, "resid_post.1/gradient": 1e-6 * x}

    monkeypatch.setattr(real_activations, "ActivationStream", Stream)
    monkeypatch.setattr(real_activations, "default_host", lambda: (None, None))
    monkeypatch.setattr(real_activations, "stdlib_corpus", lambda split: None)
    found = real_activations.collect("resid_post.1", "test", 10, 32, needs=["gradient"])
    assert {key: rows.dtype for key, rows in found.items()} == {"": torch.float16, "/gradient": torch.bfloat16}
    assert found[""][:, 0].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 2
    assert found["/gradient"][:, 1].tolist() == pytest.approx([0.0] * 4 + [1e-6] * 4 + [2e-6] * 2, rel=0.01)


def test_figures_are_read_off_between_points_and_not_far_outside():
    points = [(16.0, 0.4), (64.0, 0.2)]
    assert at_l0(points, 32.0) == pytest.approx(0.3)
    assert at_l0(points, 16.0) == 0.4
    assert at_l0(points, 66.0) == 0.2
    assert at_l0(points, 90.0) is None
    assert at_l0([], 16.0) is None


def test_an_ordering_compares_at_equal_l0():
    claim = Ordering("better", "batch_topk", "topk")
    base = [line("topk", 16, fvu=0.4), line("topk", 64, fvu=0.2)]
    # lower than either point of the baseline, but not than its line at that L0
    worse = claim.difference([*base, line("batch_topk", 32, fvu=0.35)], 0)
    assert worse == pytest.approx((0.05, 0.3))
    assert not claim.holds(worse)
    assert claim.holds(claim.difference([*base, line("batch_topk", 32, fvu=0.25)], 0))
    assert Ordering("about", "batch_topk", "topk", tolerance=0.2).holds(worse)
    assert not Ordering("about", "batch_topk", "topk", tolerance=0.1).holds(worse)
    assert claim.difference([*base, line("batch_topk", 90)], 0) is None
    shrinks = Ordering("γ", "gated", "standard", "gamma", distance_from=1.0)
    both = [line("gated", 32, gamma=1.01), line("standard", 16, gamma=0.8), line("standard", 64, gamma=0.8)]
    assert shrinks.holds(shrinks.difference(both, 0))


def test_orderings_are_counted_over_seeds_and_toy_data_speaks_where_nothing_else_can():
    lines = [line("topk", 32, seed, fvu=0.3) for seed in range(3)]
    lines += [line("batch_topk", 32, seed, fvu=0.2 if seed else 0.4) for seed in range(3)]
    toys = [{"title": "Matryoshka, parent and child", "figure": "holes", "pairs": [[0.1, 0.5]], "shares": [0.9]}]
    rows = {row[0]: row for row in judged(lines, toys)}
    first = rows[ORDERINGS[0].claim]
    assert first[3:] == ("-0.0333", "2 of 3", "on some seeds")
    assert rows["Matryoshka has less absorption"][3:] == ("-0.4000", "1 of 1", "yes")
    assert rows["Matryoshka pays with FVU (Bussmann 2025)"][5].startswith("not compared")
    assert {ordering.figure for ordering in ORDERINGS} <= set(frontier_orderings.NAMES)
    assert all(ordering.method in SETTINGS and ordering.baseline in SETTINGS for ordering in ORDERINGS)


def test_labels_keep_their_distance_and_order():
    placed = spread([0.5, 0.52, 0.98, 0.99, 0.1], 0.1)
    assert sorted(range(5), key=lambda i: placed[i]) == [4, 0, 1, 2, 3]
    ordered = sorted(placed)
    assert all(b - a > 0.1 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 1
    assert spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    assert max(spread([1.0] * 30, 0.1)) <= 1


def test_both_pictures_are_small_and_of_their_widths(tmp_path):
    drawn = ("topk", "batch_topk", "matryoshka", "lista")
    lines = [line(a, t, s, fvu=0.3 + 0.01 * i) for i, a in enumerate(drawn) for t in TARGETS for s in (0, 1)]
    lines[0]["ce_recovered"] = None
    assert means(lines)["topk"][0]["fvu"] == pytest.approx(0.3)
    wide, narrow = tmp_path / "wide.png", tmp_path / "narrow.png"
    draw(lines, wide, narrow)
    assert Image.open(wide).width > 900
    assert 300 < Image.open(narrow).width < 400
    assert max(path.stat().st_size for path in (wide, narrow)) < 200_000
