"""A host that an autoencoder was not trained on is said once, wherever they meet."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from hf_sae import TopKConfig, TopKSAE, default_host, splice, steer, top_features
from hf_sae.hosts import fingerprint
from hf_sae.steering import add
from tests.hosts_zoo import ZOO, text_inputs, with_lora


def sae_for(width: int, **config: Any) -> TopKSAE:
    return TopKSAE(TopKConfig(d_in=width, d_sae=64, k=4, hook_in="resid_post.1", **config)).eval()


def warned(action: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "another host" in str(w.message)]


def spliced(host: Any, sae: Any) -> None:
    with splice(host, sae):
        host(**text_inputs())


def steered(host: Any, sae: Any) -> None:
    with steer(host, sae, add({3: 1.0})):
        host(**text_inputs())


@pytest.mark.parametrize("action", [spliced, steered])
def test_once_for_another_and_never_for_the_right_one(action: Any):
    llama, gpt2 = ZOO["llama"](), ZOO["gpt2"]()
    sae = sae_for(32, provenance={"host": fingerprint(llama)})
    assert warned(lambda: action(llama, sae)) == []
    messages = warned(lambda: [action(gpt2, sae) for _ in range(2)])
    assert len(messages) == 1
    assert "'llama'" in messages[0]
    assert "'gpt2'" in messages[0]


def test_an_adapter_changes_nothing():
    llama = ZOO["llama"]()
    sae = sae_for(32, provenance={"host": fingerprint(llama)})
    assert warned(lambda: spliced(with_lora(llama, target_modules=["q_proj"]), sae)) == []


@pytest.mark.parametrize(
    ("trained", "given", "says"),
    [
        ("google/gemma-2-2b", "google/gemma-2-2b-it", True),
        ("google/gemma-2-2b", "unsloth/Gemma-2-2b", False),
        ("gpt2", "openai-community/gpt2-xl", False),
        ("google/gemma-2-2b", "", False),
    ],
)
def test_an_imported_one_knows_a_name_only(trained: str, given: str, says: bool):
    host = ZOO["llama"]()
    host.config._name_or_path = given
    assert bool(warned(lambda: spliced(host, sae_for(32, base_model=trained)))) is says


def test_top_features_says_it_too():
    host, tokenizer = default_host()
    sae = sae_for(host.config.hidden_size, provenance={"host": {"hidden_size": 999}})
    assert "999" in warned(lambda: top_features(sae, host, tokenizer, "import os"))[0]


def test_a_module_without_config_is_left_alone():
    host = torch.nn.Sequential(torch.nn.Linear(32, 32))
    sae = TopKSAE(TopKConfig(d_in=32, d_sae=64, k=4, hook_in="0", provenance={"host": {"hidden_size": 1}}))

    def run() -> None:
        with splice(host, sae):
            host(torch.randn(2, 32))

    assert warned(run) == []
