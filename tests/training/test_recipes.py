"""`train_sae`: which architecture it makes of which places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sae import AutoSAE, SAETrainingArguments, train_sae
from hf_sae.errors import HookPointError
from hf_sae.models import CrosscoderSAE, CrossLayerSAE, GradientConfig, SAEConfig, TopKConfig, TopKSAE
from hf_sae.training.recipes import open_stream
from tests.activations.toy import tiny_host
from tests.toy_text import documents, tokenizer


def train(folder: Path, **places: Any) -> Any:
    options = {"context_length": 16, "total_tokens": 64, "expansion": 2, "k": 2, "output_dir": str(folder)}
    return train_sae(tiny_host(), documents(60), tokenizer=tokenizer(), **options | places)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"layer": 1}, (TopKSAE, "resid_post.1", None)),
        ({"hook_in": ["resid_post.1"]}, (TopKSAE, "resid_post.1", None)),
        ({"hook_in": ["mlp_in.1"], "hook_out": ["mlp_out.1"]}, (TopKSAE, "mlp_in.1", "mlp_out.1")),
        ({"hook_in": ("resid_post.0", "resid_post.1")}, (CrosscoderSAE, ["resid_post.0", "resid_post.1"], None)),
        (
            {"hook_in": ["mlp_in.0", "mlp_in.1"], "hook_out": ["mlp_out.0", "mlp_out.1"]},
            (CrossLayerSAE, ["mlp_in.0", "mlp_in.1"], ["mlp_out.0", "mlp_out.1"]),
        ),
        (
            {"hook_in": ["mlp_in.0", "mlp_in.1"], "hook_out": "mlp_out.1"},
            (CrossLayerSAE, ["mlp_in.0", "mlp_in.1"], "mlp_out.1"),
        ),
    ],
)
def test_the_places_choose_the_architecture(tmp_path: Path, places: dict[str, Any], expected: Any) -> None:
    sae = train(tmp_path, **places)
    assert (type(sae), sae.config.hook_in, sae.config.hook_out) == expected
    loaded = AutoSAE.from_pretrained(tmp_path).config
    assert (loaded.hook_in, loaded.hook_out, loaded.k) == (*expected[1:], 2)


def test_no_place_is_said(tmp_path: Path) -> None:
    for places in ({}, {"hook_in": []}):
        with pytest.raises(HookPointError, match="needs a place"):
            train(tmp_path, **places)


@pytest.mark.parametrize(
    "config",
    [
        TopKConfig(d_in=24, d_sae=48, hook_in="resid_post.1"),
        TopKConfig(d_in=24, d_sae=48, hook_in="mlp_in.1", hook_out="mlp_out.1"),
        GradientConfig(d_in=24, d_sae=48, hook_in="resid_post.1"),
    ],
    ids=["sae", "transcoder", "gradient"],
)
def test_the_ring_is_an_eighth_of_the_run(tmp_path: Path, config: SAEConfig) -> None:
    host = tiny_host()
    width = host.config.hidden_size
    config = type(config)(**config.to_dict() | {"d_in": width, "d_out": width})
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=64_000, tokens_per_batch=100)
    stream = open_stream(host, tokenizer(), documents(60), config, args, context_length=16)
    assert stream.ring.capacity == pytest.approx(8_000, rel=0.1)
