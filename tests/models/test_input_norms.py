"""Each input norm against its formula on one hand-made token, and what decoding undoes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hf_sae.models import ConfigError, StandardConfig, StandardSAE


X = torch.tensor([[1.0, 3.0, 5.0, 11.0]])
EXPECTED = {  # mean 5, squared deviations 16 + 4 + 0 + 36 = 56, squares 1 + 9 + 25 + 121 = 156
    "center": torch.tensor([[-4.0, -2.0, 0.0, 6.0]]),
    "layer_norm": torch.tensor([[-4.0, -2.0, 0.0, 6.0]]) / ((56 / 3) ** 0.5 + 0.5),
    "unit_ln": torch.tensor([[-4.0, -2.0, 0.0, 6.0]]) / (56 / 4 + 0.5) ** 0.5,
    "unit_rms": X / (156 / 4 + 0.5) ** 0.5,
}


def build(**config) -> StandardSAE:
    torch.manual_seed(0)
    return StandardSAE(StandardConfig(d_in=4, d_sae=8, hook_in="resid_post.0", **config)).eval()


@pytest.mark.parametrize("kind", EXPECTED)
def test_formula(kind: str) -> None:
    torch.testing.assert_close(build(input_norm=kind, norm_eps=0.5).normalize(X)[0], EXPECTED[kind])


def test_they_are_torchs_norms_without_gain_and_bias() -> None:
    x = torch.randn(5, 4)
    torch.testing.assert_close(build(input_norm="unit_ln", norm_eps=1e-5).normalize(x)[0], F.layer_norm(x, (4,)))
    rms = F.rms_norm(x, (4,), eps=1e-6)
    torch.testing.assert_close(build(input_norm="unit_rms", norm_eps=1e-6).normalize(x)[0], rms)


@pytest.mark.parametrize("kind", EXPECTED)
def test_an_sae_undoes_it_and_a_transcoder_does_not(kind: str) -> None:
    sae = build(input_norm=kind)
    with torch.no_grad():  # the identity on normalised inputs: pairs of opposite latents
        sae.encoder.weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
        sae.decoder.weight.copy_(sae.encoder.weight)
    x = torch.randn(6, 4) * 3 + 2
    torch.testing.assert_close(sae(x).reconstruction, x, rtol=1e-4, atol=1e-4)
    other = build(input_norm=kind, hook_out="mlp_out.0")
    other.load_state_dict(sae.state_dict())
    torch.testing.assert_close(other(x).reconstruction, other.normalize(x)[0])


def test_a_token_of_zeros_stays_finite() -> None:
    for kind in EXPECTED:
        assert torch.isfinite(
            build(input_norm=kind, norm_eps=0.0 if kind == "unit_rms" else 1e-5)(torch.zeros(1, 4)).reconstruction
        ).all()


def test_a_centred_target_is_compared_without_its_mean() -> None:
    transcoder = build(hook_out="mlp_out.0", center_target=True)
    y = torch.randn(6, 4) + 7
    assert torch.equal(transcoder.comparable(y), y - y.mean(-1, keepdim=True))
    loss = transcoder.train()(X.expand(6, 4), target=y).losses["reconstruction"]
    torch.testing.assert_close(loss, transcoder(X.expand(6, 4), target=y + 3).losses["reconstruction"])
    with pytest.raises(ConfigError, match="center_target"):
        build(center_target=True)
    with pytest.raises(ConfigError, match="norm_eps"):
        build(norm_eps=-1.0)
