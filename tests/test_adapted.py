"""What takes an SAE takes one with an adapter, and says of it what it says of the merged one."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from hf_sae import default_host, evaluate, steer, top_features
from hf_sae.models import TopKConfig, TopKSAE
from hf_sae.steering import scale


TEXT = ["import os\nimport sys\n", "def main():\n    return 1\n"]


def adapted() -> TopKSAE:
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=192, d_sae=256, k=4, hook_in="resid_post.1")).eval()
    get_peft_model(sae, LoraConfig(target_modules=["encoder"], r=4, init_lora_weights=False))
    return sae.eval()


def test_evaluated_steered_and_shown_as_the_merged_one():
    host, tokenizer = default_host()
    sae = adapted()
    base = adapted()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    merged = adapted().merge_and_unload().eval()
    options = {"n_tokens": 20, "context_length": 16, "progress": False}
    found, wanted, other = (evaluate(one, host, tokenizer, TEXT, **options) for one in (sae, merged, base))
    assert abs(found["fvu"] - wanted["fvu"]) < 1e-5
    assert abs(found["fvu"] - other["fvu"]) > 1e-3, "the adapter changes the figures"
    inputs = tokenizer(TEXT[0], return_tensors="pt")
    latents = top_features(merged, host, tokenizer, TEXT[0]).latents
    assert top_features(sae, host, tokenizer, TEXT[0]).latents == latents
    feature = int(latents[-1][0])
    logits = []
    for one in (sae, merged):
        with torch.no_grad(), steer(host, one, scale({feature: 5.0})):
            logits.append(host(**inputs).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert (logits[0] - host(**inputs).logits).abs().max() > 1e-3
