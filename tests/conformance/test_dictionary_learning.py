"""Checkpoints of dictionary_learning's classes load here with their own outputs, and what we write loads there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


pytest.importorskip("dictionary_learning")

from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from hf_sae import AutoSAE, JumpReLUConfig, JumpReLUSAE, StandardConfig, StandardSAE, TopKConfig, TopKSAE
from hf_sae.conversion import dictionary_learning
from hf_sae.errors import ConversionError
from tests.conformance.test_saelens import filled
from tests.conversion.layouts import close, inputs


D, F, K = 12, 48, 6
PEERS = {
    "AutoEncoder": lambda: AutoEncoder(D, F),
    "AutoEncoderNew": lambda: AutoEncoderNew(D, F),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, F, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, K, [16, 32]),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, F),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, F),
}


def peer(name: str) -> Any:
    model = filled(PEERS[name]())
    if name.endswith("BatchTopKSAE"):
        model.threshold.fill_(0.8)
    return model


def save(model: Any, name: str, folder: Path, content: Any = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": F,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
    }
    trainer |= {"submodule_name": "resid_post_layer_3"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    torch.save(model.state_dict() if content is None else content, folder / "ae.pt")


@torch.no_grad()
def same(ours: Any, theirs: Any) -> None:
    x = inputs(D).flatten(0, 1)
    latents = theirs.encode(x)
    assert 0 < (latents != 0).float().mean() < 1
    close(ours.encode(x), latents)
    close(ours(x).reconstruction, theirs(x))


@pytest.mark.parametrize("name", PEERS)
def test_theirs_here(tmp_path: Path, name: str):
    theirs = peer(name)
    save(theirs, name, tmp_path)
    ours = AutoSAE.from_pretrained(tmp_path)
    same(ours, theirs)
    assert ours.config.hook_in == "resid_post.3"
    assert ours.config.base_model == "EleutherAI/pythia-70m-deduped"
    assert ours.config.provenance["data"] == {"context_length": 128}


@pytest.mark.parametrize("name", PEERS)
def test_a_backup_is_what_the_library_would_have_saved(tmp_path: Path, name: str):
    theirs = peer(name)
    save(
        theirs,
        name,
        tmp_path,
        {"step": 5, "ae": theirs.state_dict(), "optimizer": {}, "config": {}, "norm_factor": 3.5},
    )
    if name == "AutoEncoderNew":
        theirs.encoder.bias.data *= 3.5  # the class has no scale_biases of its own
        theirs.decoder.bias.data *= 3.5
    else:
        theirs.scale_biases(3.5)
    same(AutoSAE.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_estimated_is_refused(tmp_path: Path, name: str):
    save(PEERS[name](), name, tmp_path)
    with pytest.raises(ConversionError, match="never estimated"):
        AutoSAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("norm", [{}, {"input_norm": "scalar", "input_scale": 0.4}])
@pytest.mark.parametrize(
    ("config", "model", "theirs"),
    [
        (StandardConfig, StandardSAE, "AutoEncoder"),
        (TopKConfig, TopKSAE, "AutoEncoderTopK"),
        (JumpReLUConfig, JumpReLUSAE, "JumpReluAutoEncoder"),
    ],
)
def test_ours_there(tmp_path: Path, config: Any, model: Any, theirs: str, norm: Any, pre_bias: bool):
    own = {"k": K} if config is TopKConfig else {}
    ours = filled(model(config(d_in=D, d_sae=F, hook_in="resid_post.3", pre_bias=pre_bias, **own, **norm)))
    dictionary_learning.write(ours, tmp_path)
    back = PEERS[theirs]()
    back.load_state_dict(torch.load(tmp_path / "ae.pt", weights_only=True))  # noqa: TID251
    same(ours, back)
    same(AutoSAE.from_pretrained(tmp_path), back)
