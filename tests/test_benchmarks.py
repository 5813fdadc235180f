"""The parts of the benchmark that need no peer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from benchmarks import report, rows, train_step, worker
from benchmarks.activations import Planted, write_from_cache, write_planted
from benchmarks.buffers import ours, seconds_per_batch
from benchmarks.floor import floor
from benchmarks.implementations import Ours, PlainTorch, Task
from benchmarks.quality import Weights, judge
from benchmarks.rows import ROWS, Row, changed, chosen
from benchmarks.schedules import soonest


TASK = Task(d=16, d_sae=64, k=4, batch=64, steps=12)


def test_planted_activations_are_the_same_for_the_same_seed_and_have_variance_one():
    source = Planted(d=64, n_features=256)
    x = source.sample(20_000, 1)
    assert torch.equal(x[:100], Planted(d=64, n_features=256).sample(20_000, 1)[:100])
    assert not torch.equal(x[:100], source.sample(100, 2))
    # features fire with a mean of their own, which is part of the offset and not of the variance
    assert 0.7 < float(x.var(0).sum()) < 1.1
    assert float(x.mean(0).norm()) > 0.4


def test_the_planted_dictionary_is_not_what_a_seeded_autoencoder_begins_with():
    dictionary = Planted(d=16, n_features=256).dictionary
    torch.manual_seed(0)
    assert not torch.allclose(F.normalize(torch.randn(64, 16), dim=-1), dictionary[:64])
    torch.manual_seed(0)
    assert not torch.allclose(F.normalize(torch.randn(256, 16), dim=-1), dictionary)


def test_a_cache_is_cut_to_what_the_run_needs(tmp_path):
    save_file({"a": torch.randn(100, 4).half(), "b": torch.randn(50, 4)}, tmp_path / "cache.safetensors")
    write_from_cache(
        tmp_path / "out", tmp_path / "cache.safetensors", train="a", held_out="b", n_train=64, n_held_out=20
    )
    out = load_file(tmp_path / "out")
    assert float(out["train"].square().mean()) == pytest.approx(1.0, rel=1e-4)
    assert {k: (list(v.shape), v.dtype) for k, v in out.items()} == {
        "train": ([64, 4], torch.float32),
        "held_out": ([20, 4], torch.float32),
    }


@pytest.mark.parametrize(("train", "n_train", "message"), [("c", 10, "it has a, b"), ("a", 1000, "Lower --steps")])
def test_a_cache_without_what_is_asked_says_what_it_has(tmp_path, train, n_train, message):
    save_file({"a": torch.randn(100, 4), "b": torch.randn(50, 4)}, tmp_path / "cache.safetensors")
    with pytest.raises(KeyError, match=message):
        write_from_cache(
            tmp_path / "out", tmp_path / "cache.safetensors", train=train, held_out="b", n_train=n_train, n_held_out=20
        )


def test_the_judge_knows_a_perfect_and_a_useless_autoencoder():
    x = torch.eye(8).repeat(4, 1) * 3 + 1
    perfect = Weights(torch.eye(8), torch.zeros(8), torch.eye(8), torch.ones(8))
    quality = judge(perfect, x, k=2)
    assert quality.fvu == pytest.approx(0, abs=1e-12)
    assert (quality.l0, quality.dead) == (1.0, 0.0)
    useless = Weights(-torch.eye(8), torch.zeros(8), torch.eye(8), x.mean(0))
    assert judge(useless, x, k=1).fvu > 1
    silent = Weights(torch.zeros(8, 8), -torch.ones(8), torch.eye(8), x.mean(0))
    quality = judge(silent, x, k=3)
    assert (quality.fvu, quality.l0, quality.dead) == (pytest.approx(1.0), 0.0, 1.0)


def test_every_step_is_timed_and_quality_improves(tmp_path):
    write_planted(tmp_path / "data", d=16, d_sae=64, n_train=768, n_held_out=256)
    data = load_file(tmp_path / "data")
    result = worker.measure(Row(PlainTorch, "", {}), TASK, data, warmup=2)
    curve = result["curve"]
    assert result["timed_steps"] == 10
    assert curve[-1]["tokens"] == 768
    assert result["best_tokens_per_second"] >= result["tokens_per_second"] > 0
    assert curve[-1]["fvu"] < curve[0]["fvu"]
    assert [p["step"] for p in curve] == sorted({p["step"] for p in curve})


def test_a_peer_that_is_not_there_is_a_cell_of_the_table(tmp_path, monkeypatch):
    def absent(task: Task) -> PlainTorch:
        raise ImportError("no module")

    monkeypatch.setitem(rows.ROWS, "saelens-best", Row(absent, "defaults", {}, "no-such-distribution"))
    write_planted(tmp_path / "data", d=16, d_sae=64, n_train=64, n_held_out=64)
    argv = ["worker", "saelens-best", str(tmp_path / "data"), json.dumps(vars(TASK))]
    argv += ["--threads", str(torch.get_num_threads()), "--warmup", "2", "--result", str(tmp_path / "result.json")]
    monkeypatch.setattr("sys.argv", argv)
    worker.main()
    result = json.loads(Path(tmp_path / "result.json").read_text())
    assert result == {"version": "not installed", "missing": "no module"}
    assert "not installed" in str(report.cells({"saelens-best": result}))


def test_the_target_is_the_worst_final_quality_of_a_peer_and_is_read_off_the_curve():
    slow = {"curve": [{"seconds": 1.0, "fvu": 0.6}, {"seconds": 3.0, "fvu": 0.4}]}
    peer = {"curve": [{"seconds": 1.0, "fvu": 0.8}, {"seconds": 2.0, "fvu": 0.5}]}
    fast = {"curve": [{"seconds": 0.1, "fvu": 0.3}, {"seconds": 0.2, "fvu": 0.2}]}
    never = {"curve": [{"seconds": 0.1, "fvu": 0.9}, {"seconds": 0.2, "fvu": 0.7}]}
    names = {"torch-best": slow, "saelens-best": peer, "hf_sae-best": fast, "torch-same": never, "sparsify-best": {}}
    assert report.time_to(names) == 0.5
    assert slow["seconds_to_target"] == pytest.approx(2.0)
    assert peer["seconds_to_target"] == pytest.approx(2.0)
    assert fast["seconds_to_target"] == 0.1
    assert never["seconds_to_target"] is None
    assert report.time_to({"saelens-best": {"missing": "x"}}) is None


def test_the_soonest_schedule_that_arrives_counts_and_a_shorter_one_is_not_tried_after_one_that_does_not():
    tried = []

    def train(steps: int) -> dict:
        tried.append(steps)
        return {"curve": [{"seconds": steps / 10, "fvu": 0.9 - steps / 200}]}

    arrived = {"seconds_to_target": 9.0}
    soonest(arrived, 0.61, 100, [0.2, 0.8, 0.6, 0.4], train)
    assert tried == [80, 60, 40]
    assert arrived == {"seconds_to_target": 6.0, "target_steps": 60}
    assert report.seconds_cell(arrived) == "6.0 (60 steps)"
    sooner_at_full_length = {"seconds_to_target": 5.0}
    soonest(sooner_at_full_length, 0.6, 100, [0.8], train)
    assert report.seconds_cell(sooner_at_full_length) == "5.0"
    never = {"seconds_to_target": None}
    soonest(never, 0.6, 100, [0.8], lambda steps: pytest.fail("a row that never arrives is not trained again"))
    assert report.seconds_cell(never) == "never"


def test_goals_are_ratios_within_one_run():
    def result(speed: float, memory: int, seconds: float) -> dict:
        curve = [{"seconds": seconds / 2, "fvu": 0.6}, {"seconds": seconds, "fvu": 0.4}]
        return {
            "best_tokens_per_second": speed,
            "peak_memory": memory,
            "curve": curve,
            "best_step_ms": 3.0,
            "floor_ms": 2.0,
            "seconds_to_target": seconds,
        }

    found = report.goals({"hf_sae-same": result(90, 50, 2.0), "saelens-same": result(10, 100, 8.0)})
    assert {figure: measured for figure, _, measured in found} == {
        "one mathematics: step / floor": "1.50",
        "one mathematics: memory / best peer's": "0.50",
        "one mathematics: seconds to target, hf_sae-same / best peer": "0.25",
        "one mathematics: speed / saelens-same": "9.00",
    }


def test_rows_are_chosen_by_name_library_and_group():
    assert chosen(["torch-same"]) == ["torch-same"]
    assert {ROWS[name].library for name in chosen(["best"])} == set(rows.LIBRARIES)
    assert all(ROWS[name].group == "default" or ROWS[name].library == "torch" for name in chosen(["default", "torch"]))
    with pytest.raises(KeyError, match="'jax' is no row"):
        chosen(["jax"])


def test_rate_and_betas_reach_the_optimiser():
    for name in ("hf_sae-best", "torch-best"):
        row = ROWS[name]
        built = row.build(replace(TASK, options=changed(row, 0.5, (0.3, 0.4))))
        optimizer = built.trainer.trainees[0].optimizer if isinstance(built, Ours) else built.optimizer
        assert {group["betas"] for group in optimizer.param_groups} == {(0.3, 0.4)}
        assert changed(row, 0.5, None)["learning_rate" if isinstance(built, Ours) else "lr"] == 0.5
    assert changed(ROWS["saelens-best"], None, (0.3, 0.4))["adam_beta2"] == 0.4
    assert changed(ROWS["sparsify-best"], None, (0.3, 0.4))["betas"] == (0.3, 0.4)


def test_flags_win_over_a_preset():
    args = train_step.arguments(["--preset", "wide", "--steps", "7"])
    assert (args.d, args.d_sae, args.batch, args.steps) == (768, 6144, 1024, 7)


def test_rows_of_one_mathematics_follow_one_learning_rate():
    task = replace(TASK, steps=100, options=ROWS["torch-same"].options)
    torch_row, x = PlainTorch(task), Planted(d=16, n_features=64).sample(64, 1)
    ours_row = Ours(replace(task, options=ROWS["hf_sae-same"].options))
    theirs, own = [], []
    for _ in range(10):
        theirs.append(torch_row.optimizer.param_groups[0]["lr"])
        torch_row.step(x)
        ours_row.step(x)
        own.append(ours_row.trainer.args.learning_rate_at(ours_row.trainer.step - 1, task.d_sae))
    assert theirs[0] == own[0] == 1e-3
    assert theirs == pytest.approx(own, rel=0.03)


def test_a_row_with_bfloat16_products_learns_and_keeps_float32_weights():
    x = Planted(d=16, n_features=64).sample(64, 1)
    row = PlainTorch(replace(TASK, options={"bf16": True, "fused": True}))
    before = judge(row.weights(), x, TASK.k).fvu
    for _ in range(8):
        row.step(x)
    assert row.encoder.dtype == torch.float32
    assert judge(row.weights(), x, TASK.k).fvu < before


def test_our_buffer_serves_what_it_was_given():
    x = torch.arange(4096.0)[:, None].expand(-1, 2).contiguous()
    batches = ours(iter(x.split(512)), 1024, 128)
    served = torch.cat([next(batches)[:, 0].clone() for _ in range(24)])
    assert served.unique().numel() == 24 * 128  # every token once
    assert not torch.equal(served, served.sort().values)
    assert seconds_per_batch(ours, x, 1024, 128) > 0


def test_time_with_a_buffer_is_the_sum_of_both():
    assert worker.with_buffer({"tokens_per_second": 1000.0, "buffer_ms": 100.0}, 100) == pytest.approx(500)
    assert worker.with_buffer({"tokens_per_second": 1000.0}, 100) == pytest.approx(1000)


def test_the_floor_is_a_product_and_a_selection():
    parts = floor(torch.randn(64, 16), 128, 4, repeats=2)
    assert set(parts) == {"product", "top_k"}
    assert all(value > 0 for value in parts.values())


def test_ours_and_plain_torch_agree_with_what_they_export():
    pytest.importorskip("hf_sae.training")
    x = Planted(d=16, n_features=64).sample(64, 1)
    for build in (Ours, PlainTorch):
        implementation = build(TASK)
        for _ in range(3):
            implementation.step(x)
        quality = judge(implementation.weights(), x, TASK.k)
        assert 0 < quality.fvu < 1
        assert math.isclose(quality.l0, TASK.k, rel_tol=0.5)


def test_weights_of_a_scaled_input_are_those_of_the_raw_one():
    pytest.importorskip("hf_sae.training")
    x = Planted(d=16, n_features=64).sample(64, 1) * 7
    ours = Ours(replace(TASK, options={"input_norm": "scalar"}))
    ours.step(x)
    error = (x - ours.sae.eval()(x).reconstruction).square().sum() / (x - x.mean(0)).square().sum()
    assert judge(ours.weights(), x, TASK.k).fvu == pytest.approx(float(error.detach()), rel=1e-4)


def test_checkpoints_come_after_the_warm_up_and_include_the_end():
    due = worker.checkpoints(300, 20)
    assert max(due) == 300
    assert min(due) > 20
    assert len(due) == 16


def test_every_library_has_a_row_in_every_group_it_is_compared_in():
    for group in ("same", "best"):
        assert {row.library for row in ROWS.values() if row.group == group} == set(rows.LIBRARIES)
