"""What a run will cost: closed forms at known sizes, real allocations, real time."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae.activations import ActivationStream
from hf_sae.assets import default_host
from hf_sae.corpus import stdlib_corpus
from hf_sae.errors import DataError
from hf_sae.models import (
    AutoSAE,
    BilinearConfig,
    CrosscoderConfig,
    CrossLayerConfig,
    GradientConfig,
    JumpReLUConfig,
    KronConfig,
    MatchingPursuitConfig,
    StandardConfig,
    TopKConfig,
    registered,
)
from hf_sae.training import SAETrainer, SAETrainingArguments
from hf_sae.training.estimate import Estimate, Job, Machine, advice, estimate, memory, parts, probe
from hf_sae.training.estimate.machine import _reduced
from hf_sae.training.estimate.report import duration, size


# one GPU of 790 TFLOP/s in bfloat16 and 4.3 TB/s, that reads pre-activations twice, 2 bytes each
BALANCE = Machine(
    product=790e12, top_k=4.3e12 / 4, decode=2 * 4.3e12, optimizer=4.3e12, host=1e9, disk=1e9, bfloat16=True
)
SIZES = {"A": (768, 24_576, 32), "B": (2304, 65_536, 64), "C": (4096, 131_072, 64), "D": (4096, 1_048_576, 64)}


def job(d: int, d_sae: int, k: int | None, tokens: int = 16_384, batch: int = 16_384, **rest: Any) -> Job:
    sizes = {"d_in": d, "d_out": d, "d_sae": d_sae, "k": k, "served": d, "encoder_weights": d * d_sae}
    sizes["parameters"] = 2 * d * d_sae + d_sae + d
    return Job(**sizes | {"total_tokens": tokens, "tokens_per_batch": batch} | rest)


def places(kind: str) -> list[str]:
    return [f"{kind}.{layer}" for layer in range(3)]


@pytest.mark.parametrize(
    ("name", "product", "selection", "gathers", "adam"),
    [
        # nanoseconds per token at 16,384 tokens per step: 2dF / 790e12, 2 * 2F / 4.3e12, 4 * 2kd / 4.3e12, 60dF / (4.3e12 N)
        ("A", 47.8, 22.9, 45.7, 16.1),
        ("B", 382.3, 61.0, 274.4, 128.6),
        ("C", 1359.1, 121.9, 487.7, 457.2),
        ("D", 10873.0, 975.4, 487.7, 3657.3),
    ],
)
def test_seconds_are_the_closed_forms(name: str, product: float, selection: float, gathers: float, adam: float):
    found = {part.name: part.seconds / 16_384 * 1e9 for part in parts(job(*SIZES[name]), BALANCE)}
    assert found["encoder product"] == pytest.approx(product, rel=1e-3)
    assert found["top-k"] == pytest.approx(selection, rel=1e-2)
    assert found["decode + gradients"] == pytest.approx(gathers, rel=1e-2)
    assert found["optimiser"] == pytest.approx(adam, rel=1e-2)


@pytest.mark.parametrize(("name", "rate"), [("A", 7.6e6), ("B", 1.18e6), ("C", 0.41e6), ("D", 63e3)])
def test_tokens_per_second_are_those_of_the_sum(name: str, rate: float):
    found = estimate(job(*SIZES[name]), BALANCE)
    assert found.to_dict()["tokens_per_second"] == pytest.approx(rate, rel=0.02)


def test_a_dense_architecture_takes_six_products_in_all_and_no_selection():
    found = {part.name: part for part in parts(job(768, 24_576, None), replace(BALANCE, decode=790e12))}
    assert "top-k" not in found
    # there are the encoder's one, and decoder, latents and two weights
    assert found["decode + gradients"].flops == 4 * found["encoder product"].flops


def test_a_larger_batch_costs_the_optimiser_less_and_nothing_else():
    small, large = (
        {part.name: part.seconds for part in parts(job(*SIZES["A"], tokens=2**20, batch=batch), BALANCE)}
        for batch in (2**12, 2**14)
    )
    assert small.pop("optimiser") == pytest.approx(4 * large.pop("optimiser"))
    assert small == large


CAUSAL = {"d_in": 12, "d_out": 15, "d_sae": 24, "k": 4, "hook_in": places("mlp_in"), "hook_out": places("mlp_out")}


@pytest.mark.parametrize(
    ("config", "encoder", "served"),
    [
        (TopKConfig(d_in=12, d_sae=32, k=4), 12 * 32, 12),
        (
            TopKConfig(d_in=12, d_out=8, d_sae=32, k=4, hook_in="mlp_in.1", hook_out="mlp_out.1", skip=True),
            12 * 32,
            20,
        ),
        (TopKConfig(d_in=12, d_sae=32, k=4, hook_in="mlp_in.1", hook_out="mlp_out.1"), 12 * 32, 24),
        (StandardConfig(d_in=12, d_sae=32), 12 * 32, 12),
        (JumpReLUConfig(d_in=12, d_sae=32), 12 * 32, 12),
        (MatchingPursuitConfig(d_in=12, d_sae=32, k=4), 12 * 32, 12),  # the decoder's rows encode
        (KronConfig(d_in=12, d_sae=32, k=4), 12 * (4 * 2 + 4 * 4), 12),
        (BilinearConfig(d_in=12, d_sae=32, k=4), 2 * 12 * 32, 12),
        (CrossLayerConfig(**CAUSAL), 4 * 24, 27),
        (CrosscoderConfig(d_in=12, d_sae=32, k=4, hook_in=places("resid_post")), 12 * 32, 12),
        (GradientConfig(d_in=12, d_sae=32, k=4, hook_in="resid_post.1"), 12 * 32, 24),
    ],
)
def test_sizes_are_those_of_the_model(config: Any, encoder: int, served: int):
    found = Job.of(config, SAETrainingArguments(output_dir="", total_tokens=64, tokens_per_batch=64))
    assert found.parameters == sum(p.numel() for p in AutoSAE.from_config(config).parameters())
    assert (found.encoder_weights, found.served) == (encoder, served)


@pytest.mark.parametrize("model_type", sorted(registered()))
def test_every_architecture_is_probed_at_a_size_of_its_own_kind(model_type: str):
    """A probe takes a share of the latents, which has to suit the architecture and its places."""
    d_sae = 2**14 - 1  # a multiple of three readers, and half of it is none
    fields: dict[str, Any] = {"d_in": 48, "d_sae": d_sae}
    if model_type == "hf_sae_crosscoder":
        fields |= {"hook_in": places("resid_post"), "k": 32}
    elif model_type == "hf_sae_cross_layer":
        fields |= {"hook_in": places("mlp_in"), "hook_out": places("mlp_out")}
    args = SAETrainingArguments(output_dir="", total_tokens=2**15, tokens_per_batch=1024)
    small, _ = _reduced(registered()[model_type][0](**fields), args)
    assert small.d_sae < d_sae
    assert Job.of(small, args).parameters == sum(p.numel() for p in AutoSAE.from_config(small).parameters())


def test_the_encoder_is_timed_as_it_is(tmp_path: Path):
    """Kron's has few rows, and the rest of a step what it takes."""
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=4096, tokens_per_batch=512)
    config = KronConfig(d_in=64, d_sae=1024, k=8)
    found = estimate(Job.of(config, args), probe(config, args))
    encoder = next(part for part in found.parts if part.name == "encoder product")
    assert encoder.flops == 2 * 4096 * 64 * (128 * 2 + 128 * 4)


def test_evaluation_replaces_each_of_several_places(tmp_path: Path):
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=64, tokens_per_batch=64)
    for config, passes in ((CrossLayerConfig(**CAUSAL), 7), (TopKConfig(d_in=12, d_sae=32, k=4), 4)):
        run = Job.of(config, args, eval_tokens=1000)
        run = replace(run, host_parameters=10**6)
        found = {part.name: part.seconds for part in parts(run, replace(BALANCE, host=1e4, product=1e30))}
        assert found["evaluation"] == pytest.approx(passes * 1000 / 1e4)


def test_memory_is_what_a_run_allocates(tmp_path: Path):
    host, tokenizer = default_host()
    stream = ActivationStream(host, tokenizer, stdlib_corpus("test"), ["resid_post.0"], ring_bytes=16 * 2**20)
    config = TopKConfig(d_in=192, d_sae=768, k=8, hook_in="resid_post.0")
    args = SAETrainingArguments(
        output_dir=str(tmp_path), total_tokens=51_200, tokens_per_batch=512, save_steps=50, disable_tqdm=True
    )
    held = memory(Job.of(config, args, reader=stream.reader, ring_bytes=stream.ring_bytes))
    trainer = SAETrainer(AutoSAE.from_config(config), args, stream)
    trainer.train()
    sae, optimizer = trainer.trainees[0].sae, trainer.trainees[0].optimizer
    assert held["weights"] == sum(p.nbytes for p in sae.parameters())
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    assert held["optimiser"] == pytest.approx(moments, rel=0.01)
    assert held["ring"] == pytest.approx(stream.ring.nbytes + stream.rows.rows.nbytes, rel=0.15)
    assert held["host"] == sum(p.nbytes for p in host.parameters())
    assert held["pre-activations"] == 512 * 768 * 4
    # and on disk, the whole folder of a checkpoint
    folder = tmp_path / "checkpoint-50"  # where the ring is full: at the end it is empty
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    estimated = Job.of(config, args, reader=stream.reader, ring_bytes=stream.ring_bytes).checkpoint_bytes
    assert estimated == pytest.approx(written, rel=0.25)


@pytest.mark.parametrize(
    ("change", "rates", "part", "remedy"),
    [
        ({"host_parameters": 10**9}, {"host": 1e3}, "host forward", "hf-sae cache write"),
        ({}, {}, "encoder product", "--bf16"),
        ({"bf16": True}, {"bfloat16": False}, "encoder product", "--no-bf16"),
        ({}, {"optimizer": 1e9}, "optimiser", "--tokens-per-batch"),
        ({}, {"overhead": 1.0}, "calls and counters", "--tokens-per-batch"),
        ({"save_steps": 1}, {"disk": 1e6}, "checkpoints", "--save-steps"),
        ({"k_aux": 384, "dead_share": 1.0}, {}, "AuxK", "aux_coefficient=0"),
        ({"eval_tokens": 10**7}, {}, "evaluation", "--eval-tokens"),
        ({"cached": True}, {"disk": 1e6}, "reading the cache", "disk"),
        ({}, {"top_k": 1e9}, "top-k", "--d-sae"),
        ({}, {"decode": 1e9}, "decode + gradients", "--k"),
    ],
)
def test_the_advice_is_about_the_part_that_dominates(change: dict, rates: dict, part: str, remedy: str):
    machine = replace(BALANCE, **rates)
    found = estimate(replace(job(*SIZES["A"]), **change), machine)
    assert found.advice[0].startswith(f"{part} is ")
    assert remedy in found.advice[0]
    assert len(found.advice) == 1


def test_bfloat16_is_not_advised_where_it_is_slow():
    for rates in ({}, {"top_k": 1e9}):
        assert "bf16" not in estimate(job(*SIZES["A"]), replace(BALANCE, bfloat16=False, **rates)).advice[0]


def test_evaluation_is_four_passes_through_the_whole_host():
    run = job(*SIZES["A"], eval_tokens=1000, host_parameters=10**6, host_share=0.5)
    found = {part.name: part.seconds for part in parts(run, replace(BALANCE, host=1e4, product=1e30))}
    # 10,000 tokens a second up to the middle are 5,000 to the end
    assert found["evaluation"] == pytest.approx(4 * 1000 / 5e3)


def test_what_does_not_fit_is_said():
    run = job(*SIZES["D"], tokens=2**20, save_steps=1)
    lines = advice(run, replace(BALANCE, memory=10**9, free_disk=10**9), parts(run, BALANCE))
    assert lines[1].startswith("memory: ")
    assert lines[2].startswith("disk: ")
    assert "--save-total-limit" in lines[2]


def test_seconds_of_a_real_run_are_within_a_factor_of_two(tmp_path: Path):
    config = TopKConfig(d_in=192, d_sae=3072, k=32)
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=10 * 2048, tokens_per_batch=2048)
    trainer, x = SAETrainer(AutoSAE.from_config(config), args), torch.randn(2048, 192)
    found = estimate(Job.of(config, args), probe(config, args))
    trainer.training_step(x)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        trainer.training_step(x)
        seconds.append(time.perf_counter() - start)
    expected = sum(part.seconds for part in found.parts if part.name != "AuxK") / 10
    assert 0.5 < expected / min(seconds) < 2


def test_a_probe_takes_two_seconds_and_nothing_stays(tmp_path: Path):
    config = TopKConfig(d_in=256, d_sae=65_536, k=32, k_aux=128)
    args = SAETrainingArguments(output_dir=str(tmp_path / "new"), total_tokens=4096, tokens_per_batch=4096)
    best = 10.0
    for _ in range(2):  # of two: the machine may be busy
        start = time.perf_counter()
        machine = probe(config, args)
        best = min(best, time.perf_counter() - start)
    assert best < 4
    assert min(machine.product, machine.top_k, machine.decode, machine.optimizer, machine.disk) > 0
    assert machine.host == float("inf")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hf_sae.training.estimate import machine

    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full)
    with pytest.raises(DataError, match=r"No space left.*another output_dir"):
        machine._disk_seconds(tmp_path / "run")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12, "12 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"), (183_600, "2 d 3 h")],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (12e6, "12 MB"), (3.4e9, "3.4 GB")]
)
def test_sizes(n: float, text: str):
    assert size(n) == text


def test_an_estimate_is_json_and_a_table():
    found = estimate(job(*SIZES["A"], save_steps=1), replace(BALANCE, host=float("inf")))
    assert isinstance(found, Estimate)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["memory"]["total"] == sum(n for name, n in values["memory"].items() if name != "total")
    assert values["seconds"] == pytest.approx(sum(part["seconds"] for part in values["parts"]))
    lines = found.to_table().splitlines()
    assert lines[0].split()[:3] == ["part", "time", "share"]
    assert any(line.startswith("checkpoints") for line in lines)
