"""What a host does for a stream: as little as its places need, in one pass for all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from hf_sae import default_host
from tests.activations.toy import live, tiny_host


def counted(host: Any) -> Counter[str]:
    """How often each module runs, and what the model was called with."""
    runs: Counter[str] = Counter()
    for name, module in host.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
    return runs


@pytest.mark.parametrize("place", ["resid_post.1", "resid_pre.2", "resid_post.2", "final"])
def test_the_host_stops_after_its_last_place_and_never_computes_logits(place: str):
    host = tiny_host()
    runs = counted(host)
    stream = live(host, hook_points=["embed", place])
    runs.clear()  # finding the places may probe a block
    stream.sample(1)
    assert runs["model.layers.0"] > 0
    assert runs["lm_head"] == 0
    if place in ("resid_post.1", "resid_pre.2"):
        assert runs["model.layers.2.self_attn"] == runs["model.norm"] == 0


def test_no_keys_and_values_are_kept():
    host = tiny_host()
    seen: list[dict[str, Any]] = []
    host.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    kept: list[Any] = []
    host.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: kept.append(kwargs.get("past_key_values")), with_kwargs=True
    )
    live(host).sample(1)
    assert seen
    assert all(kwargs["use_cache"] is False for kwargs in seen)
    assert kept
    assert all(cache is None for cache in kept)


def test_packed_rows_leave_no_padding_and_need_no_mask():
    """Every row but the last of all is full, so that attention runs on its causal fast path, without a mask."""
    host = tiny_host()
    masks: list[Any] = []
    shares: list[float] = []
    host.register_forward_pre_hook(
        lambda _, __, kwargs: shares.append(float(kwargs["attention_mask"].float().mean())), with_kwargs=True
    )
    host.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    list(live(host).batches(50))
    assert sum(share < 1 for share in shares) <= 1
    assert sum(mask is not None for mask in masks) <= 1
    assert host.config._attn_implementation == "sdpa"


def test_the_hosts_that_are_loaded_run_on_sdpa():
    assert default_host()[0].config._attn_implementation == "sdpa"
    assert LlamaConfig()._attn_implementation in (None, "sdpa")


def test_all_places_are_read_in_one_pass():
    host = tiny_host()
    runs = counted(host)
    points = ["resid_post.0", "mlp_in.1", "resid_post.1", "attn_out.0"]
    stream = live(host, hook_points=points, ring_bytes=40_000)
    runs.clear()
    list(stream.batches(50))
    assert runs["model.layers.0"] == runs["model.layers.1"] == stream.counts["host_batches"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_hosts_batch_and_the_autoencoders_are_apart(batch_size: int):
    """Rows of text per host batch, tokens per step: neither decides the other."""
    host = tiny_host()
    sizes: list[int] = []
    host.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    stream = live(host, batch_size=batch_size)
    assert {rows.count for rows in list(stream.batches(33))[:-1]} == {33}
    assert set(sizes[:-1]) == {batch_size}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_may_be_on_another_device_than_the_autoencoder():
    from hf_sae.activations import Prefetched

    rows = next(Prefetched(live(tiny_host().to("cuda")), device="cpu").batches(20))
    assert all(x.device.type == "cpu" for x in rows.values())
