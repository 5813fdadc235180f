"""Checkpoints that sparsify saves load here with its own outputs, and what we write loads there.

SAELens 6.54.12 transposes `W_dec`, which is `[d_sae, d]` already, and does not know `transcode`: a test holds that it fails, and on
square matrices gives other numbers without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


pytest.importorskip("sparsify")

from sparsify import SparseCoder, SparseCoderConfig

from hf_sae import AutoSAE, TopKConfig, TopKSAE
from hf_sae.conversion import sparsify
from hf_sae.errors import ConversionError
from tests.conformance.test_saelens import filled
from tests.conversion.layouts import close, inputs


D, F, K = 12, 48, 6


def peer(**options: Any) -> Any:
    return filled(SparseCoder(D, SparseCoderConfig(num_latents=F, k=K, **options)))


@torch.no_grad()
def same(ours: Any, theirs: Any) -> None:
    x = inputs(D).flatten(0, 1)
    found = theirs.encode(x)
    latents = torch.zeros(len(x), F).scatter(-1, found.top_indices, found.top_acts)
    close(ours.encode(x), latents)
    close(ours(x).reconstruction, theirs(x).sae_out)


@pytest.mark.parametrize(("transcode", "skip"), [(False, False), (True, False), (True, True)])
def test_theirs_here_and_back(tmp_path: Path, transcode: bool, skip: bool):
    theirs = peer(transcode=transcode, skip_connection=skip)
    theirs.save_to_disk(tmp_path / "layers.1.mlp")
    ours = AutoSAE.from_pretrained(tmp_path, subfolder="layers.1.mlp")
    same(ours, theirs)
    assert ours.config.hook_in == ("mlp_in.1" if transcode else "layers.1.mlp")
    assert ours.config.hook_out == ("layers.1.mlp" if transcode else None)
    sparsify.write(ours, tmp_path / "layers.2.mlp")
    same(ours, SparseCoder.load_from_disk(tmp_path / "layers.2.mlp"))


def test_an_sae_with_a_skip_is_refused(tmp_path: Path):
    peer(skip_connection=True).save_to_disk(tmp_path / "layers.1")
    with pytest.raises(ValueError, match="skip"):
        AutoSAE.from_pretrained(tmp_path, subfolder="layers.1")


def test_groupmax_is_refused(tmp_path: Path):
    peer(activation="groupmax").save_to_disk(tmp_path / "layers.1")
    with pytest.raises(ConversionError, match="groupmax"):
        AutoSAE.from_pretrained(tmp_path, subfolder="layers.1")


@pytest.mark.parametrize("pre_bias", [True, False])
def test_ours_there_whatever_is_subtracted_and_scaled(tmp_path: Path, pre_bias: bool):
    config = TopKConfig(
        d_in=D, d_sae=F, k=K, hook_in="resid_post.1", pre_bias=pre_bias, input_norm="scalar", input_scale=0.4
    )
    ours = filled(TopKSAE(config))
    sparsify.write(ours, tmp_path)
    same(ours, SparseCoder.load_from_disk(tmp_path))


def test_saelens_reads_another_decoder(tmp_path: Path):
    pytest.importorskip("sae_lens")
    from sae_lens import SAE as PeerSAE  # noqa: N811
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    peer().save_to_disk(tmp_path / "layers.1")
    with pytest.raises(RuntimeError, match="size mismatch for W_dec"):
        PeerSAE.load_from_disk(tmp_path / "layers.1", converter=sparsify_disk_loader)
    square = filled(SparseCoder(D, SparseCoderConfig(num_latents=D, k=K)))
    square.save_to_disk(tmp_path / "layers.2")
    other = PeerSAE.load_from_disk(tmp_path / "layers.2", converter=sparsify_disk_loader)
    torch.testing.assert_close(other.W_dec.float(), square.W_dec.T, atol=0.02, rtol=0.02)  # it is bfloat16 there
    ours = AutoSAE.from_pretrained(tmp_path, subfolder="layers.2")
    assert torch.equal(ours.W_dec, square.W_dec)
    x = inputs(D).flatten(0, 1)
    with torch.no_grad():
        close(ours(x).reconstruction, square(x).sae_out)
