"""Training from a cache: the same steps as from its stream, no host, and a resume that is exact."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae import AutoSAE
from hf_sae.activations import CachedStream, Prefetched, Rows, write_cache
from hf_sae.cli import main
from hf_sae.errors import HookPointError
from hf_sae.models import TopKConfig, TopKSAE
from hf_sae.training import SAETrainer, SAETrainingArguments
from tests.activations.toy import Counting, cache, live


POINT = "resid_post.0"


def sae(point: str = POINT, width: int = 6) -> TopKSAE:
    torch.manual_seed(0)
    return TopKSAE(TopKConfig(d_in=width, d_sae=24, k=3, hook_in=point, input_norm="scalar"))


def train(
    stream: Any, folder: Path, tokens: int = 400, model: Any = None, resume: bool = False, **options: Any
) -> Any:
    args = SAETrainingArguments(
        output_dir=str(folder), total_tokens=tokens, tokens_per_batch=20, disable_tqdm=True, **options
    )
    model = model or sae()
    SAETrainer(model, args, stream).train(resume_from_checkpoint=resume or None)
    return model


class Written(Counting):
    """What a stream served in batches of 20, as one long table."""

    def __init__(self, stream: Any) -> None:
        rows = Rows.join([next(stream.batches(20)) for _ in range(50)])
        super().__init__(rows.count, widths=stream.widths)
        self.table, self.facts = dict(rows), stream.info()

    def info(self) -> dict[str, Any]:
        return self.facts


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_training_from_a_cache_is_training_from_its_stream(tmp_path: Path):
    plain = Written(live(repeat=True))
    direct = train(plain, tmp_path / "a", model=sae("resid_post.1", 8), tokens=400)
    write_cache(Written(live(repeat=True)), tmp_path / "c", 1000, rows_per_shard=130, disable_tqdm=True)
    cached = train(CachedStream(tmp_path / "c"), tmp_path / "d", model=sae("resid_post.1", 8), tokens=400)
    ahead = train(Prefetched(CachedStream(tmp_path / "c")), tmp_path / "e", model=sae("resid_post.1", 8), tokens=400)
    assert same(weights(cached), weights(direct))
    assert same(weights(cached), weights(ahead))
    info = cached.config.provenance
    assert info["cache"]["n_tokens"] == 1000
    assert info["host"]["hidden_size"] == 8
    assert info["data"]["context_length"] == 16


@pytest.mark.parametrize("ahead", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, ahead: bool):
    cache(tmp_path / "c")

    def stream() -> Any:
        made = CachedStream(tmp_path / "c", repeat=True)
        return Prefetched(made, depth=3) if ahead else made

    whole = train(stream(), tmp_path / "whole", 400)
    train(stream(), tmp_path / "half", 400, save_steps=7)
    again = train(stream(), tmp_path / "half", 400, resume=True, save_steps=7)
    # and with the other kind of stream, since the position is one number
    other = (
        CachedStream(tmp_path / "c", repeat=True) if ahead else Prefetched(CachedStream(tmp_path / "c", repeat=True))
    )
    mixed = train(other, tmp_path / "half", 400, resume=True, save_steps=7)
    assert same(weights(again), weights(whole))
    assert same(weights(mixed), weights(whole))


def test_a_live_stream_that_is_read_ahead_resumes_to_the_bit(tmp_path: Path):
    def stream() -> Prefetched:
        return Prefetched(live(repeat=True), depth=3)

    model = sae("resid_post.1", 8)
    whole = train(stream(), tmp_path / "whole", 400, model=model)
    train(stream(), tmp_path / "half", 400, model=sae("resid_post.1", 8), save_steps=7)
    again = train(stream(), tmp_path / "half", 400, model=sae("resid_post.1", 8), resume=True, save_steps=7)
    assert same(weights(again), weights(whole))


def test_places_that_the_cache_does_not_hold_are_refused_before_training(tmp_path: Path):
    cache(tmp_path / "c")
    with pytest.raises(HookPointError, match=r"needs 'resid_post\.9'"):
        SAETrainer(
            sae("resid_post.9"), SAETrainingArguments(output_dir=str(tmp_path / "o")), CachedStream(tmp_path / "c")
        )


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    acts, out = tmp_path / "acts", tmp_path / "sae"
    small = ["--n-tokens", 3000, "--rows-per-shard", 1000, "--context-length", 32]
    code, text, _ = run(capsys, "cache", "write", acts, "--hook", "resid_post.0", "--dtype", "int8", *small)
    assert code == 0
    assert "3,000 tokens of default_host" in text
    assert text.splitlines()[-1] == f"Next: hf-sae train --cache {acts} --hook resid_post.0"
    code, text, _ = run(capsys, "cache", "info", acts, "--json")
    facts = json.loads(text)
    assert (facts["n_tokens"], facts["storage"], facts["shards"]) == (3000, "int8", 3)
    assert 0 < facts["points"]["resid_post.0"]["fvu_floor"] < 0.01
    code, text, _ = run(capsys, "cache", "verify", acts)
    assert (code, text.splitlines()[-1]) == (0, f"Next: hf-sae train --cache {acts}")

    with monkeypatch.context() as patch:
        from hf_sae.commands import train_cached

        patch.setattr(train_cached, "load_host", lambda name, **_: (_ for _ in ()).throw(OSError(f"no {name}")))
        options = ["--d-sae", 64, "--k", 8, "--total-tokens", 4096, "--tokens-per-batch", 512]
        code, text, err = run(capsys, "train", "--cache", acts, "--output-dir", out, *options)
    assert code == 0, err
    assert "Not measured on the host: no default_host." in " ".join(err.split())
    config = AutoSAE.from_pretrained(str(out)).config
    assert (config.d_in, config.hook_in, config.base_model) == (192, "resid_post.0", "default_host")
    assert config.provenance["cache"]["storage"] == "int8"
    assert config.provenance["data"]["context_length"] == 32
    code, text, err = run(
        capsys,
        "train",
        "--cache",
        acts,
        "--output-dir",
        out,
        *options,
        "--eval-tokens",
        256,
        "--card-features",
        0,
        "--json",
    )
    assert code == 0, err
    assert json.loads(text)["report"]["metrics"]

    shard = acts / "activations-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    code, text, _ = run(capsys, "cache", "verify", acts, "--json")
    assert code == 2
    assert list(json.loads(text)["damaged"]) == [shard.name]
    code, _, err = run(capsys, "train", "--cache", acts, "--output-dir", out, *options)
    assert code == 2
    assert f"'{shard.name}' is damaged" in " ".join(err.split())
    code, text, err = run(
        capsys, "train", "--cache", acts, "--output-dir", out, *options, "--eval-tokens", 0, "--skip-corrupt"
    )
    assert code == 0
    assert "tokens of damaged shards were passed over" in " ".join(err.split())


def test_gradients_are_written_as_the_advice_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    acts, train = tmp_path / "acts", ["train", "--cache", tmp_path / "acts", "--arch", "gradient", "--d-sae", 64]
    small = ["--n-tokens", 1000, "--context-length", 32]
    run(capsys, "cache", "write", acts, "--hook", "resid_post.0", *small)
    code, _, err = run(capsys, *train)
    assert code == 2
    advice = re.search(r"`hf-sae (cache write) FOLDER (.*)` writes one that does", " ".join(err.split()))
    assert advice is not None
    shutil.rmtree(acts)
    code, _, err = run(capsys, *advice[1].split(), acts, *advice[2].split(), *small)
    assert code == 0, err
    options = ["--total-tokens", 1024, "--tokens-per-batch", 256, "--eval-tokens", 0, "--output-dir", tmp_path / "sae"]
    code, _, err = run(capsys, *train, *options)
    assert code == 0, err
    assert AutoSAE.from_pretrained(str(tmp_path / "sae")).config.hook_in == "resid_post.0"
    code, text, err = run(capsys, *train, *options, "--dry-run", "--json")
    assert json.loads(text)["job"]["served"] == 2 * 192


def test_mistakes_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cache(tmp_path / "c")
    for arguments, message in (
        (["cache", "write", tmp_path / "x"], "no place to read"),
        (["cache", "write", tmp_path / "x", "--layer", 0, "--dtype", "int4"], "is none of float32"),
        (["cache", "info", tmp_path / "none"], "there is no repo|is neither a folder|holds no|repo id"),
        (["train", "--cache", tmp_path / "c"], "several places: give --hook"),
        (["train", "--cache", tmp_path / "c", "--hook", "mlp_in.7"], "does not hold 'mlp_in.7'"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert re.search(message, " ".join(err.split())), err
