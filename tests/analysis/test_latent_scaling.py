"""Latent scaling against least squares, and on two models whose shared and own directions are known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hf_sae.analysis import LatentScaling
from hf_sae.models import CrosscoderConfig, CrosscoderSAE


A, B = "a/resid_post.1", "b/resid_post.1"


def crosscoder(**changes) -> CrosscoderSAE:
    torch.manual_seed(0)
    fields = {"d_in": 16, "d_sae": 12, "hook_in": [A, B], "pre_bias": False}
    return CrosscoderSAE(CrosscoderConfig(**fields | changes)).double()


def test_beta_is_the_least_squares_factor() -> None:
    sae, x = crosscoder(input_norm="scalar", input_scales=[2.0, 0.5]), torch.randn(300, 16).double()
    with torch.no_grad():
        sae.decoder.bias.normal_()
    scaling = LatentScaling(sae, B)
    for part in x.split(77):
        scaling.add(part)
    z, normalised = sae.encode(x), sae.normalize(x)[0]
    rest = normalised - z @ sae.W_dec - sae.b_dec
    for latent in (0, 7):
        probe = (z[:, latent, None] * sae.W_dec[latent, 8:]).reshape(-1, 1)
        for place, columns in ((A, slice(0, 8)), (B, slice(8, 16))):
            restored = rest[:, columns] + z[:, latent, None] * sae.W_dec[latent, columns]
            best = torch.linalg.lstsq(probe, restored.reshape(-1, 1)).solution
            torch.testing.assert_close(scaling.beta(place)[latent], best[0, 0])
            best = torch.linalg.lstsq(probe, (z @ sae.W_dec)[:, columns].reshape(-1, 1)).solution
            torch.testing.assert_close(scaling.beta(place, "reconstruction")[latent], best[0, 0])


def test_identical_models_and_a_direction_of_one_alone() -> None:
    sae = crosscoder(d_sae=8)
    with torch.no_grad():  # unit vectors, in both models but for the last two latents: in the second alone
        both = torch.eye(8).double()
        first = both.clone()
        first[6:] = 0
        sae.decoder.weight.copy_(F.normalize(torch.cat([first, both], dim=-1), dim=-1))
        sae.encoder.weight.copy_(torch.cat([first, both], dim=-1) / (1 + (first.sum(-1, keepdim=True))))
        sae.encoder.bias.zero_()
        sae.decoder.bias.zero_()
    z = torch.rand(500, 8, generator=torch.Generator().manual_seed(0)).double()
    scaling = LatentScaling(sae, B)
    scaling.add(torch.cat([z @ first, z @ both], dim=-1))
    for target in ("error", "reconstruction"):
        torch.testing.assert_close(scaling.nu(A, target)[:6], torch.ones(6).double())
    torch.testing.assert_close(scaling.nu(A)[6:], torch.zeros(2).double())
    torch.testing.assert_close(sae.relative_norms(B)[:6], torch.full((6,), 0.5).double())
    assert torch.equal(sae.relative_norms(B)[6:], torch.ones(2).double())


def test_a_latent_that_never_fires_is_not_a_number_and_bad_places_are_named() -> None:
    sae = crosscoder()
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e6)
    scaling = LatentScaling(sae, A)
    with pytest.raises(ValueError, match="nothing yet"):
        scaling.beta(B)
    scaling.add(torch.randn(5, 16).double())
    assert scaling.beta(B).isnan().all()
    with pytest.raises(ValueError, match="c/resid_post"):
        LatentScaling(sae, "c/resid_post.1")
    with pytest.raises(ValueError, match="equal widths"):
        LatentScaling(crosscoder(widths=[4, 12]), A)
