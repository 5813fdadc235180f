"""The benchmarks beside the training step: encoding, live host, revival, GPU. No peer is needed, and none is asked for."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import encode, end_to_end, gpu, revival
from benchmarks.implementations import Task
from benchmarks.quality import Weights
from hf_sae import default_host, read


def test_encoding_is_measured_beside_the_product(capsys, tmp_path):
    argv = [
        "--sizes",
        "16x64x4",
        "--libraries",
        "hf_sae",
        "torch",
        "--tokens",
        "32",
        "--repeats",
        "2",
        "--threads",
        "1",
    ]
    encode.main([*argv, "--json", "--results", str(tmp_path / "page.md")])
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(r["library"], r["precision"]) for r in results] == list(
        itertools.chain.from_iterable([("hf_sae", p), ("torch", p)] for p in ("fp32", "bf16"))
    )
    assert all(r["share"] > 0 and r["tokens_per_second"] > 0 for r in results)
    assert (tmp_path / "page.md").read_text().count("| d=16 F=64 k=4 |") == 4


def test_a_size_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        encode.main(["--sizes", "768"])
    assert "768x6144x32" in capsys.readouterr().err


def test_the_host_stops_behind_the_layer_and_gives_its_output():
    model, ids = default_host()[0].base_model, torch.arange(16 * 128).reshape(16, 128) % 500
    later = []
    handle = model.layers[end_to_end.LAYER + 1].register_forward_hook(lambda *_: later.append(1))
    outputs = next(end_to_end.host_outputs(model, ids))
    handle.remove()
    point = f"resid_post.{end_to_end.LAYER}"
    assert not later
    torch.testing.assert_close(outputs, read(model, [point], input_ids=ids)[point].flatten(0, 1))
    assert not model.layers[end_to_end.LAYER]._forward_hooks


def test_figures_in_between_do_not_count(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr(end_to_end, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    x = torch.randn(64, 8)
    clock = end_to_end.Clock(Task(8, 8, 2, 16, 4), x)
    for _ in range(4):
        clock.tick(lambda: Weights(torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8)))
    result = clock.result()
    # the time is read only where a figure is due, once before it and once after it
    assert clock.seconds == len(result["curve"])
    assert result["tokens_per_second"] == 4 * 16 / clock.seconds


def test_auxk_revives_planted_dead_latents_and_nothing_else_does():
    found = revival.compare(["hf_sae"], Task(d=32, d_sae=128, k=4, batch=256, steps=150))["hf_sae"]
    assert found["planted"] == 25  # a fifth of 128, and none of them fires
    assert found["revived"] > 0.5
    assert found["without"] < 0.1


def test_the_gpu_benchmark_refuses_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv in ([], ["--device", "cpu"]):
        with pytest.raises(SystemExit) as stopped:
            gpu.main(argv)
        assert stopped.value.code == 2
        assert "--tiny" in capsys.readouterr().err


def test_the_gpu_benchmark_runs_at_toy_sizes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "BUILDERS", {name: gpu.BUILDERS[name] for name in ("hf_sae", "torch, dense, bf16")})
    monkeypatch.setattr(gpu, "revival", lambda device, tiny: [("hf_sae", "1", "1", "100%", "0%", "0.5")])
    monkeypatch.setattr(gpu, "HOSTS", {"GPT-2 shape": gpu.HOSTS["GPT-2 shape"]})
    gpu.main(["--device", "cpu", "--tiny", "--sizes", "A", "--results", str(tmp_path / "gpu.md")])
    page = (tmp_path / "gpu.md").read_text()
    assert "failed" not in page
    assert page.count("| A: d=16 F=64 k=4 |") == 2 * 3 + 2  # two batches, and the memory sweep
    assert "modelled" in capsys.readouterr().out


def test_a_row_that_the_time_does_not_reach_says_so():
    rates = SimpleNamespace(step_ms=lambda size, batch: 1.0)
    rows = gpu.steps(gpu.TINY[:1], torch.device("cpu"), rates, deadline=0.0)
    assert {row[3] for row in rows if row[2] != "modelled"} == {gpu.NOT_YET}


def test_the_modelled_step_is_the_closed_form():
    rates = object.__new__(gpu.Rates)
    rates.flops, rates.bandwidth = 790e12, 4.3e12
    # C at 16,384 tokens: product 22.3 ms, three gathers 6.0 ms, update 4.5 ms
    assert rates.step_ms(gpu.SIZES[2], 16_384) == pytest.approx(32.8, abs=0.3)
