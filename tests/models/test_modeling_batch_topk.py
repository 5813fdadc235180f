"""BatchTopK: the batch's largest entries in training, one saved threshold at inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_sae.models import (
    SAE,
    AutoSAE,
    BatchTopKConfig,
    BatchTopKSAE,
    ConfigError,
    SAEConfig,
    StandardConfig,
    StandardSAE,
    TopKConfig,
    TopKSAE,
    TrainingState,
)
from hf_sae.models.modeling_batch_topk import batch_top_k, running_mean_
from hf_sae.training import SAETrainer, SAETrainingArguments
from tests.training.planted import trainer


FIELDS = {"d_in": 8, "d_sae": 24, "hook_in": "resid_post.0"}


def build(**changes) -> BatchTopKSAE:
    torch.manual_seed(0)
    sae = BatchTopKSAE(BatchTopKConfig(**FIELDS | {"k": 3} | changes))
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.decoder.bias.normal_(std=0.1)
    return sae


def state_of(sae: SAE, dead: list[int] | None = None) -> TrainingState:
    since = torch.zeros(sae.config.d_sae, dtype=torch.long)
    since[dead or []] = 1000
    return TrainingState(normaliser=2.0, dead_after_tokens=100, tokens_since_fired=since)


@pytest.mark.parametrize("k", [0.25, 1, 2.6, 3])
@pytest.mark.parametrize("shape", [(7, 24), (8, 24), (1, 5), (64, 128)])
def test_selection_by_brute_force(k: float, shape: tuple[int, int]) -> None:
    pre = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    count = round(k * shape[0])
    order = sorted(range(pre.numel()), key=lambda i: -float(pre.flatten()[i]))[:count]
    expected = sorted(i for i in order if float(pre.flatten()[i]) > 0)
    assert batch_top_k(pre, k).tolist() == expected


def test_tokens_of_zeros_leave_their_share_to_others() -> None:
    pre = torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.5, -3.0, 4.0]])
    assert batch_top_k(pre, 1).tolist() == [0, 1, 2, 11]  # 4, 3, 2, 1 of round(1 * 4)
    assert batch_top_k(pre, 3).tolist() == [0, 1, 2, 9, 11]  # all that is positive


def test_one_token_is_topk() -> None:
    ours, topk = build().double().train(), TopKSAE(TopKConfig(**FIELDS, k=3)).double()
    topk.load_state_dict({name: t for name, t in ours.state_dict().items() if name != "threshold"})
    gradients = []
    for sae in (ours, topk):
        output = [
            sae(x, state=state_of(sae))
            for x in torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(2)).double()
        ]
        sum(o.loss for o in output).backward()
        gradients.append([o.reconstruction.detach() for o in output] + [p.grad for p in sae.parameters()])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-9)


def test_mean_l0_is_k_and_every_latent_is_the_relu_sae() -> None:
    x = torch.randn(40, 8)
    assert int(build(k=2.6).train()(x).code.counts().sum()) == 104
    ours, relu = build(k=24).train(), StandardSAE(StandardConfig(**FIELDS))
    relu.load_state_dict({name: t for name, t in ours.state_dict().items() if name != "threshold"})
    torch.testing.assert_close(ours(x).reconstruction, relu(x).reconstruction)


@pytest.mark.parametrize("changes", [{}, {"input_norm": "layer_norm"}, {"hook_out": "mlp_out.0"}])
@pytest.mark.parametrize("k", [0.01, 2.6])  # 0.01: nothing is kept
def test_gradients_are_those_of_dense_autograd(changes: dict, k: float) -> None:
    sae = build(**changes, k=k).double().train()
    x, target = torch.randn(2, 10, 8).double().requires_grad_(), torch.randn(2, 10, 8).double()
    target = target if changes.get("hook_out") else x
    state, parameters = state_of(sae), [p for p in sae.parameters() if p.requires_grad]
    output = sae(x, target=target, state=state)
    ours = torch.autograd.grad(output.loss, [*parameters, x], materialize_grads=True)
    rows, norm = sae.normalize(x)
    shift = sae.decoder.bias if sae.config.subtracts_bias else 0
    pre = (rows - shift) @ sae.encoder.weight.T + sae.encoder.bias
    count = round(k * 20)
    keep = pre >= pre.flatten().topk(count).values[-1] if count else torch.zeros_like(pre, dtype=torch.bool)
    out = sae.decode(torch.relu(pre * keep) @ torch.eye(24).double(), norm)
    loss = (target - out).square().sum(-1).mean() / 2.0
    torch.testing.assert_close(output.loss, loss)
    expected = torch.autograd.grad(loss, [*parameters, x], materialize_grads=True)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-6)


def test_auxk_reaches_dead_latents_only() -> None:
    sae = build().train()
    sae(torch.randn(50, 8), state=state_of(sae, [2, 7])).losses["auxk"].backward()
    live = [i for i in range(24) if i not in (2, 7)]
    assert sae.encoder.weight.grad[live].abs().max() == 0
    assert (sae.encoder.weight.grad[[2, 7]].abs().amax(1) > 0).all()
    assert (sae.decoder.weight.grad[[2, 7]].abs().amax(1) > 0).all()


def test_the_running_mean_has_no_bias_from_its_start() -> None:
    mean, weight, one = torch.tensor(-1.0), torch.tensor(0.0), torch.tensor(1.0)
    seen = [2.0, 4.0, 9.0]
    for i, value in enumerate(seen):
        weight = running_mean_(mean, weight, torch.tensor(value), one, decay=0.5)
        powers = [0.5 ** (i - j) for j in range(i + 1)]
        assert float(mean) == pytest.approx(sum(p * v for p, v in zip(powers, seen, strict=False)) / sum(powers))
    before = float(mean)
    running_mean_(mean, weight, torch.tensor(0.0), torch.tensor(0.0))  # a batch that kept nothing
    assert float(mean) == before


def test_a_micro_batch_that_kept_nothing_does_not_lower_the_threshold() -> None:
    mean = torch.tensor(-1.0)  # half of the batch had a smallest entry of 3, the other half none
    running_mean_(mean, torch.tensor(0.0), torch.tensor(0.5 * 3.0), torch.tensor(0.5))
    assert float(mean) == 3.0


def test_without_a_threshold_inference_is_refused_until_it_is_estimated(tmp_path: Path) -> None:
    sae, x = build().eval(), torch.randn(5000, 8)
    for call in (sae, sae.encode, sae.encode_sparse):
        with pytest.raises(ConfigError, match="estimate_threshold"):
            call(x)
    sae.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="estimate_threshold"):
        AutoSAE.from_pretrained(tmp_path)(x)
    assert sae.estimate_threshold(x) == float(sae.threshold) > 0
    assert float(sae.encode_sparse(torch.randn(5000, 8)).l0()) == pytest.approx(3, rel=0.05)
    sae.save_pretrained(tmp_path)
    assert torch.equal(AutoSAE.from_pretrained(tmp_path).encode(x), sae.encode(x))
    half = AutoSAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.threshold.dtype == torch.float32
    assert torch.equal(half.threshold, sae.threshold)


def test_a_sample_without_positive_pre_activations_gives_no_threshold() -> None:
    sae = build()
    sae.encoder.bias.data.fill_(-100.0)
    with pytest.raises(ConfigError, match="no pre-activation of the 20 activations"):
        sae.estimate_threshold(torch.randn(4, 5, 8))
    assert float(sae.threshold) == -1


def test_inference_is_the_threshold_and_does_not_look_at_other_tokens() -> None:
    sae, x = build().eval(), torch.randn(30, 8)
    sae.threshold.fill_(0.4)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sae.encode(x), pre * (pre > 0.4))
    torch.testing.assert_close(sae.encode(x[3:4]), sae.encode(x)[3:4])


def mixed_l0(n: int, seed: int) -> Tensor:
    """Half of the tokens have one of 32 planted directions, half have five."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(9)), dim=-1)
    active = torch.rand(n, 32, generator=generator).argsort(-1) < torch.tensor([1, 5]).repeat(n // 2).unsqueeze(1)
    return (active * (0.5 + torch.rand(n, 32, generator=generator))) @ atoms


def train(config: SAEConfig, folder: Path, steps: int = 150, resume: bool = False, **changes) -> SAE:
    torch.manual_seed(0)
    sae, batches = AutoSAE.from_config(config), (mixed_l0(256, seed) for seed in range(steps))
    options = {"total_tokens": 256 * steps, "tokens_per_batch": 256, "learning_rate": 5e-3} | changes
    trainer = SAETrainer(sae, SAETrainingArguments(output_dir=str(folder), **options), batches)
    trainer.train(resume_from_checkpoint=resume)
    return sae.eval()


def test_planted_tokens_of_several_sparsities(tmp_path: Path) -> None:
    """Half 1-sparse, half 5-sparse: FVU below TopK's at the same L0, and the threshold keeps that L0 on new data."""
    fields = {"d_in": 16, "d_sae": 32, "k": 3, "hook_in": "resid_post.0"}
    batch, topk = train(BatchTopKConfig(**fields), tmp_path / "a"), train(TopKConfig(**fields), tmp_path / "b")
    held_out = mixed_l0(4096, 10**6)
    assert float(batch.encode_sparse(held_out).l0()) == pytest.approx(3, rel=0.05)
    with torch.no_grad():
        errors = [(held_out - sae(held_out).reconstruction).square().sum() for sae in (batch, topk)]
    fvu = [float(error / held_out.var(0).sum() / 4096) for error in errors]
    assert fvu[0] < fvu[1] - 0.03


def test_a_resumed_run_goes_on_with_the_threshold_and_its_weight(tmp_path: Path) -> None:
    x, saes = mixed_l0(2560, 1), []
    for folder, cut in (("straight", False), ("cut", True)):
        torch.manual_seed(0)
        sae = BatchTopKSAE(BatchTopKConfig(d_in=16, d_sae=32, k=2.5, hook_in="resid_post.0"))
        run = trainer(sae, tmp_path / folder, x)
        if cut:
            for batch in x.split(256)[:4]:
                run.training_step(batch)
            run.save_checkpoint()
            sae = BatchTopKSAE(BatchTopKConfig(d_in=16, d_sae=32, k=2.5, hook_in="resid_post.0"))
            run = trainer(sae, tmp_path / folder, x)
        run.train(resume_from_checkpoint=cut or None)
        saes.append(sae.state_dict())
    assert saes[0]["threshold"] > 0
    for name, value in saes[0].items():
        assert torch.equal(saes[1][name], value), name


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 24.5}, "d_sae=24"),
        ({"k": float("nan")}, "k=nan"),
        ({"k_aux": 25}, "k_aux"),
        ({"aux_coefficient": -1.0}, "aux"),
    ],
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)


def test_an_adapter_leaves_the_threshold_of_its_base() -> None:
    from peft import LoraConfig, get_peft_model

    sae, x = build(), torch.randn(40, 8)
    sae.threshold.fill_(0.4)
    adapted = get_peft_model(sae, LoraConfig(target_modules=["encoder"], r=2))
    state = state_of(sae)
    sae.after_step(state, adapted.train()(hidden_states=x, target=x, state=state))
    assert float(sae.threshold) == pytest.approx(0.4)
    assert "threshold_weight" not in state.tensors
