"""The frontier's rows of architectures that read or write several places."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from benchmarks import frontier, frontier_plot, frontier_runs, real_activations
from benchmarks.frontier_plot import means
from benchmarks.frontier_runs import Cache, Log, Sizes, run
from benchmarks.frontier_settings import TARGETS, config_of, further_places


SIZES = Sizes(d_sae=128, steps=3, batch=32, calibration=2, evaluated=0)
FLAGS = ["--d-sae", "128", "--steps", "3", "--batch", "32", "--calibration", "2", "--evaluated", "0", "--threads", "1"]
HOOK = "resid_post.1"
FURTHER = further_places(HOOK)
WIDTHS = {place: 16 if place.startswith("mlp_out") else 24 for place in (HOOK, "resid_post.3", *FURTHER)}


@pytest.fixture
def several_file(tmp_path):
    torch.manual_seed(1)
    tensors = {}
    for name, n in (("train", 256), ("held_out", 64)):
        tensors[name] = torch.randn(n, WIDTHS[HOOK]).half()
        tensors |= {f"{name}@{place}": torch.randn(n, WIDTHS[place]).half() for place in FURTHER}
    save_file(tensors, tmp_path / "several.safetensors", metadata={"hook": HOOK})
    return tmp_path / "several.safetensors"


@pytest.fixture
def cache_file(several_file, tmp_path):
    one = {key: x for key, x in load_file(several_file).items() if "@" not in key}
    save_file(one, tmp_path / "acts.safetensors", metadata={"hook": HOOK})
    return tmp_path / "acts.safetensors"


def line(arch: str, target: int, seed: int = 0, **figures: float) -> dict:
    """As runs were kept before they had the name of their cache."""
    key = {"kind": "run", "arch": arch, "target": target, "seed": seed, "d_sae": 128, "steps": 3, "batch": 32}
    shown = {"l0": float(target), "fvu": 0.3, "dead": 0.1, "gamma": 1.0, "seconds": 2.0, "ce_recovered": 0.9}
    return key | {"fields": {"k": target}} | shown | figures


def test_a_config_has_the_places_of_its_setting_side_by_side():
    one = config_of("topk", WIDTHS, 128, "resid_post.3", 16)
    assert (one.hook_in, one.hook_out, one.d_in, one.d_out) == ("resid_post.3", None, 24, 24)
    cross = config_of("crosscoder", WIDTHS, 128, "resid_post.3", 16)
    assert (cross.places_in, cross.hook_out, cross.d_in) == ([f"resid_post.{i}" for i in range(3)], None, 72)
    layers = config_of("cross_layer", WIDTHS, 128, "resid_post.3", 16)
    assert layers.places_in == ["mlp_in.0", "mlp_in.1", "mlp_in.2"]
    assert layers.places_out == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert (layers.d_in, layers.d_out) == (72, 48)
    assert layers.d_sae == 126  # the three readers share 128 latents out
    assert cross.d_sae == 128


def test_a_cache_of_one_place_says_how_to_write_more(cache_file, several_file, tmp_path):
    cache = Cache.load(cache_file)
    for name in ("crosscoder", "cross_layer"):
        failed = run(name, 16, 0, cache, SIZES, Log([]))["failed"]
        assert failed.startswith("needs ")
        assert f"real_activations --also {' '.join(FURTHER)}." in failed
    assert HOOK not in FURTHER
    half = {key: x for key, x in load_file(several_file).items() if key != "held_out@mlp_out.2"}
    save_file(half, tmp_path / "half", metadata={"hook": HOOK})
    assert run("cross_layer", 16, 0, Cache.load(tmp_path / "half"), SIZES, Log([]))["failed"].startswith(
        "needs mlp_out.2 "
    )


def test_several_places_are_trained_and_measured_side_by_side(several_file, monkeypatch):
    cache, tensors, seen = Cache.load(several_file), load_file(several_file), []
    fit = frontier_runs.fit

    def watched(config, rows, **options):
        seen.append((config, rows, fit(config, rows, **options)))
        return seen[-1][2]

    monkeypatch.setattr(frontier_runs, "fit", watched)
    found = {name: run(name, 16, 0, cache, SIZES, Log([])) for name in ("crosscoder", "cross_layer", "topk")}
    for (config, rows, trained), one in zip(seen, found.values(), strict=True):
        assert list(rows) == list(dict.fromkeys((*config.places_in, *config.places_out)))
        for place, x in rows.items():
            assert torch.equal(x, tensors["train" if place == HOOK else f"train@{place}"])
        x, y = (
            torch.cat([tensors["held_out" if p == HOOK else f"held_out@{p}"].float() for p in places], dim=1)
            for places in (config.places_in, config.places_out)
        )
        with torch.no_grad():
            error = (trained.sae(x).reconstruction - y).square().sum()
        assert one["fvu"] == pytest.approx(float(error / (y - y.mean(0)).square().sum()), rel=1e-4)
        assert one["cache"] == "several.safetensors"


def test_further_places_are_stored_beside_the_hook_token_by_token(tmp_path, monkeypatch, capsys):
    class Stream:
        def __init__(self, host, tokenizer, dataset, points, **options):
            assert points == ["resid_post.1", "resid_post.1/gradient", "mlp_in.0"]

        def batches(self, n_tokens):
            for i in range(4):
                x = torch.arange(4 * i, 4 * i + 4)[:, None].float()
                yield {"resid_post.1": x, "resid_post.1/gradient": x, "mlp_in.0": x.repeat(1, 3) + 0.5}

    monkeypatch.setattr(real_activations, "ActivationStream", Stream)
    monkeypatch.setattr(real_activations, "default_host", lambda: (None, None))
    monkeypatch.setattr(real_activations, "stdlib_corpus", lambda split: None)
    sizes = ["--train-tokens", "10", "--held-out-tokens", "6", "--threads", "1"]
    more = ["--needs", "gradient", "--also", "resid_post.1", "mlp_in.0"]
    real_activations.main([str(tmp_path / "x"), *sizes, *more])
    assert "train@mlp_in.0 [10, 3]" in capsys.readouterr().out
    cache = Cache.load(tmp_path / "x")
    assert sorted(cache.rows) == ["mlp_in.0", "resid_post.1", "resid_post.1/gradient"]
    assert {key: x.dtype for key, x in cache.rows.items() if key != "mlp_in.0"} == {
        "resid_post.1": torch.float16,
        "resid_post.1/gradient": torch.bfloat16,
    }
    assert cache.rows["mlp_in.0"].dtype == torch.float16
    for rows in (cache.rows, cache.held_out):
        assert torch.equal(rows["mlp_in.0"][:, 2], rows["resid_post.1"][:, 0] + 0.5)
    assert cache.held_out["mlp_in.0"].shape == (6, 3)


def test_rows_of_several_files_are_shown_together_with_what_sets_them_apart(
    cache_file, several_file, tmp_path, capsys
):
    one, other, page = tmp_path / "one.jsonl", tmp_path / "other.jsonl", tmp_path / "page.md"
    lines = [line(arch, target) for arch in ("topk", "batch_topk", "jumprelu") for target in TARGETS]
    one.write_text("".join(json.dumps(one_line) + "\n" for one_line in [*lines, lines[0]]))
    frontier.main([str(cache_file), *FLAGS, "--arch", "topk", "crosscoder", "--seeds", "1", "--resume", str(one)])
    assert "failed: needs resid_post.0, resid_post.2 of each token" in capsys.readouterr().out
    several = ["--arch", "crosscoder", "cross_layer", "--seeds", "1", "--resume", str(other)]
    frontier.main([str(several_file), *FLAGS, *several])
    capsys.readouterr()
    report = ["--report", "--seeds", "1", "--resume", str(one), str(other), "--results", str(page)]
    frontier.main([str(cache_file), *FLAGS, *report])
    for text in (capsys.readouterr().out, page.read_text()):
        assert "mlp_in.0, mlp_in.1, mlp_in.2 and writes mlp_out.0, mlp_out.1, mlp_out.2, with 126 latents" in text
        assert "FVU and γ of cross_layer and crosscoder are over all places together" in text
        assert "Another draw of the corpus than acts.safetensors has: cross_layer, crosscoder: several.saf" in text
    rows = [row for row in page.read_text().splitlines() if row.startswith("| ")]
    for arch, by in (("topk", "k=16"), ("crosscoder", "k=16, 3 places"), ("cross_layer", "k=16, 3 places")):
        assert [row for row in rows if row.startswith(f"| {arch} | {by} | 16 | ") and row.endswith(" 1 |")]
    assert sum(row.startswith("| c") for row in rows) == 2 * len(TARGETS)


def test_several_places_have_a_panel_without_the_reference_of_another_task():
    lines = [line(a, t, fvu=f) for a, f in (("topk", 0.1), ("batch_topk", 0.2), ("crosscoder", 0.9)) for t in TARGETS]
    drawn = {}
    for family in ("batch", "several"):
        figure = Figure()
        axes = figure.subplots()
        frontier_plot._panel(means(lines), family, "fvu")(axes)
        drawn[family] = ({text.get_text() for text in axes.texts}, axes.get_ylim())
    assert drawn["batch"][0] == {"topk", "batch_topk"}
    assert drawn["several"][0] == {"crosscoder"}
    assert drawn["batch"][1][1] < 0.5 < drawn["several"][1][0]
    lines += [line("cross_layer", target, fvu=0.01) for target in TARGETS]
    assert "least FVU 0.100, topk" in frontier.section(lines, [], ("a.png", "b.png"))[2]
