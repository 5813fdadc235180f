"""Attribution to heads and sources: both sums are exact, in hosts with and without grouped keys."""

from __future__ import annotations

import pytest
import torch

from hf_sae import default_host
from hf_sae.analysis import head_attribution, head_shares, observe_attention
from hf_sae.errors import ConfigError, HookPointError
from hf_sae.hooks import read
from hf_sae.hosts import resolve, width_of
from hf_sae.models import TopKConfig, TopKSAE
from tests.hosts_zoo import HEADS, gpt2, llama


def attention_sae(host, point: str = "attn_z.1", **changes) -> TopKSAE:
    torch.manual_seed(0)
    config = {"d_in": width_of(host, point), "d_sae": 24, "k": 4, "hook_in": point, "input_norm": "scalar"}
    sae = TopKSAE(TopKConfig(**config | {"input_scale": 0.7} | changes)).double()
    with torch.no_grad():
        sae.encoder.bias.normal_()
        sae.decoder.bias.normal_()
    return sae


@pytest.mark.parametrize("build", [gpt2, llama, lambda: default_host()[0]], ids=["gpt2", "grouped", "default"])
def test_heads_add_up_to_the_pre_activation_and_sources_to_the_heads(build) -> None:
    torch.manual_seed(0)
    host = build().eval().double()
    sae, before = attention_sae(host), host.config._attn_implementation
    inputs = {"input_ids": torch.randint(3, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    latents = [0, 5, 23]
    found = head_attribution(sae, host, latents, **inputs)
    assert host.config._attn_implementation == before
    host.set_attn_implementation("eager")  # Llama's softmax is in float32, where kernels differ in the seventh digit
    pre = sae.pre_activations(sae.normalize(read(host, "attn_z.1", **inputs)["attn_z.1"])[0])[..., latents]
    torch.testing.assert_close(found.heads.sum(2) + found.bias, pre, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.sources.sum(3), found.heads, atol=1e-9, rtol=1e-9)
    future = torch.ones(7, 7).triu(1).bool()
    assert (found.sources.permute(0, 2, 4, 1, 3)[..., future] == 0).all()
    assert found.heads.abs().sum(2).min() > 0


def test_the_place_is_the_input_of_the_output_projection_of_all_query_heads() -> None:
    host = llama()
    site = resolve(host, "attn_z.1")
    assert site.place.path.endswith("o_proj")
    assert site.place.side == "input"
    assert width_of(host, "attn_z.1") == host.config.num_attention_heads * host.config.head_dim
    assert host.config.num_key_value_heads < host.config.num_attention_heads


def test_shares_of_heads() -> None:
    sae = attention_sae(gpt2())
    with torch.no_grad():
        sae.decoder.weight.zero_()
        sae.decoder.weight[0, :8] = 1.0  # one head
        sae.decoder.weight[1, ::8] = 2.0  # all alike
    shares = head_shares(sae, HEADS)
    assert shares[0].tolist() == [1, 0, 0, 0]
    assert shares[1].tolist() == [0.25] * 4
    with pytest.raises(ConfigError, match="5 heads"):
        head_shares(sae, 5)


def test_what_cannot_be_attributed_says_so() -> None:
    host, ids = gpt2(), torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ConfigError, match="layer_norm"):
        head_attribution(attention_sae(host, input_norm="layer_norm"), host, [0], input_ids=ids)
    with pytest.raises(HookPointError, match="attn_z"):
        head_attribution(attention_sae(host, "resid_post.1").float(), host, [0], input_ids=ids)


def test_the_attention_comes_back_after_an_error() -> None:
    host = gpt2()
    before = host.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), observe_attention(host, "attn_z.0"):
        raise RuntimeError("stop")
    assert host.config._attn_implementation == before
