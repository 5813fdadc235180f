from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_sae.errors import HookPointError
from hf_sae.hooks import capture
from hf_sae.models import StandardConfig, StandardSAE, TopKConfig, TopKSAE
from hf_sae.steering import OfMax, OfNorm, ablate, add, clamp, scale, steer


torch.set_num_threads(2)
POINT = "resid_post.0"
D, D_SAE, K = 16, 40, 8
BOS = 0


@pytest.fixture(scope="module")
def host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=BOS, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    host = LlamaForCausalLM(config).eval()
    for parameter in host.parameters():
        parameter.data.mul_(8 if parameter.dim() > 1 else 1)  # far from uniform, so that steering changes tokens
    host.generation_config.eos_token_id = None
    return host


@pytest.fixture(scope="module")
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=D, n_layer=2, n_head=2, n_positions=64, bos_token_id=BOS, eos_token_id=None)
    ).eval()


def make_sae(kind: type = TopKSAE, **options: object) -> TopKSAE | StandardSAE:
    torch.manual_seed(2)
    config_class = TopKConfig if kind is TopKSAE else StandardConfig
    if kind is TopKSAE:
        options["k"] = K
    sae = kind(config_class(**{"d_in": D, "d_sae": D_SAE, "hook_in": POINT, **options})).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return sae


def batch(rows: int = 2, tokens: int = 6, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 50, (rows, tokens), generator=generator)
    ids[:, 0] = BOS
    return ids


def clean(host: torch.nn.Module, ids: Tensor, point: str = POINT, **inputs: Tensor) -> Tensor:
    with torch.no_grad(), capture(host, point) as acts:
        host(ids, **inputs)
    return acts[point]


def steered(
    host: torch.nn.Module,
    *args: object,
    ids: Tensor,
    point: str = POINT,
    inputs: dict | None = None,
    **options: object,
) -> Tensor:
    with torch.no_grad(), steer(host, *args, **options), capture(host, point) as acts:
        host(ids, **(inputs or {}))
    return acts[point]


def brute(sae: TopKSAE | StandardSAE, x: Tensor, change: object) -> Tensor:
    """decode(changed latents) + error, BOS left alone."""
    with torch.no_grad():
        code = sae.encode_sparse(x)
        latents = code.to_dense()
        new = change(latents.clone())
        out = sae.decode(new, code.norm) + (x - sae.decode(latents, code.norm))
    out[:, 0] = x[:, 0]
    return out


def some_active(sae: TopKSAE, x: Tensor) -> list[int]:
    """Two latents that fire somewhere, and one that does not fire everywhere."""
    with torch.no_grad():
        counts = sae.encode_sparse(x[:, 1:]).firing_counts()
    found = [j for j in counts.argsort(descending=True).tolist() if counts[j] < x[:, 1:].shape[:2].numel()]
    assert len(found) > 3
    assert counts[found[1]] > 0
    return found[:3]


def set_to(j: int, value: float):
    def change(z: Tensor) -> Tensor:
        z[..., j] = value
        return z

    return change


@pytest.mark.parametrize("kind", [TopKSAE, StandardSAE])
@pytest.mark.parametrize("norm", [{}, {"input_norm": "scalar", "input_scale": 0.37}, {"input_norm": "layer_norm"}])
def test_each_edit_is_decode_of_the_edited_latents_plus_the_error(host, kind, norm) -> None:
    sae, ids = make_sae(kind, **norm), batch()
    x = clean(host, ids)
    j, other, _ = some_active(sae, x)
    cases = {
        add({j: 1.5}): lambda z: z + 1.5 * torch.eye(D_SAE)[j],
        clamp({j: 2.5}): set_to(j, 2.5),
        clamp({j: 0.2}, only_raise=True): lambda z: torch.where(torch.arange(D_SAE) == j, z.clamp(min=0.2), z),
        scale({j: 3.0, other: -1.0}): lambda z: z * (1 + 2 * torch.eye(D_SAE)[j] - 2 * torch.eye(D_SAE)[other]),
        ablate([j]): set_to(j, 0.0),
    }
    for edit, change in cases.items():
        got = steered(host, sae, edit, ids=ids)
        torch.testing.assert_close(got, brute(sae, x, change), atol=2e-4, rtol=1e-4)
        assert not torch.allclose(got, x, atol=1e-3)


def test_no_edit_is_the_identity_to_the_bit(host) -> None:
    sae, ids = make_sae(), batch()
    with torch.no_grad():
        expected = host(ids).logits
        for options in (
            {"edits": None},
            {"edits": []},
            {"rows": [None, []]},
            {"edits": scale({3: 1.0})},
            {"edits": add({3: 0.0})},
        ):
            with steer(host, sae, **options):
                assert torch.equal(host(ids).logits, expected)
        never = next(j for j in range(D_SAE) if not sae.encode(clean(host, ids))[..., j].any())
        with steer(host, sae, [ablate(never), scale({never: 5.0})]):
            assert torch.equal(host(ids).logits, expected)


def test_tokens_without_the_latent_keep_their_bits(host) -> None:
    sae, ids = make_sae(), batch()
    x = clean(host, ids)
    j = some_active(sae, x)[0]
    got = steered(host, sae, ablate([j]), ids=ids)
    silent = sae.encode(x)[..., j] == 0
    silent[:, 0] = True
    assert silent[:, 1:].any()
    assert not silent.all()
    assert torch.equal(got[silent], x[silent])
    assert (got[~silent] != x[~silent]).any(-1).all()


def test_a_later_edit_sees_what_earlier_ones_made(host) -> None:
    sae, ids = make_sae(), batch()
    x = clean(host, ids)
    j = some_active(sae, x)[0]
    unit = torch.eye(D_SAE)[j]
    got = steered(host, sae, [add({j: 2.0}), scale({j: 3.0})], ids=ids)
    torch.testing.assert_close(got, brute(sae, x, lambda z: z + (2 * z + 6.0) * unit), atol=2e-4, rtol=1e-4)
    got = steered(host, sae, [scale({j: 3.0}), add({j: 2.0})], ids=ids)
    torch.testing.assert_close(got, brute(sae, x, lambda z: z + (2 * z + 2.0) * unit), atol=2e-4, rtol=1e-4)
    got = steered(host, sae, [clamp({j: 9.0}), ablate(j)], ids=ids)
    torch.testing.assert_close(got, brute(sae, x, set_to(j, 0.0)), atol=2e-4, rtol=1e-4)


def test_adding_encodes_nothing_and_other_edits_do(host, monkeypatch) -> None:
    sae, ids, calls = make_sae(input_norm="layer_norm"), batch(), []
    monkeypatch.setattr(sae, "encode_sparse", lambda x: (calls.append(len(x)), TopKSAE.encode_sparse(sae, x))[1])
    steered(host, sae, add({1: 1.0}), ids=ids)
    assert calls == []
    steered(host, sae, ablate([1]), ids=ids)
    assert calls == [ids.numel() - len(ids)]  # BOS is not read


def test_signed_latents_are_edited_where_they_are_negative(host) -> None:
    sae, ids = make_sae(), batch()
    sae.encode_sparse = lambda x: _signed(sae, x)
    x = clean(host, ids)
    latents = _signed(sae, x).to_dense()
    j = int((latents[:, 1:] < 0).sum((0, 1)).argmax())
    expected = x - latents[..., j : j + 1] * sae.W_dec[j]
    expected[:, 0] = x[:, 0]
    assert (latents[:, 1:, j] < 0).any()
    torch.testing.assert_close(steered(host, sae, ablate([j]), ids=ids), expected, atol=1e-4, rtol=1e-4)


def _signed(sae: TopKSAE, x: Tensor):
    from hf_sae.models import SparseCode

    with torch.no_grad():
        pre = sae.pre_activations(x)
        indices = pre.abs().topk(K, dim=-1).indices
        return SparseCode(pre.gather(-1, indices), indices, None, D_SAE)


def test_of_norm_makes_a_difference_of_that_length(host) -> None:
    ids = batch()
    for norm in ({}, {"input_norm": "scalar", "input_scale": 0.37}, {"input_norm": "layer_norm"}):
        sae = make_sae(**norm)
        x = clean(host, ids)
        delta = steered(host, sae, add({7: OfNorm(0.5)}), ids=ids) - x
        torch.testing.assert_close(delta[:, 1:].norm(dim=-1), 0.5 * x[:, 1:].norm(dim=-1), rtol=1e-4, atol=1e-5)
        assert (delta[:, 1:] @ sae.W_dec[7] > 0).all()
        assert (steered(host, sae, add({7: OfNorm(-0.5)}), ids=ids) - x)[:, 1:].matmul(sae.W_dec[7]).lt(0).all()


def test_of_max_is_a_multiple_of_the_recorded_maximum(host) -> None:
    sae, ids = make_sae(), batch()
    with pytest.raises(ValueError, match="evaluate"), steer(host, sae, add({7: OfMax(2)})):
        pass
    sae.feature_stats = {"density": torch.zeros(D_SAE), "maximum": torch.zeros(D_SAE)}
    sae.feature_stats["maximum"][7] = 3.0
    both = [steered(host, sae, edit, ids=ids) for edit in (add({7: OfMax(2)}), add({7: 6.0}))]
    assert torch.equal(*both)
    with pytest.raises(ValueError, match="maximum is 0"), steer(host, sae, clamp({8: OfMax(2)})):
        pass


def test_rows_have_their_own_edits(host) -> None:
    sae, ids = make_sae(), batch(3)
    x = clean(host, ids)
    j, other, _ = some_active(sae, x)
    edits = [add({j: 4.0}), None, [ablate([j]), clamp({other: 2.0})]]
    got = steered(host, sae, rows=edits, ids=ids)
    for row, edit in enumerate(edits):
        alone = steered(host, sae, edit, ids=ids[row : row + 1])
        torch.testing.assert_close(got[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[1], x[1])
    assert not torch.allclose(got[2], x[2], atol=1e-3)


def test_rows_must_be_as_many_as_the_batch(host) -> None:
    sae = make_sae()
    for rows in ([None], [None, add({1: 1.0}), None], [None, None, None]):
        with pytest.raises(ValueError, match=f"rows= has {len(rows)} entries, and the batch has 2 rows"):
            steered(host, sae, rows=rows, ids=batch(2))
    with pytest.raises(TypeError, match="not both"), steer(host, sae, add({1: 1.0}), rows=[None]):
        pass


@pytest.mark.parametrize("family", ["host", "gpt2"])
def test_generation_is_the_same_with_and_without_a_cache(request, family) -> None:
    host, sae = request.getfixturevalue(family), make_sae()
    ids = batch()
    for positions in ("all", "prompt", "generated", ids > 20):
        texts = {}
        for cache in (True, False):
            with steer(host, sae, [add({4: 20.0}), scale({9: 3.0})], positions=positions):
                texts[cache] = host.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cache)
        assert torch.equal(texts[True], texts[False]), positions
        if isinstance(positions, str) and positions == "all":
            assert not torch.equal(texts[True], host.generate(ids, max_new_tokens=8, do_sample=False))


def logits_of(host, ids: Tensor, context, new: int = 4, **options: object) -> Tensor:
    with context:
        out = host.generate(
            ids, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
        )
    return torch.stack(out.logits)


def test_positions_choose_prompt_or_generated_tokens(host) -> None:
    from contextlib import nullcontext

    sae, ids, edit = make_sae(), batch(), add({4: 30.0})
    plain = logits_of(host, ids, nullcontext())
    generated = logits_of(host, ids, steer(host, sae, edit, positions="generated"))
    assert torch.equal(generated[0], plain[0])  # what the first new token is chosen from is the unsteered prompt
    assert not torch.allclose(generated[1], plain[1])
    prompt = logits_of(host, ids, steer(host, sae, edit, positions="prompt"), new=1)
    everything = logits_of(host, ids, steer(host, sae, edit), new=1)
    assert torch.equal(prompt, everything)
    x = clean(host, ids)
    assert torch.equal(steered(host, sae, edit, ids=ids, positions="generated"), x)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 3] = True
    by_mask = steered(host, sae, edit, ids=ids, positions=mask)
    by_function = steered(host, sae, edit, ids=ids, positions=lambda call: mask & (call.input_ids >= 0))
    assert torch.equal(by_mask, by_function)
    assert ((by_mask != x).any(-1) == mask).all()


def test_two_generations_in_one_context_are_alike(host) -> None:
    sae, ids = make_sae(), batch()
    for positions in ("generated", ids > 20):
        with steer(host, sae, add({4: 30.0}), positions=positions):
            first = host.generate(ids, max_new_tokens=6, do_sample=False)
            host.generate(ids[:, :4] if positions == "generated" else ids, max_new_tokens=3, do_sample=False)
            assert torch.equal(host.generate(ids, max_new_tokens=6, do_sample=False), first)


def test_left_padding_does_not_change_a_row(host) -> None:
    sae, short = make_sae(), batch(1, 5)
    ids = torch.cat([torch.cat([torch.full((1, 3), 1), short], 1), batch(1, 8, seed=5)])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    edits = [add({4: 20.0}), scale({9: 3.0})]
    with steer(host, sae, edits):
        both = host.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        alone = host.generate(short, max_new_tokens=6, do_sample=False)
    assert torch.equal(both[0, 3:], alone[0])
    got = steered(host, sae, edits, ids=ids, inputs={"attention_mask": mask})
    x = clean(host, ids, attention_mask=mask)
    assert torch.equal(got[0, :4], x[0, :4])  # padding and BOS
    assert (got[0, 4:] != x[0, 4:]).any(-1).all()
    special = steered(host, sae, edits, ids=ids, inputs={"attention_mask": mask}, include_special=True)
    assert (special != x).any(-1).all()


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}],
)
def test_rows_follow_beams_and_returned_sequences(host, options) -> None:
    sae, ids, edit = make_sae(), batch(), add({4: 40.0})
    n = options.get("num_return_sequences", 1)

    def run(ids: Tensor, **steering: object) -> Tensor:
        torch.manual_seed(0)
        with steer(host, sae, **steering):
            return host.generate(ids, max_new_tokens=5, **options)

    both = run(ids, rows=[None, edit])
    if "do_sample" in options:
        plain, everywhere = run(ids, edits=None), run(ids, edits=edit)
        assert torch.equal(both[:n], plain[:n])
        assert torch.equal(both[n:], everywhere[n:])
        assert not torch.equal(plain, everywhere)
        return
    assert torch.equal(both[:n], run(ids[:1], edits=None))
    assert torch.equal(both[n:], run(ids[1:], edits=edit))
    assert not torch.equal(both[n:], run(ids[1:], edits=None))


def test_a_mask_of_the_prompt_follows_beams(host) -> None:
    sae, ids, edit = make_sae(), batch(), add({4: 40.0})
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[1, 2:] = True
    options = {"max_new_tokens": 5, "num_beams": 3}
    with steer(host, sae, edit, positions=mask):
        both = host.generate(ids, **options)
    with steer(host, sae, edit, positions="prompt"):
        second = host.generate(ids, **options)
    first = host.generate(ids, **options)
    assert torch.equal(both[0], first[0])
    with steer(host, sae, edit, positions=mask[1:]):
        assert torch.equal(both[1:], host.generate(ids[1:], **options))
    assert not torch.equal(second, first)


def test_a_second_context_may_be_entered_while_rows_are_steered(host) -> None:
    ids, places = batch(), {"hook_in": "mlp_in.1", "hook_out": "mlp_out.1"}
    first, transcoder = make_sae(), make_sae(**places)
    # finding mlp_in runs the host, which the open context must not see
    with steer(host, first, rows=[None, add({4: 5.0})]):
        got = steered(host, transcoder, scale({3: 2.0}), ids=ids, point="resid_post.1")
    assert got.isfinite().all()
    source, before = clean(host, ids[:1], "mlp_in.1"), clean(host, ids[:1], "resid_post.1")
    expected = before + transcoder.encode(source)[..., 3:4].detach() * transcoder.W_dec[3]
    torch.testing.assert_close(got[:1, 1:], expected[:, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_read_at_its_input_and_changes_its_output(host, skip) -> None:
    places = {"hook_in": "model.layers.1.mlp:input", "hook_out": "model.layers.1.mlp"}
    sae, ids = make_sae(**places, skip=skip, input_norm="layer_norm"), batch()
    source, target = clean(host, ids, places["hook_in"]), clean(host, ids, places["hook_out"])
    latents = sae.encode(source).detach()
    j = some_active(sae, source)[0]
    for edit, change in ((scale({j: 3.0}), 2 * latents[..., j]), (add({j: 2.0}), torch.full(ids.shape, 2.0))):
        expected = target + change[..., None] * sae.W_dec[j]
        expected[:, 0] = target[:, 0]
        got = steered(host, sae, edit, ids=ids, point=places["hook_out"])
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)
        assert torch.equal(steered(host, sae, edit, ids=ids, point=places["hook_in"]), source)
    got = steered(host, sae, add({j: OfNorm(1.0)}), ids=ids, point=places["hook_out"]) - target
    torch.testing.assert_close(got[:, 1:].norm(dim=-1), target[:, 1:].norm(dim=-1), rtol=1e-4, atol=1e-5)


def test_several_autoencoders_at_several_places(host) -> None:
    first, second, ids = make_sae(), make_sae(hook_in="resid_post.1"), batch()
    edits = add({3: 5.0}), clamp({4: 3.0})
    with torch.no_grad():
        with steer(host, {first: edits[0], second: edits[1]}):
            together = host(ids).logits
        with steer(host, first, edits[0]), steer(host, second, edits[1]):
            nested = host(ids).logits
        with steer(host, first, edits[0]):
            only = host(ids).logits
    assert torch.equal(together, nested)
    assert not torch.equal(together, only)
    with pytest.raises(TypeError, match="dictionary"), steer(host, {first: None}, add({1: 1.0})):
        pass


def test_nested_contexts_at_one_place_compose(host) -> None:
    sae, ids = make_sae(), batch()
    x = clean(host, ids)
    with steer(host, sae, add({3: 2.0})):
        got = steered(host, sae, add({3: 1.0}), ids=ids)
    torch.testing.assert_close(got[:, 1:], (x + 3 * sae.W_dec[3])[:, 1:], atol=1e-4, rtol=1e-4)


def hooks_of(host: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules())


def test_no_hook_is_left_behind(host) -> None:
    sae, ids = make_sae(), batch()
    expected = host(ids).logits
    with steer(host, sae, add({3: 5.0})):
        assert hooks_of(host) > 0
    with pytest.raises(ValueError, match="rows="):
        steered(host, sae, rows=[None], ids=ids)
    other = make_sae(hook_in="resid_post.99")
    with pytest.raises(HookPointError), steer(host, {sae: add({3: 5.0}), other: add({3: 5.0})}):
        pass

    def fails(call: object) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steered(host, {sae: add({3: 5.0}), make_sae(): add({1: 1.0})}, ids=ids, positions=fails)
    assert hooks_of(host) == 0
    assert torch.equal(host(ids).logits, expected)


def test_half_precision_is_steered_in_float32(host) -> None:
    import copy

    half, sae, ids = copy.deepcopy(host).to(torch.bfloat16), make_sae(), batch()
    x = clean(half, ids)
    got = steered(half, sae, add({3: 1.0}), ids=ids)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got[:, 1:], (x.float() + sae.W_dec[3]).bfloat16()[:, 1:])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: add({-1: 1.0}), ValueError, "negative"),
        (lambda: ablate([2, -3]), ValueError, "negative"),
        (lambda: add({1: float("nan")}), ValueError, "finite"),
        (lambda: clamp({1: float("inf")}), ValueError, "finite"),
        (lambda: OfMax(float("nan")), ValueError, "finite"),
        (lambda: scale({1: OfMax(2)}), TypeError, "no unit"),
        (lambda: add([1, 2]), TypeError, "dictionary"),
        (lambda: add({"a": 1.0}), TypeError, "integer"),
        (lambda: add({1: "much"}), TypeError, "strength"),
        (lambda: ablate("ab"), TypeError, "integer"),
    ],
)
def test_impossible_edits_say_why(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make()


def test_what_does_not_fit_is_refused_before_anything_runs(host) -> None:
    sae = make_sae()

    def refused(error: type[Exception], words: str, *args: object, **options: object) -> None:
        with pytest.raises(error, match=words), steer(host, *args, **options):
            pytest.fail("entered")

    refused(ValueError, "d_sae=40", sae, add({40: 1.0}))
    refused(TypeError, "not an edit", sae, {3: 1.0})
    refused(TypeError, "not an edit", sae, [add({1: 1.0}), 3])
    refused(ValueError, "did you mean 'generated'", sae, add({1: 1.0}), positions="generate")
    refused(ValueError, "return_assistant_tokens_mask", sae, add({1: 1.0}), positions="assistant")
    refused(ValueError, "bool mask", sae, add({1: 1.0}), positions=torch.ones(2, 6))
    refused(HookPointError, "16 wide", make_sae(d_in=12), add({1: 1.0}))
    with pytest.raises(HookPointError, match="16 wide"):
        steered(host, make_sae(d_in=12, hook_in="model.layers.1.mlp:input"), add({1: 1.0}), ids=batch())
    refused(HookPointError, "hook_in", make_sae(hook_in=None), add({1: 1.0}))
    with torch.no_grad():
        sae.decoder.weight[5] = 0
    refused(ValueError, "decoder row is zero", sae, add({5: OfNorm(1.0)}))


def test_masks_that_do_not_fit_the_batch_say_so(host) -> None:
    sae, ids = make_sae(), batch()
    with pytest.raises(ValueError, match="2 rows of 6 tokens"):
        steered(host, sae, add({1: 1.0}), ids=ids, positions=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="one entry per token"):
        steered(host, sae, add({1: 1.0}), ids=ids, positions=lambda call: torch.ones(3, dtype=torch.bool))


def test_bos_is_what_the_tokenizer_says(host) -> None:
    class Tokenizer:
        bos_token_id = 7

    sae, ids = make_sae(), batch()
    ids[0, 2] = 7
    changed = (steered(host, sae, add({1: 9.0}), ids=ids, tokenizer=Tokenizer()) != clean(host, ids)).any(-1)
    assert (changed == (ids != 7)).all()


def test_gradients_pass_through_a_steered_host(host) -> None:
    sae, ids = make_sae(), batch()
    x = clean(host, ids)
    j = some_active(sae, x)[0]
    embeds = host.get_input_embeddings()(ids).detach().requires_grad_()
    with steer(host, sae, ablate([j])), capture(host, POINT) as acts:
        host(inputs_embeds=embeds)
    acts[POINT].square().sum().backward()
    plain = host.get_input_embeddings()(ids).detach().requires_grad_()
    with capture(host, POINT) as acts:
        host(inputs_embeds=plain)
    x = acts[POINT]
    (x - sae.encode(x)[..., j, None] * sae.W_dec[j]).square().sum().backward()
    torch.testing.assert_close(embeds.grad, plain.grad, atol=1e-3, rtol=1e-3)
