"""A host stays where it was put: nothing here moves one that is quantised or device-mapped, and only loading moves any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from hf_sae import ActivationStream, TopKConfig, TopKSAE, capture, default_host, evaluate, splice, steer, top_features
from hf_sae.corpus import stdlib_corpus
from hf_sae.evaluation import check
from hf_sae.hosts.loading import load_host
from hf_sae.steering import add
from tests.hosts_zoo import ZOO


class MovedError(AssertionError):
    """Raised in place of moving."""


def refuse(*_: Any, **__: Any) -> None:
    raise MovedError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved host on a machine that says it has a GPU; `to` of the loaded one raises."""
    ZOO["llama"]().save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hf.LlamaForCausalLM, "to", refuse)
    return tmp_path


def test_a_plain_host_goes_to_the_gpu(folder: Path):
    with pytest.raises(MovedError):
        load_host(str(folder))


@pytest.mark.parametrize("mark", [{"is_quantized": True}, {"hf_device_map": {"": "cpu"}}])
def test_one_that_says_itself_that_it_was_placed_is_not_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mark: dict[str, Any]
):
    for key, value in mark.items():  # as transformers' quantisers and dispatch leave it; no kwarg asked for it
        monkeypatch.setattr(hf.LlamaForCausalLM, key, value, raising=False)
    assert load_host(str(folder))[0].device.type == "cpu"


def test_nothing_else_moves_a_host(monkeypatch: pytest.MonkeyPatch):
    host, tokenizer = default_host()
    for name in ("to", "cuda", "cpu", "float", "half", "bfloat16"):
        monkeypatch.setattr(type(host), name, refuse)
    sae = TopKSAE(TopKConfig(d_in=192, d_sae=64, k=4, hook_in="resid_post.1")).eval()
    ids = tokenizer("import os", return_tensors="pt")
    with capture(host, "resid_post.1"):
        host(**ids)
    for context in (splice(host, sae), steer(host, sae, add({3: 1.0}))):
        with context:
            host(**ids)
    top_features(sae, host, tokenizer, "import os")
    stream = ActivationStream(host, tokenizer, stdlib_corpus("test"), hook_points=["resid_post.1"], ring_bytes=2**22)
    next(iter(stream.batches(64)))
    evaluate(sae, host, tokenizer, ["import os\n" * 20], n_tokens=64, context_length=32, progress=False)
    check(sae, host, tokenizer, ["import os\n" * 20], n_tokens=64, context_length=32, progress=False)
