"""Gradients beside activations: against finite differences by hand, and activations as if nobody had asked for gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import edit, read
from hf_sae.activations import CachedStream, write_cache
from hf_sae.activations.reading import HostReader
from hf_sae.data import TokenBatch, TokenDataset
from hf_sae.errors import HookPointError
from hf_sae.models import GradientConfig, GradientSAE, TopKConfig, TopKSAE
from hf_sae.training import SAETrainer, SAETrainingArguments
from hf_sae.training.recipes import open_stream
from tests.activations.toy import live, tiny_host
from tests.hosts_zoo import ZOO
from tests.toy_text import FIRST_WORD, documents, tokenizer


POINT = "resid_post.1"
GRADIENT = f"{POINT}/gradient"


def batch(rows: list[list[int]], length: int | None = None) -> TokenBatch:
    length = length or max(map(len, rows))
    ids = torch.tensor([row + [2] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return TokenBatch(ids, mask, mask.bool(), torch.where(mask == 1, 0, -1))


def everything(host: Any, points: Any, tokens: TokenBatch) -> dict[str, Tensor]:
    """All positions, padding too, `[batch, tokens, width]`."""
    rows = HostReader(host, points, None)(tokens, torch.arange(tokens.input_ids.numel()))
    return {point: x.view(*tokens.input_ids.shape, -1) for point, x in rows.items()}


def loss(host: Any, tokens: TokenBatch) -> float:
    """The sum of the cross entropies of all next tokens, position by position."""
    log_probs = host(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits.log_softmax(-1)
    total = 0.0
    for row, mask in enumerate(tokens.attention_mask):
        for position in range(int(mask.sum()) - 1):
            total -= float(log_probs[row, position, tokens.input_ids[row, position + 1]])
    return total


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox_serial"])  # which compute in float64 throughout
@pytest.mark.parametrize("point", ["resid_post.0", "resid_mid.0", "mlp_in.1", "attn_out.1", "embed"])
@torch.no_grad()
def test_gradients_are_finite_differences_of_the_summed_loss(kind: str, point: str):
    host = ZOO[kind]().double().eval()
    tokens = batch([[9, 11, 12, 15, 14], [21, 9, 8]])
    found = everything(host, [f"{point}/gradient"], tokens)[f"{point}/gradient"]
    assert found.dtype == torch.float32
    generator = torch.Generator().manual_seed(0)
    for row, position in ((0, 0), (0, 3), (1, 1)):
        direction = torch.randn(found.shape[-1], dtype=torch.float64, generator=generator)
        values = []
        for step in (1e-5, -1e-5):
            shift = torch.zeros(*tokens.input_ids.shape, found.shape[-1], dtype=torch.float64)
            shift[row, position] = step * direction
            with edit(host, point, lambda x, _, shift=shift: x + shift):
                values.append(loss(host, tokens))
        slope = (values[0] - values[1]) / 2e-5
        assert abs(slope) > 1e-4
        torch.testing.assert_close(float(found[row, position].double() @ direction), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox_parallel", "gemma2"])
@pytest.mark.parametrize("point", ["resid_post.0", "mlp_in.1"])
def test_activations_are_those_without_gradients_to_the_bit(kind: str, point: str):
    host = ZOO[kind]().eval()
    tokens = batch([[9, 11, 12, 15, 14, 30], [21, 9, 8]])
    plain = everything(host, [point, "resid_post.1"], tokens)
    beside = everything(host, [point, "resid_post.1", f"{point}/gradient", "resid_post.1/gradient"], tokens)
    for place in (point, "resid_post.1"):
        assert torch.equal(plain[place], beside[place])
        assert torch.equal(
            beside[f"{place}/gradient"], everything(host, f"{place}/gradient", tokens)[f"{place}/gradient"]
        )


def test_both_columns_go_through_the_ring_together():
    host = tiny_host()
    plain = list(live(host).batches(30))
    beside = list(
        live(host, hook_points=["resid_post.1", "mlp_in.1", "mlp_in.1/gradient"], ring_bytes=32_000).batches(30)
    )
    assert sum(rows.count for rows in plain) == sum(rows.count for rows in beside)
    table = {}  # each word is in the text once
    for tokens in TokenDataset(documents(60), tokenizer(), context_length=16, batch_size=1):
        found = everything(host, ["mlp_in.1", "mlp_in.1/gradient"], tokens)
        for x, gradient, token in zip(*(y[0] for y in found.values()), tokens.input_ids[0].tolist(), strict=True):
            table[token] = (x, gradient)
    seen = 0
    for rows in beside:
        for x, gradient, token in zip(
            rows["mlp_in.1"], rows["mlp_in.1/gradient"], rows.token_ids.tolist(), strict=True
        ):
            if token >= FIRST_WORD:
                torch.testing.assert_close(x, table[token][0], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(gradient, table[token][1], atol=1e-5, rtol=1e-4)
                seen += 1
    assert seen == sum(len(text.split()) for text in documents(60))


def test_a_gradient_does_not_depend_on_the_other_rows_and_is_zero_where_nothing_follows():
    host = tiny_host()
    rows = [[9, 11, 12, 15], [21, 9], [8, 13, 17]]
    together = everything(host, GRADIENT, batch(rows, 6))[GRADIENT]
    for number, row in enumerate(rows):
        alone = everything(host, GRADIENT, batch([row]))[GRADIENT][0]
        torch.testing.assert_close(together[number, : len(row)], alone, atol=1e-5, rtol=1e-4)
        assert (alone[:-1] != 0).any(1).all()
        assert torch.equal(together[number, len(row) - 1 :], torch.zeros(6 - len(row) + 1, 8))


def test_the_host_stays_as_it_was_and_no_context_matters():
    host = tiny_host().train()
    host.model.embed_tokens.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in host.named_parameters()}
    expected = everything(host, [POINT, GRADIENT], batch([[9, 11, 12, 15]]))
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            found = everything(host, [POINT, GRADIENT], batch([[9, 11, 12, 15]]))
        assert all(torch.equal(found[name], expected[name]) for name in (POINT, GRADIENT))
    assert not any(x.requires_grad for x in expected.values())
    assert {name: p.requires_grad for name, p in host.named_parameters()} == before
    assert all(p.grad is None for p in host.parameters())
    assert host.training
    assert torch.equal(read(host.eval(), POINT, **inputs([[9, 11, 12, 15]]))[POINT], expected[POINT])


def inputs(rows: list[list[int]]) -> dict[str, Any]:
    tokens = batch(rows)
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "use_cache": False}


class InPlace(torch.nn.Module):
    """A block that adds to the residual stream in place."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x += self.block(x.clone(), *args, **kwargs) - x.clone()
        return x


def test_a_host_that_works_in_place():
    plain, host = tiny_host(), tiny_host()
    host.model.layers[2] = InPlace(host.model.layers[2])
    tokens = batch([[9, 11, 12, 15]])
    points = ["model.layers.1", "model.layers.1/gradient"]
    for name, expected in everything(plain, points, tokens).items():
        torch.testing.assert_close(everything(host, points, tokens)[name], expected, atol=1e-5, rtol=1e-4)


def test_half_precision_hosts_have_float32_gradients():
    stream = live(tiny_host().bfloat16(), hook_points=[POINT, GRADIENT])
    rows = next(stream.batches(30))
    assert (rows[POINT].dtype, rows[GRADIENT].dtype) == (torch.bfloat16, torch.float32)
    assert stream.ring.slot_bytes == 8 * (2 + 4) + 16
    state = stream.state_dict()
    again = live(tiny_host().bfloat16(), hook_points=[POINT, GRADIENT])
    again.load_state_dict(state)
    for one, other in zip(stream.batches(30), again.batches(30), strict=True):
        assert torch.equal(one[POINT], other[POINT])
        assert torch.equal(one[GRADIENT], other[GRADIENT])


def test_large_gradients_are_no_norm_outliers():
    host = tiny_host()
    counts = []
    for points in ([POINT], [POINT, GRADIENT]):
        stream = live(host, hook_points=points, ring_bytes=32_000)
        list(stream.batches(30))
        counts.append({name: stream.counts[name] for name in ("outliers", "served", "masked")})
    assert counts[0] == counts[1]


def bare() -> Any:
    return tiny_host().model


def masked() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=50, **sizes))


def quantised() -> Any:
    host = tiny_host()
    host.is_quantized = True  # as transformers' quantisers leave it
    return host


def quantised_by_torch() -> Any:
    return torch.ao.quantization.quantize_dynamic(tiny_host(), {torch.nn.Linear}, dtype=torch.qint8)


def offloaded() -> Any:
    host = tiny_host()
    host.model.layers[2].mlp.to("meta")
    return host


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bare, "LlamaModel has no next-token loss.*AutoModelForCausalLM"),
        (masked, "BertForMaskedLM has no next-token loss"),
        (quantised, "is quantised"),
        (quantised_by_torch, "is quantised"),
        (offloaded, "has offloaded weights"),
    ],
)
def test_hosts_without_gradients_are_refused(make: Any, message: str):
    with pytest.raises(HookPointError, match=message):
        HostReader(make(), [POINT, GRADIENT], None)


def test_a_place_that_does_not_exist_is_named_as_ever():
    with pytest.raises(HookPointError, match=r"resid_post\.9"):
        HostReader(tiny_host(), ["resid_post.9/gradient"], None)
    host = tiny_host()
    host.lm_head.forward = lambda x: x.detach() @ host.lm_head.weight.T
    with pytest.raises(HookPointError, match="gradients need one row of logits"):
        HostReader(host, [GRADIENT], None)(batch([[9, 8, 7]]), torch.arange(3))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_a_cache_keeps_both_columns(tmp_path: Path, dtype: torch.dtype | None):
    write_cache(live(hook_points=[POINT, GRADIENT]), tmp_path, 200, dtype=dtype, disable_tqdm=True)
    rows = next(CachedStream(tmp_path, [POINT, GRADIENT]).batches(200))
    live_rows = next(live(hook_points=[POINT, GRADIENT]).batches(1, 200))  # one of the same tokens
    match = (rows[POINT].float() - live_rows[POINT]).norm(dim=1).argmin()
    error = (rows[GRADIENT][match].float() - live_rows[GRADIENT][0]).norm() / live_rows[GRADIENT].norm()
    assert error < (1e-6 if dtype is None else 0.02)


def arguments(folder: Path) -> SAETrainingArguments:
    return SAETrainingArguments(output_dir=str(folder), total_tokens=400, tokens_per_batch=20, disable_tqdm=True)


def test_an_architecture_gets_the_columns_that_it_needs(tmp_path: Path):
    config = GradientConfig(d_in=8, d_sae=16, k=2, hook_in="resid_mid.1", hook_out="mlp_out.1", d_out=8)
    args = arguments(tmp_path)
    small = {"context_length": 16, "batch_size": 2}
    stream = open_stream(tiny_host(), tokenizer(), documents(60), config, args, **small)
    assert list(stream.widths) == ["resid_mid.1", "mlp_out.1", "mlp_out.1/gradient"]
    sae = GradientSAE(config)
    SAETrainer(sae, args, stream).train()
    plain = TopKConfig(d_in=8, d_sae=16, k=2, hook_in=POINT)
    assert list(open_stream(tiny_host(), tokenizer(), documents(60), plain, args, **small).widths) == [POINT]
    with pytest.raises(
        HookPointError, match=r"needs the gradient.*hook_points=\['resid_post.1', 'resid_post.1/gradient'\]"
    ):
        SAETrainer(GradientSAE(GradientConfig(d_in=8, d_sae=16, k=2, hook_in=POINT)), args, live(hook_points=[POINT]))


def test_training_with_gradients_without_weight_is_training_topk(tmp_path: Path):
    trained = []
    for config, kind in ((GradientConfig, GradientSAE), (TopKConfig, TopKSAE)):
        torch.manual_seed(0)
        changes = {"beta": 0.0} if kind is GradientSAE else {}
        sae = kind(config(d_in=8, d_sae=16, k=2, hook_in=POINT, **changes))
        first = next(live(hook_points=[POINT, GRADIENT], count=400, ring_bytes=10**6).batches(400))
        batches = [{key: first[key][i : i + 20] for key in sae.batch_keys} for i in range(0, 400, 20)]
        SAETrainer(sae, arguments(tmp_path / kind.__name__), batches).train()
        trained.append(sae.state_dict())
    assert all(torch.equal(trained[0][name], value) for name, value in trained[1].items())
