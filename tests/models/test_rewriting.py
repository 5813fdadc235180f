"""Thresholded models as JumpReLU, and decoder norms folded: the outputs stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_sae.models import (
    SAE,
    AutoSAE,
    BatchTopKConfig,
    ConfigError,
    FeatureChoiceConfig,
    JumpReLUConfig,
    JumpReLUSAE,
    MatryoshkaConfig,
    StandardConfig,
    StandardSAE,
    TopKConfig,
)
from hf_sae.models.rewriting import as_jumprelu, fold_decoder_norms


FIELDS = {"d_in": 8, "d_sae": 24, "hook_in": "resid_post.0"}
THRESHOLDED = {"batch_topk": BatchTopKConfig, "matryoshka": MatryoshkaConfig, "feature_choice": FeatureChoiceConfig}
KINDS = [
    {},
    {"input_norm": "layer_norm"},
    {"input_norm": "scalar", "input_scale": 0.5},
    {"hook_out": "mlp_out.0", "d_out": 6, "skip": True, "input_norm": "unit_rms"},
]


def build(config_class, free_norms: bool = False, **changes) -> SAE:
    torch.manual_seed(0)
    own = {name: 3 for name in ("k", "target_l0") if name in config_class.__dataclass_fields__}
    fields = FIELDS | own | changes
    sae = AutoSAE.from_config(config_class(**fields)).double().eval()
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if "threshold" in name:
                tensor.uniform_(0.2, 0.5)
            elif tensor.ndim == 1 or "skip" in name:
                tensor.normal_(std=0.2)
        if free_norms:
            sae.decoder.weight.mul_(torch.rand(24, 1).double() * 3 + 0.1)
    return sae


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("name", THRESHOLDED)
def test_the_jumprelu_has_equal_outputs(name: str, changes: dict, tmp_path: Path) -> None:
    sae, x = build(THRESHOLDED[name], **changes), torch.randn(50, 8).double()
    ours = sae.to_jumprelu()
    assert type(ours) is JumpReLUSAE
    assert 0 < float(ours.encode_sparse(x).l0()) < 23
    torch.testing.assert_close(ours.encode(x), sae.encode(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(ours(x).reconstruction, sae(x).reconstruction, atol=1e-12, rtol=0)
    assert (ours.config.hook_in, ours.config.target_l0, ours.config.provenance["rewritten_from"]) == (
        "resid_post.0",
        3,
        f"hf_sae_{name}",
    )
    ours.decoder.weight.data.zero_()  # a copy
    assert sae.decoder.weight.abs().sum() > 0
    low = sae.float().to_jumprelu()
    low.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoSAE.from_pretrained(tmp_path).encode(x), sae.encode(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", THRESHOLDED)
def test_half_precision_keeps_the_threshold_in_full(name: str) -> None:
    sae = build(THRESHOLDED[name]).bfloat16()
    sae.threshold = torch.rand(sae.threshold.shape) / 2
    ours, x = sae.to_jumprelu(), torch.randn(50, 8).bfloat16()
    assert (ours.dtype, ours.threshold.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(ours.encode(x), sae.encode(x))


@pytest.mark.parametrize("name", THRESHOLDED)
def test_without_a_threshold_there_is_nothing_to_rewrite(name: str) -> None:
    sae = build(THRESHOLDED[name])
    sae.threshold.fill_(-1.0)
    with pytest.raises(ConfigError, match="estimate_threshold"):
        sae.to_jumprelu()


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("config", [StandardConfig, JumpReLUConfig, *THRESHOLDED.values()])
def test_folded_norms_give_unit_rows_and_equal_outputs(config: type, changes: dict) -> None:
    sae, x = build(config, free_norms=True, **changes), torch.randn(50, 8).double()
    with torch.no_grad():
        sae.decoder.weight[3] = 0
    folded = fold_decoder_norms(sae)
    assert type(folded) is (StandardSAE if config is StandardConfig else JumpReLUSAE)
    norms = torch.ones(24).double()
    norms[3] = 0
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), norms)
    torch.testing.assert_close(folded(x).reconstruction, sae(x).reconstruction, atol=1e-12, rtol=0)
    assert torch.equal(folded.encode(x) != 0, sae.encode(x) != 0)
    assert not torch.allclose(folded.encode(x), sae.encode(x))


def test_folding_twice_changes_nothing_more() -> None:
    once = fold_decoder_norms(build(JumpReLUConfig, free_norms=True))
    for name, tensor in fold_decoder_norms(once).state_dict().items():
        torch.testing.assert_close(tensor, once.state_dict()[name])


def test_a_selection_by_comparison_is_not_folded() -> None:
    with pytest.raises(ConfigError, match="TopKSAE compares latents"):
        fold_decoder_norms(build(TopKConfig))


def test_other_encoder_rows_and_thresholds_of_each_latent() -> None:
    sae = build(StandardConfig)
    weight, bias, threshold = torch.randn(24, 8).double(), torch.randn(24).double(), torch.rand(24).double()
    ours, x = as_jumprelu(sae, threshold, weight, bias), torch.randn(9, 8).double()
    pre = (x - sae.b_dec) @ weight.T + bias
    torch.testing.assert_close(ours.encode(x), pre * (pre > threshold))
    assert ours.config.target_l0 is None
