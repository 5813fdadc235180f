"""Cross-layer transcoders against ordinary ones, explicit sums, and planted layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_sae.models import (
    AutoTranscoder,
    CheckpointError,
    ConfigError,
    CrossLayerConfig,
    CrossLayerSAE,
    TopKConfig,
    TopKSAE,
    TrainingState,
)
from hf_sae.training import SAETrainer, SAETrainingArguments


READERS, WRITERS = ["mlp_in.0", "mlp_in.1", "mlp_in.2"], ["mlp_out.0", "mlp_out.1", "mlp_out.2"]


def cross_layer(seed: int = 0, **changes) -> CrossLayerSAE:
    torch.manual_seed(seed)
    fields = {"d_in": 12, "d_out": 15, "d_sae": 24, "k": 6, "hook_in": READERS, "hook_out": WRITERS}
    return CrossLayerSAE(CrossLayerConfig(**fields | changes))


def trained(sae, tmp_path: Path, x: torch.Tensor, y: torch.Tensor, size: int = 256, **args):
    chosen = {"total_tokens": len(x), "tokens_per_batch": size, "learning_rate": 3e-3, "disable_tqdm": True}
    batches = list(zip(x.split(size), y.split(size), strict=True))
    figures = SAETrainer(sae, SAETrainingArguments(output_dir=str(tmp_path), **chosen | args), batches).train()
    return sae, figures


def test_one_reader_and_one_writer_are_an_ordinary_transcoder_to_the_bit(tmp_path: Path) -> None:
    x = torch.randn(5120, 8, generator=torch.Generator().manual_seed(0))
    y = torch.relu(x @ torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))
    fields = {"d_in": 8, "d_out": 6, "d_sae": 32, "k": 3, "hook_in": "mlp_in.0", "hook_out": "mlp_out.0"}
    fields |= {"input_norm": "scalar", "skip": True}
    found = []
    for number, (config, model) in enumerate([(TopKConfig, TopKSAE), (CrossLayerConfig, CrossLayerSAE)]):
        torch.manual_seed(0)
        sae, _ = trained(model(config(**fields)), tmp_path / str(number), x, y, dead_after_tokens=1000)
        found.append(sae)
    for name, parameter in found[0].named_parameters():
        assert torch.equal(parameter, found[1].get_parameter(name)), name
    assert torch.equal(found[0](x).reconstruction, found[1](x).reconstruction)


def test_each_writer_is_the_sum_over_its_own_and_earlier_readers() -> None:
    sae = cross_layer().double()
    x = torch.randn(30, 12).double()
    z, out, w = sae.encode(x).view(30, 3, 8), sae(x).reconstruction.view(30, 3, 5), sae.W_dec.view(3, 8, 3, 5)
    for writer in range(3):
        expected = sum(z[:, reader] @ w[reader, :, writer] for reader in range(writer + 1))
        torch.testing.assert_close(out[:, writer], expected + sae.b_dec.view(3, 5)[writer])
    pre = torch.cat([x[:, 4 * r : 4 * r + 4] @ sae.encoder.weight[8 * r : 8 * r + 8].T for r in range(3)], dim=-1)
    torch.testing.assert_close(sae.pre_activations(sae.normalize(x)[0]), pre)
    torch.testing.assert_close(x @ sae.W_enc, pre)
    assert sae.reader_of(torch.tensor([0, 7, 8, 23])).tolist() == [0, 0, 1, 2]


def test_a_later_place_changes_no_earlier_writer() -> None:
    sae = cross_layer(k=24).double()  # every positive latent: selection couples nothing
    x = torch.randn(30, 12).double()
    changed = x.clone()
    changed[:, 8:] += 1
    before, after = sae(x).reconstruction, sae(changed).reconstruction
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=1e-12, rtol=0)
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_what_does_not_exist_stays_zero_in_training_with_dead_latents(tmp_path: Path) -> None:
    x = torch.randn(5120, 12, generator=torch.Generator().manual_seed(0))
    y = torch.relu(x @ torch.randn(12, 15, generator=torch.Generator().manual_seed(1)))
    sae, _ = trained(cross_layer(input_norm="scalar"), tmp_path, x, y, dead_after_tokens=300)
    missing = sae.decoder.exists() == 0
    assert missing.sum() == 8 * 5 * 3
    assert (sae.decoder.weight[missing] == 0).all()
    torch.testing.assert_close(sae.decoder.weight.norm(dim=-1), torch.ones(24))
    loaded = AutoTranscoder.from_pretrained(tmp_path)
    assert loaded.config.output_scales is not None
    assert loaded.config.output_scales == sae.config.output_scales
    assert torch.equal(loaded(x).reconstruction, sae.eval()(x).reconstruction)


def test_a_checkpoint_that_writes_backwards_is_refused(tmp_path: Path) -> None:
    """Splicing would let a later layer change an earlier place, and training would never take the entries away."""
    cross_layer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["decoder.weight"][9, 4] = 0.5  # of reader 1 to writer 0
    weights["decoder.weight"][[16, 17], 5] = -1.0  # of reader 2 to writer 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for load in (AutoTranscoder.from_pretrained, CrossLayerSAE.from_pretrained):
        with pytest.raises(CheckpointError, match=r"1 of 8 .*mlp_in.1.*mlp_out.0.*2 of 8 .*mlp_in.2.*mlp_out.1"):
            load(tmp_path)


def test_auxk_does_not_reach_what_does_not_exist() -> None:
    sae = cross_layer()
    state = TrainingState(normaliser=1.0, dead_after_tokens=1, tokens_since_fired=torch.full((24,), 5))
    output = sae(torch.randn(20, 12), target=torch.randn(20, 15), state=state)
    output.losses["auxk"].backward()
    grad = sae.decoder.weight.grad
    assert grad is not None
    assert (grad[sae.decoder.exists() == 0] == 0).all()
    assert (grad[16:, 10:] != 0).any()


def test_loss_counts_every_writer_in_its_own_units() -> None:
    x, y = torch.randn(3000, 12).double(), torch.randn(3000, 15).double() + 2
    y[:, 10:] *= 100
    sae, state = cross_layer(input_norm="scalar").double(), TrainingState()
    sae.initialize_from(x, y, state)
    assert sae.config.output_scales is not None
    scales = torch.tensor(sae.config.output_scales).double().repeat_interleave(5)
    torch.testing.assert_close((y * scales).var(0, correction=0).view(3, 5).mean(1), torch.ones(3).double())
    assert state.normaliser == pytest.approx(15)
    output = sae(x, target=y, state=state)
    by_hand = ((y - output.reconstruction) * scales).square().sum(-1).mean() / 15
    torch.testing.assert_close(output.losses["reconstruction"], by_hand)
    none = sae.decode(torch.zeros(1, 24).double())
    torch.testing.assert_close(none[0], y.mean(0))


def test_a_feature_that_spans_layers_takes_one_latent(tmp_path: Path) -> None:
    """What is read at the first place and written at all three comes back as one latent with three decoder blocks."""
    z = torch.zeros(40_960, 4).scatter(
        1, torch.randint(4, (40_960, 1), generator=torch.Generator().manual_seed(0)), 1.0
    )
    z = z * (1 + torch.rand(z.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.zeros(len(z), 12)
    x[:, :4] = z
    y = z @ torch.randn(4, 15, generator=torch.Generator().manual_seed(2))
    sae, figures = trained(cross_layer(k=1), tmp_path, x, y, 64, learning_rate=1e-2, dead_after_tokens=2000)
    assert figures["fvu"] < 0.02
    used = sae.encode(x).max(0).values > 0.1
    assert not used[8:].any()
    assert (sae.W_dec[used].view(-1, 3, 5).norm(dim=-1) > 0.05).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook_out": None}, "writes other places"),
        ({"hook_out": WRITERS[:2], "d_out": 10}, "a writer for each reader"),
        ({"d_sae": 25}, "multiple of 3"),
        ({"d_in": 13}, "multiple of 3"),
        ({"d_out": 16}, "multiple of 3"),
        ({"skip": True}, "earlier places"),
        ({"output_scales": [1.0, 1.0, 1.0]}, "input_norm"),
        ({"input_norm": "scalar", "output_scales": [1.0]}, "output_scales"),
        ({"k": 0}, "k=0"),
    ],
)
def test_bad_configs_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cross_layer(**changes)
