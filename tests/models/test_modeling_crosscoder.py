"""Crosscoders against plain SAEs, closed forms and two models whose shared and own directions are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import (
    AutoSAE,
    ConfigError,
    CrosscoderConfig,
    CrosscoderSAE,
    StandardConfig,
    StandardSAE,
    TopKConfig,
    TopKSAE,
    TrainingState,
)
from hf_sae.training import SAETrainer, SAETrainingArguments


PLACES = ["resid_post.0", "resid_post.1"]
A, B = slice(0, 5), slice(5, 12)


def crosscoder(seed: int = 0, **changes) -> CrosscoderSAE:
    torch.manual_seed(seed)
    fields = {"d_in": 12, "d_sae": 32, "hook_in": PLACES, "widths": [5, 7], "pre_bias": False}
    sae = CrosscoderSAE(CrosscoderConfig(**fields | changes)).double()
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.decoder.bias.normal_(std=0.1)
    return sae


def without_first_place(sae: CrosscoderSAE, plain):
    """Zeroes what reads and writes the first place, and copies the rest into an SAE of the second."""
    with torch.no_grad():
        sae.encoder.weight[:, A] = 0
        sae.decoder.weight[:, A] = 0
        sae.decoder.bias[A] = 0
        sae.decoder.weight.copy_(F.normalize(sae.decoder.weight, dim=-1))
        for name, parameter in plain.named_parameters():
            source = sae.get_parameter(name)
            parameter.copy_(source if name == "encoder.bias" else source[..., B])
    return sae, plain


@pytest.mark.parametrize("k", [None, 4])
def test_without_one_place_it_is_the_plain_sae_of_the_other(k: int | None) -> None:
    plain = {"d_in": 7, "d_sae": 32, "hook_in": PLACES[1], "pre_bias": False}
    other = StandardSAE(StandardConfig(**plain)) if k is None else TopKSAE(TopKConfig(**plain, k=k))
    sae, other = without_first_place(crosscoder(k=k), other.double())
    x = torch.randn(50, 12, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.encode(x), other.encode(x[:, B]), atol=1e-12, rtol=0)
    torch.testing.assert_close(sae(x).reconstruction[:, B], other(x[:, B]).reconstruction, atol=1e-12, rtol=0)
    assert (sae(x).reconstruction[:, A] == 0).all()
    states = [TrainingState(normaliser=3.0, total_steps=10, step=9) for _ in range(2)]
    x[:, A] = 0  # nothing is missing there
    mine, plains = sae(x, state=states[0], target=x), other(x[:, B], state=states[1], target=x[:, B])
    torch.testing.assert_close(mine.loss, plains.loss, atol=1e-12, rtol=0)
    assert torch.equal(sae.relative_norms(PLACES[1]), torch.ones(32, dtype=torch.double))


def test_loss_is_that_of_the_paper_in_the_units_of_each_place() -> None:
    scales = [2.0, 0.25]
    sae = crosscoder(input_norm="scalar", input_scales=scales, l1_coefficient=0.3, l1_warmup_share=0)
    x = torch.randn(20, 12, dtype=torch.double)
    output = sae(x, target=x, state=TrainingState(normaliser=5.0))
    u = torch.cat([x[:, A] * 2, x[:, B] / 4], dim=-1)
    z = torch.relu(u @ sae.encoder.weight.T + sae.encoder.bias)
    error = u - z @ sae.decoder.weight - sae.decoder.bias
    norms = sae.decoder.weight[:, A].norm(dim=-1) + sae.decoder.weight[:, B].norm(dim=-1)
    torch.testing.assert_close(output.losses["reconstruction"], error.square().sum(-1).mean() / 5)
    torch.testing.assert_close(output.losses["l1"], 0.3 * (z * norms).sum(-1).mean() / math.sqrt(5))
    torch.testing.assert_close(output.reconstruction[:, A], (u - error)[:, A] / 2)
    torch.testing.assert_close(output.reconstruction[:, B], (u - error)[:, B] * 4)


def test_the_latents_that_write_most_are_kept() -> None:
    sae = crosscoder(k=1)
    with torch.no_grad():
        sae.encoder.weight.zero_()
        sae.encoder.bias.zero_()
        sae.encoder.bias[:2] = torch.tensor([1.0, 0.8])
        sae.decoder.weight[0] = F.normalize(torch.tensor([1.0] + [0.0] * 11), dim=0)  # one place: norms sum to 1
        sae.decoder.weight[1] = F.normalize(torch.tensor([1.0] + [0.0] * 10 + [1.0]), dim=0)  # both: to √2
    z = sae.encode(torch.randn(3, 12).double())
    assert (z.nonzero()[:, 1] == 1).all()
    torch.testing.assert_close(z[:, 1], torch.full((3,), 0.8).double())


def test_scales_are_fitted_to_each_place_and_come_back(tmp_path: Path) -> None:
    x = torch.randn(4000, 12, generator=torch.Generator().manual_seed(0)).double() + 1
    x[:, B] *= 50
    sae = crosscoder(input_norm="scalar", k=4)
    sae.initialize_from(x, x, TrainingState())
    variances = sae.normalize(x)[0].var(0, correction=0)
    assert variances[A].mean() == pytest.approx(1)
    assert variances[B].mean() == pytest.approx(1)
    assert sae.config.input_scales is not None
    assert sae.config.input_scales[0] / sae.config.input_scales[1] == pytest.approx(50, rel=0.1)
    found = sae.fvu_by_place(x)
    error = (x - sae(x).reconstruction.detach())[:, B]
    assert found[PLACES[1]] == pytest.approx(float(error.square().sum() / (x[:, B] - x[:, B].mean(0)).square().sum()))
    sae.save_pretrained(tmp_path)
    again = AutoSAE.from_pretrained(tmp_path, dtype=torch.double)
    assert again.config.input_scales == sae.config.input_scales
    assert torch.equal(again(x).reconstruction, sae(x).reconstruction)
    assert list(sae.split(x)) == PLACES
    assert torch.equal(sae.split(x)[PLACES[1]], x[:, B])


def two_models(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations `[n, 32]` of two models of width 16: eight directions in both, four in each alone; and the directions."""
    first = F.normalize(torch.randn(16, 16, generator=torch.Generator().manual_seed(5)), dim=-1)
    second = F.normalize(torch.randn(16, 16, generator=torch.Generator().manual_seed(6)), dim=-1)
    first[12:], second[8:12] = 0, 0  # 0-7 shared, 8-11 in the first, 12-15 in the second
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, 16, generator=generator).topk(2, dim=-1).indices
    z = torch.zeros(n, 16).scatter(1, chosen, 1 + torch.rand(n, 2, generator=generator))
    return torch.cat([z @ first, z @ second], dim=-1), first, second


def test_shared_and_own_latents_of_two_models_are_told_apart(tmp_path: Path) -> None:
    x, first, second = two_models(100_000)
    torch.manual_seed(0)
    places = ["a/resid_post.1", "b/resid_post.1"]
    sae = CrosscoderSAE(CrosscoderConfig(d_in=32, d_sae=32, hook_in=places, input_norm="scalar", k=2))
    args = SAETrainingArguments(
        output_dir=str(tmp_path),
        total_tokens=len(x),
        tokens_per_batch=512,
        learning_rate=5e-3,
        dead_after_tokens=5000,
        disable_tqdm=True,
    )
    batches = [{places[0]: part[:, :16], places[1]: part[:, 16:]} for part in x.split(512)]
    SAETrainer(sae, args, batches).train()
    planted = F.normalize(torch.cat([first, second], dim=-1) * _scales(sae), dim=-1)
    best = (planted @ sae.W_dec.T).max(dim=-1)
    assert (best.values > 0.95).float().mean() > 0.9
    share = sae.relative_norms(places[1])[best.indices]
    assert ((share[:8] > 0.35) & (share[:8] < 0.65)).all()  # the usual bounds for shared ones are 0.3 and 0.7
    assert (share[8:12] < 0.25).all()
    assert (share[12:] > 0.75).all()


def _scales(sae: CrosscoderSAE) -> Tensor:
    return torch.tensor(sae.config.input_scales).repeat_interleave(16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook_in": "resid_post.0"}, "two different places"),
        ({"hook_in": ["resid_post.0"]}, "two different places"),
        ({"hook_in": None}, "two different places"),
        ({"hook_in": ["resid_post.0", "resid_post.0"]}, "two different places"),
        ({"hook_out": "mlp_out.1"}, "leave hook_out out|Leave hook_out out"),
        ({"widths": [6, 7]}, "widths"),
        ({"widths": [12]}, "widths"),
        ({"widths": None, "d_in": 13}, "widths"),
        ({"input_norm": "layer_norm"}, "scale for each place"),
        ({"input_norm": "scalar", "input_scales": [1.0]}, "input_scales"),
        ({"input_norm": "scalar", "input_scales": [1.0, -1.0]}, "input_scales"),
        ({"input_scales": [1.0, 2.0]}, "input_norm"),
        ({"k": 33}, "k=33"),
        ({"l1_coefficient": -1.0}, "l1_coefficient"),
    ],
)
def test_bad_configs_are_refused(changes: dict, said: str) -> None:
    fields = {"d_in": 12, "d_sae": 32, "hook_in": PLACES, "widths": [5, 7]}
    with pytest.raises(ConfigError, match=said):
        CrosscoderConfig(**fields | changes)


def test_an_unknown_place_is_named() -> None:
    with pytest.raises(ValueError, match=r"resid_post\.7"):
        crosscoder().relative_norms("resid_post.7")
