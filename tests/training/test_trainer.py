from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from hf_sae.errors import CheckpointError, ConfigError, DataError, HookPointError
from hf_sae.models import AutoSAE, JumpReLUConfig, JumpReLUSAE, TopKConfig, TopKSAE
from hf_sae.training import SAETrainingArguments, checkpoint
from tests.training.planted import planted, topk, trainer, weights


def test_recovers_a_planted_dictionary(tmp_path: Path) -> None:
    x, dictionary = planted(120_000)
    sae = topk()
    figures = trainer(sae, tmp_path, x, dead_after_tokens=5_000, learning_rate=1e-2).train()
    cosines = (sae.W_dec @ dictionary.T).abs().max(dim=0).values
    assert (cosines > 0.95).float().mean() > 0.9
    assert figures["fvu"] < 0.05
    assert figures["l0"] <= 2
    loaded = AutoSAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.W_dec, sae.W_dec)
    norms = sae.W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("target", [2.0, 6.0])
def test_asked_l0_comes_true_within_five_percent(tmp_path: Path, target: float) -> None:
    x, _ = planted(400_000, d=24, features=64, active=4)
    torch.manual_seed(0)
    config = JumpReLUConfig(d_in=24, d_sae=96, hook_in="resid_post.0", input_norm="scalar", target_l0=target)
    sae = JumpReLUSAE(config)
    trainer(sae, tmp_path, x, size=512, learning_rate=2e-3).train()
    fresh, _ = planted(20_000, d=24, features=64, active=4, seed=5)
    l0 = float(sae.eval().encode_sparse(fresh).l0())
    assert abs(l0 / target - 1) < 0.05, l0


def test_accumulation_gives_the_same_weights(tmp_path: Path) -> None:
    x, _ = planted(2048)
    whole, parts = topk(), topk()
    trainer(whole, tmp_path / "a", x).train()
    trainer(parts, tmp_path / "b", x, gradient_accumulation_steps=3).train()
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-5, rtol=1e-4)


def test_many_in_one_pass_equal_each_alone(tmp_path: Path) -> None:
    x, _ = planted(2048)
    together = {"k2": topk(), "k4": topk(k=4, seed=1)}
    trainer(together, tmp_path / "both", x).train()
    for name, alone in {"k2": topk(), "k4": topk(k=4, seed=1)}.items():
        trainer(alone, tmp_path / name, x).train()
        assert torch.equal(weights(together[name]), weights(alone))
        assert torch.equal(AutoSAE.from_pretrained(tmp_path / "both", subfolder=name).W_dec, alone.W_dec)


def test_same_seed_same_bits_and_scale_does_not_matter(tmp_path: Path) -> None:
    x, _ = planted(2048)
    runs = []
    for scale in (1.0, 1.0, 64.0):  # a power of two: the arithmetic is the same to the bit
        sae = topk(input_norm="scalar")
        trainer(sae, tmp_path, x * scale).train()
        runs.append(weights(sae))
    assert torch.equal(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[2], atol=1e-4, rtol=1e-3)


def test_transcoder_trains_on_pairs_and_dicts(tmp_path: Path) -> None:
    x, _ = planted(20_480)
    y = x @ torch.randn(16, 10, generator=torch.Generator().manual_seed(1)) / 4
    runs = []
    for batches in (
        list(zip(x.split(256), y.split(256), strict=True)),
        [{"mlp_in.0": a, "mlp_out.0": b} for a, b in zip(x.split(256), y.split(256), strict=True)],
    ):
        torch.manual_seed(0)
        sae = TopKSAE(
            TopKConfig(d_in=16, d_out=10, d_sae=48, k=4, hook_in="mlp_in.0", hook_out="mlp_out.0", skip=True)
        )
        run = trainer(sae, tmp_path, x, learning_rate=2e-2)
        run.stream = batches
        assert run.train()["fvu"] < 0.2
        runs.append(weights(sae))
    assert torch.equal(*runs)


def test_dead_latents_are_counted_in_tokens(tmp_path: Path) -> None:
    sae = topk(aux_coefficient=0)
    run = trainer(sae, tmp_path, dead_after_tokens=600)
    x, _ = planted(256)
    run.training_step(x)
    with torch.no_grad():
        sae.encoder.bias[5] = -1e4
    for expected in (256, 512, 768):
        run.training_step(x)
        assert int(run.trainees[0].state.tokens_since_fired[5]) == expected
        assert bool(run.trainees[0].state.dead()[5]) == (expected > 600)
    assert run.tokens == 4 * 256


def test_schedule() -> None:
    args = SAETrainingArguments(
        output_dir="x", total_tokens=1000, tokens_per_batch=10, learning_rate=1.0, warmup_share=0.1, decay_share=0.2
    )
    rates = [args.learning_rate_at(step, 4096) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:81] == [1.0] * 72
    assert rates[99] == pytest.approx(0.05)
    assert rates == sorted(rates[:10]) + rates[10:80] + sorted(rates[80:], reverse=True)


def test_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    x, _ = planted(4096)
    straight = {"a": topk(), "b": topk(k=3, k_start=6, k_anneal_share=0.8)}
    trainer(straight, tmp_path / "straight", x, dead_after_tokens=700).train()
    first = trainer(
        {"a": topk(), "b": topk(k=3, k_start=6, k_anneal_share=0.8)}, tmp_path / "cut", x, dead_after_tokens=700
    )
    for batch in x.split(256)[:7]:
        first.training_step(batch)
    first.save_checkpoint()
    second_models = {"a": topk(seed=8), "b": topk(k=3, k_start=6, k_anneal_share=0.8, seed=9)}
    trainer(second_models, tmp_path / "cut", x, dead_after_tokens=700).train(resume_from_checkpoint=True)
    for name, sae in straight.items():
        assert torch.equal(weights(second_models[name]), weights(sae))


def test_checkpoint_is_a_model_and_old_ones_go(tmp_path: Path) -> None:
    x, _ = planted(2048)
    trainer(topk(), tmp_path, x, save_steps=2, save_total_limit=2).train()
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    assert torch.equal(
        AutoSAE.from_pretrained(tmp_path / "checkpoint-8").W_dec, AutoSAE.from_pretrained(tmp_path).W_dec
    )
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"checkpoint-6", "checkpoint-8", "config.json", "model.safetensors", "training_log.json"}


def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = planted(512)
    run = trainer(topk(), tmp_path, x)
    run.training_step(x[:256])
    run.save_checkpoint()
    run.training_step(x[256:])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("hf_sae.training.checkpoint.save_file", "hf_sae.models.modeling_sae.SAE.save_pretrained"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, full)
            with pytest.raises(CheckpointError, match="No space left"):
                run.save_checkpoint()
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_model_save_on_a_full_disk_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = topk()
    sae.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    sae.feature_stats = {"density": torch.rand(48), "maximum": torch.rand(48)}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_sae.models.saving.save_file", full)
    with torch.no_grad():
        sae.encoder.bias.fill_(3)
    with pytest.raises(CheckpointError, match="No space left"):
        sae.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    x, _ = planted(512)
    with pytest.raises(CheckpointError, match="checkpoint"):
        trainer(topk(), tmp_path, x).train(resume_from_checkpoint=True)
    run = trainer(topk(), tmp_path, x)
    run.training_step(x[:256])
    folder = run.save_checkpoint()
    with pytest.raises(CheckpointError, match="tokens_per_batch"):
        trainer(topk(), tmp_path, x, size=128).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="other"):
        trainer({"other": topk()}, tmp_path, x).train(resume_from_checkpoint=str(folder))
    (folder / "optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="optimizer"):
        trainer(topk(), tmp_path, x).train(resume_from_checkpoint=True)


def test_bad_batches(tmp_path: Path) -> None:
    run = trainer(topk(), tmp_path)
    with pytest.raises(HookPointError, match="d_in=16"):
        run.training_step(torch.randn(8, 15))
    with pytest.raises(HookPointError, match=r"resid_post\.0"):
        run.training_step({"resid_post.1": torch.randn(8, 16)})
    with pytest.raises(DataError, match="NaN"):
        run.training_step(torch.full((8, 16), torch.nan))
    x, _ = planted(64)
    run.training_step(x)
    before = weights(run.trainees[0].sae).clone()
    x[3, 3] = torch.inf
    with pytest.raises(DataError, match="NaN or infinite"):
        run.training_step(x)
    assert torch.equal(weights(run.trainees[0].sae), before)


def test_data_that_ends_early(tmp_path: Path) -> None:
    x, _ = planted(512)
    with pytest.raises(DataError, match="512 of 5,000"):
        trainer(topk(), tmp_path, x, total_tokens=5000).train()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"total_tokens": 0}, "total_tokens"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"decay_share": 2.0}, "decay_share"),
        ({"push_to_hub": True}, "hub_model_id"),
    ],
)
def test_bad_arguments(change: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SAETrainingArguments(output_dir="x", **change)


def test_token_is_never_shown(tmp_path: Path) -> None:
    x, _ = planted(256)
    run = trainer(topk(), tmp_path, x, hub_token="hf_secret")
    run.train()
    run.save_checkpoint()
    assert "hf_secret" not in repr(run.args)
    assert all("hf_secret" not in p.read_text(errors="ignore") for p in tmp_path.rglob("*.json"))


def test_health_speaks_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, _ = planted(4096)
    sae = topk()
    run = trainer(sae, tmp_path, x, logging_steps=1, learning_rate=1e-9)
    run.training_step(x[:256])
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e4)
    run.train()
    assert sum("no latent fires" in r.message for r in caplog.records) == 1


def test_statistics_of_earlier_weights_do_not_outlive_them(tmp_path: Path) -> None:
    sae = topk()
    sae.feature_stats = {"density": torch.zeros(48), "maximum": torch.zeros(48)}
    sae.save_pretrained(tmp_path / "before")
    sae = AutoSAE.from_pretrained(tmp_path / "before")
    assert sae.feature_stats is not None
    trainer(sae, tmp_path / "after", planted(512)[0]).train()
    assert sae.feature_stats is None
    assert AutoSAE.from_pretrained(tmp_path / "after").feature_stats is None


def test_training_goes_on_from_the_weights_of_a_trained_model(tmp_path: Path) -> None:
    x, _ = planted(8192)
    makers = {
        "topk": topk(input_norm="scalar"),
        "jumprelu": JumpReLUSAE(JumpReLUConfig(d_in=16, d_sae=48, target_l0=None, input_norm="scalar")),
    }
    for name, sae in makers.items():
        trainer(sae, tmp_path / name, x).train()
        loaded = AutoSAE.from_pretrained(tmp_path / name)
        for again in (loaded, sae):  # from disk, and the very object; on other data
            trainer(again, tmp_path / "second", 2 * x[:256] + 1, learning_rate=1e-9).train()
            for key, value in AutoSAE.from_pretrained(tmp_path / name).state_dict().items():
                torch.testing.assert_close(again.state_dict()[key], value, atol=1e-5, rtol=1e-4)
            assert again.config.input_scale == AutoSAE.from_pretrained(tmp_path / name).config.input_scale


def test_a_model_that_was_never_trained_is_fitted_to_the_data(tmp_path: Path) -> None:
    x, _ = planted(512)
    topk(input_norm="scalar").save_pretrained(tmp_path / "fresh")
    sae = AutoSAE.from_pretrained(tmp_path / "fresh")
    trainer(sae, tmp_path / "first", x, learning_rate=1e-9).train()
    torch.testing.assert_close(sae.b_dec, x.mean(0) * sae.config.input_scale, atol=0.2, rtol=0)


def test_bfloat16_where_it_is_slow_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pays, said in ((True, 0), (False, 1)):
        caplog.clear()
        monkeypatch.setattr("hf_sae.training.trainer.bfloat16_pays", lambda kind, pays=pays: pays)
        trainer(topk(), tmp_path, bf16=True)
        trainer(topk(), tmp_path, bf16=False)
        assert sum("bfloat16" in r.message for r in caplog.records) == said


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    x, _ = planted(1024)
    trainer(topk(), tmp_path, x, report_to="tensorboard", logging_steps=1).train()
    logs = [EventAccumulator(str(events)) for events in tmp_path.rglob("events.out.tfevents.*")]
    (log,) = [log for log in logs if "train/l0" in log.Reload().Tags()["scalars"]]
    assert {"train/l0", "train/fvu", "train/loss", "train/dead_fraction"} <= set(log.Tags()["scalars"])
    assert [e.step for e in log.Scalars("train/l0")] == [1, 2, 3, 4]
