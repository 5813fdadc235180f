"""One battery over every registered architecture: a new architecture file is tested by being registered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from hf_sae.models import (
    SAE,
    AutoSAE,
    AutoTranscoder,
    CheckpointError,
    ConfigError,
    SparseCode,
    TrainingState,
    registered,
)
from hf_sae.training.optimizer import RowAdam
from tests.forks import together
from tests.models.battery import CASES, D_SAE, Case, encoder_layers


pytestmark = pytest.mark.parametrize("case", CASES, ids=str)


def test_round_trip_is_exact(case: Case, tmp_path: Path) -> None:
    sae, (x, _target) = case.build().eval(), case.batch()
    sae.feature_stats = {"density": torch.rand(D_SAE), "maximum": torch.rand(D_SAE)}
    sae.save_pretrained(tmp_path)
    for loaded in (AutoSAE.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is type(sae)
        assert not loaded.training
        assert loaded.config.to_dict() | {"_name_or_path": ""} == sae.config.to_dict() | {"_name_or_path": ""}
        assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)
        assert torch.equal(loaded.feature_stats["maximum"], sae.feature_stats["maximum"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "feature_stats.safetensors",
        "model.safetensors",
    ]


def test_half_precision_is_saved_and_comes_back(case: Case, tmp_path: Path) -> None:
    sae = case.build().to(torch.bfloat16)
    sae.save_pretrained(tmp_path)
    loaded, upcast = AutoSAE.from_pretrained(tmp_path), AutoSAE.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.dtype == torch.bfloat16
    for name, parameter in loaded.named_parameters():
        assert "threshold" in name or parameter.dtype == torch.bfloat16, name
        assert upcast.get_parameter(name).dtype == torch.float32


def test_subfolder_and_sharding(case: Case, tmp_path: Path) -> None:
    sae, (x, _) = case.build().eval(), case.batch()
    sae.save_pretrained(tmp_path / "layer_1", max_shard_size="1KB")
    assert (tmp_path / "layer_1" / "model.safetensors.index.json").exists()
    loaded = AutoSAE.from_pretrained(tmp_path, subfolder="layer_1")
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


def test_each_missing_tensor_is_refused(case: Case, tmp_path: Path) -> None:
    case.build().save_pretrained(tmp_path)
    complete = load_file(tmp_path / "model.safetensors")
    for dropped in complete:
        rest = {k: v for k, v in complete.items() if k != dropped}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=dropped):
            AutoSAE.from_pretrained(tmp_path)


def test_foreign_tensors_shapes_and_nan_are_refused(case: Case, tmp_path: Path) -> None:
    case.build().save_pretrained(tmp_path)
    complete = load_file(tmp_path / "model.safetensors")
    broken: list[tuple[str, Tensor]] = [("W_extra", torch.ones(2))]
    broken += [
        (key, torch.ones(len(value) + 1, *value.shape[1:]) if value.ndim else torch.ones(2))
        for key, value in complete.items()
    ]
    broken += [(key, torch.full_like(value, torch.nan)) for key, value in complete.items()]
    for key, value in broken:
        save_file({**complete, key: value}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=key):
            AutoSAE.from_pretrained(tmp_path)


def test_truncated_file_and_unknown_keys_are_refused(case: Case, tmp_path: Path) -> None:
    case.build().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError):
        AutoSAE.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"d_saes": 3}, {"d_sae": "many"}, {"d_sae": 0}, {"input_scale": -1.0}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=next(iter(change))):
            AutoSAE.from_pretrained(tmp_path)


def test_config_class_is_strict_itself(case: Case) -> None:
    config_class, _ = registered()[case.model_type]
    own = set(config_class.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    assert own <= set(config_class.__validators__), "decorate the class with strict_config again"
    config = case.config()
    with pytest.raises(ConfigError, match="d_sae"):
        config.d_sae = "many"


def test_init_covers_everything(case: Case) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        hollow = registered()[case.model_type][1](case.config())
    hollow = hollow.to_empty(device="cpu")
    for tensor in [*hollow.parameters(), *hollow.buffers()]:
        tensor.data.fill_(torch.nan)
    hollow.initialize_weights()
    assert all(torch.isfinite(t).all() for t in hollow.state_dict().values())
    assert not [name for name, _ in hollow.named_buffers() if name not in hollow.state_dict()], "non-persistent buffer"
    norms = hollow.decoder.weight.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_loading_overwrites_nothing(case: Case, tmp_path: Path) -> None:
    sae = case.build()
    sae.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(sae.state_dict())
    for key, value in AutoSAE.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, saved[key]), key


def test_dense_and_sparse_codes_agree(case: Case) -> None:
    sae, (x, _) = case.build().eval(), case.batch()
    x = x.view(4, 10, -1)
    code, dense = sae.encode_sparse(x), sae.encode(x)
    assert code.shape == (4, 10)
    torch.testing.assert_close(code.to_dense(), dense)
    norm = sae.normalize(x)[1]
    torch.testing.assert_close(sae.decode(code), sae.decode(dense, norm=norm))
    again = SparseCode.from_dense(dense, norm)
    torch.testing.assert_close(sae.decode(again), sae.decode(dense, norm=norm))
    assert torch.equal(again.counts(), (dense != 0).sum(-1).reshape(-1))
    assert torch.equal(code.firing_counts(), (dense != 0).sum((0, 1)))
    assert code.l0() == (dense != 0).sum(-1).float().mean()
    rows, latents, values = code.flat()
    assert torch.equal(dense.view(40, -1)[rows, latents], values)
    assert (values != 0).all()


@pytest.mark.parametrize("grad", [True, False])
def test_no_token_is_no_error(case: Case, grad: bool) -> None:
    sae, (x, _) = case.build().eval(), case.batch()
    none = x[:0]
    with torch.set_grad_enabled(grad):
        assert sae(none).reconstruction.shape == (0, sae.config.d_out)
        assert sae.encode(none).shape == (0, sae.config.d_sae)
        assert sae.encode_sparse(none).counts().shape == (0,)
        assert sae(none[None]).reconstruction.shape == (1, 0, sae.config.d_out)


def test_forward_is_decode_of_encode_plus_skip(case: Case) -> None:
    sae, (x, _) = case.build().eval(), case.batch()
    expected = sae.decode(sae.encode_sparse(x))
    if sae.skip is not None:
        expected = expected + x @ sae.skip.weight.T
    torch.testing.assert_close(sae(x).reconstruction, expected)


def test_gradients_are_those_of_the_error(case: Case) -> None:
    """Against plain autograd where latents are selected pre-activations of a linear encoder, else finite differences."""
    sae, (x, target) = case.build(**case.exact()).double(), case.batch()
    x, target = x.double(), target.double()
    state = case.state(sae)
    state.given = {name: rows.double() for name, rows in case.given(sae).items()}
    sae.before_step(state)
    x = x.clone().requires_grad_()
    target = x if not sae.config.is_transcoder else target
    output = sae(x, target=target, state=state)
    output.losses["reconstruction"].backward()
    fast = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None} | {"x": x.grad.clone()}
    fast = {
        name: grad for name, grad in fast.items() if "threshold" not in name
    }  # estimates, tested by their formulas
    if (pre := plain_pre_activations(sae, x)) is not None:
        mask = output.code.to_dense().detach() != 0
        if torch.allclose(output.code.to_dense(), pre * mask) and sae.reconstruction_weight == 1:
            slow = plain_gradients(sae, x, target, pre * mask, state.normaliser)
            assert set(fast) == set(slow)
            for name in slow:
                torch.testing.assert_close(fast[name], slow[name], atol=1e-6, rtol=1e-4, msg=name)
            return
    tensors = {name: sae.get_parameter(name) if name != "x" else x for name in fast}
    for name, tensor in tensors.items():
        direction = torch.randn(tensor.shape, dtype=torch.double, generator=torch.Generator().manual_seed(4))
        direction = direction * case.exists(sae, name)
        slope = difference(sae, x, target, state, tensor, 1e-6 * direction) / 2e-6
        torch.testing.assert_close((fast[name] * direction).sum(), slope, atol=1e-6, rtol=1e-4, msg=name)


def plain_pre_activations(sae: SAE, x: Tensor) -> Tensor | None:
    """By the formula of a linear encoder, if there is one."""
    if not isinstance(sae.encoder, nn.Linear):
        return None
    normalised = sae.normalize(x)[0]
    centred = normalised - sae.decoder.bias if sae.config.subtracts_bias else normalised
    return centred @ sae.encoder.weight.T + sae.encoder.bias


def plain_gradients(sae: SAE, x: Tensor, target: Tensor, latents: Tensor, normaliser: float) -> dict[str, Tensor]:
    sae.zero_grad()
    x.grad = None
    normalised, norm = sae.normalize(x)
    out = sae.to_output_units(latents @ sae.decoder.weight + sae.decoder.bias, norm)
    if sae.config.undoes_norm_per_token:
        out = out + norm[0]
    if sae.skip is not None:
        out = out + normalised @ sae.skip.weight.T
    error = sae.in_loss_units(sae.comparable(target) - out)
    (error.square().sum(-1).mean() / normaliser).backward()
    return {name: p.grad for name, p in sae.named_parameters() if p.grad is not None} | {"x": x.grad}


@torch.no_grad()
def difference(sae: SAE, x: Tensor, target: Tensor, state: TrainingState, tensor: Tensor, step: Tensor) -> Tensor:
    """Of the reconstruction loss, between `tensor + step` and `tensor - step`."""
    values = []
    for change in (step, -2 * step):
        tensor += change
        values.append(sae(x, target=target, state=state).losses["reconstruction"])
    tensor += step
    return values[0] - values[1]


def test_micro_batches_add_up(case: Case) -> None:
    """One fixed normaliser: the gradient of a batch is the mean of its halves' gradients."""
    sae, (x, target) = case.build(), case.batch()
    if sae.couples_tokens:  # each part selects among its own tokens, which is documented
        return
    state, given, whole = case.whole_gradients(sae, x, target)
    for half in (slice(0, 20), slice(20, 40)):
        state.given = {name: rows[half] for name, rows in given.items()}
        (sae(x[half], target=target[half], state=state).loss / 2).backward()
    for expected, parameter in zip(whole, sae.parameters(), strict=True):
        if expected is None:
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


def test_overfits_a_tiny_batch(case: Case) -> None:
    torch.manual_seed(0)
    changes = {k: v for k, v in {"k": 8, "target_l0": 8, "l1_coefficient": 1e-3}.items() if hasattr(case.config(), k)}
    sae = AutoSAE.from_config(case.config(**changes))
    x, target = case.batch(16)
    state = case.state(sae)
    state.total_steps = steps = 150
    state.given = case.given(sae, 16)
    sae.initialize_from(x, target, state)
    optimizer = RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight], lr=3e-2)
    for _ in range(steps):
        sae.before_step(state)
        output = sae(x, target=target, state=state)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.step, state.l0 = state.step + 1, float(output.code.l0())
        sae.after_step(state, output)
    assert output.fvu < 0.1
    norms = sae.decoder.weight.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_projected_gradient_is_tangent(case: Case) -> None:
    sae, (x, target) = case.build(), case.batch()
    state = case.state(sae)
    state.given = case.given(sae)
    sae(x, target=target, state=state).loss.backward()
    rows, optimizer = sae.decoder.weight.detach().clone(), RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight])
    optimizer.step()
    along = (optimizer.state[sae.decoder.weight]["exp_avg"] * rows).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-6, rtol=0)


def test_permuting_latents_changes_nothing(case: Case) -> None:
    sae, (x, _) = case.build().eval(), case.batch()
    other, order = case.permuted(sae)
    torch.testing.assert_close(other(x).reconstruction, sae(x).reconstruction)
    torch.testing.assert_close(other.encode(x), sae.encode(x)[:, order])


def test_bfloat16(case: Case, tmp_path: Path) -> None:
    sae, (x, target) = case.build(), case.batch()
    sae.save_pretrained(tmp_path)
    low = AutoSAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = type(low)._keep_in_fp32_modules_strict or ()
    for name, tensor in low.state_dict().items():
        assert tensor.dtype == (torch.float32 if any(word in name for word in kept) else torch.bfloat16), name
    state = case.state(low)
    state.given = case.given(low)
    output = low.train()(x.bfloat16(), target=target.bfloat16(), state=state)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    full = sae(x, target=target, state=state).reconstruction  # under the same state, which may decide the selection
    close = (output.reconstruction.float() - full).norm() / full.norm()
    assert close < 0.2  # near-ties may select another latent
    with torch.autocast("cpu", torch.bfloat16):
        sae(x, target=target, state=state).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters() if p.grad is not None)


def test_compiles(case: Case) -> None:
    sae, (x, target) = case.build().eval(), case.batch()
    torch._dynamo.reset()  # every case shares one forward: its compiled variants would pile up to the limit
    compiled = torch.compile(sae, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, target=target).reconstruction, sae(x, target=target).reconstruction)


def test_lora_on_the_encoder(case: Case, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    sae, (x, target) = case.build(), case.batch()
    sae.save_pretrained(tmp_path / "base")
    base = AutoSAE.from_pretrained(tmp_path / "base")
    if not (layers := encoder_layers(base)):  # it reads with the decoder's rows
        return
    one_matrix = type(base.encoder) is nn.Linear
    before, before_pre = base.encoder.weight.clone() if one_matrix else None, base.pre_activations(x).detach()
    adapted = get_peft_model(base, LoraConfig(target_modules=layers, r=2, init_lora_weights=False))
    output = adapted(hidden_states=x, target=target)
    output.loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert all("lora" in name for name in trained)
    assert all(any(f"{layer}.lora_B" in name for name in trained) for layer in layers)
    assert not torch.equal(base.pre_activations(x), before_pre)
    assert not one_matrix or not torch.equal(base.W_enc.T, before), "W_enc must show the merged weight"
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoSAE.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(again(hidden_states=x).reconstruction, output.reconstruction.detach())
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(x).reconstruction, output.reconstruction.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged.pre_activations(x), base.pre_activations(x), atol=1e-5, rtol=1e-4)
    if one_matrix:
        torch.testing.assert_close(merged.W_enc, base.W_enc)


def test_auto_transcoder(case: Case, tmp_path: Path) -> None:
    sae = case.build()
    sae.save_pretrained(tmp_path)
    if sae.config.is_transcoder:
        assert type(AutoTranscoder.from_pretrained(tmp_path)) is type(sae)
    else:
        with pytest.raises(CheckpointError, match="AutoSAE"):
            AutoTranscoder.from_pretrained(tmp_path)


def test_two_processes_equal_one(case: Case, tmp_path: Path) -> None:
    if case is CASES[0]:  # one launch serves every architecture
        assert f"DDP 2 {len(CASES)}" in together(2, "tests.models.data_parallel", output=tmp_path / "log", timeout=300)
