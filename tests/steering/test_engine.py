"""The engine against `steer` with `generate` of transformers: what rows share must not change what they say."""

from __future__ import annotations

import pytest
import torch

from hf_sae.errors import DataError
from hf_sae.steering import (
    OfNorm,
    Sampling,
    SteeringEngine,
    SteeringPlan,
    SteeringRequest,
    Variant,
    ablate,
    add,
    clamp,
    scale,
    steer,
    sweep,
)
from hf_sae.steering.engine import diverges_at

from . import hosts as tiny


PROMPT = "w7 w20 w31 w9 w44"
FAMILIES = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "gemma2": tiny.gemma2,
    "opt": tiny.opt,
    "bloom": tiny.bloom,
    "mamba": tiny.mamba,
}
PLANS = {
    "add": add({3: 4.0}),
    "add of norm": add({3: OfNorm(0.8)}),
    "clamp": clamp({5: 3.0}),
    "scale": scale({1: 3.0, 2: -2.0, 7: 4.0}),
    "ablate": ablate(range(20)),
    "several": [add({3: 3.0}), ablate([4, 5, 6, 7]), clamp({9: 2.0})],
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def host():
    return tiny.llama()


@pytest.fixture(scope="module")
def sae():
    return tiny.autoencoder()


@pytest.fixture
def engine(host, tokenizer, sae):
    with SteeringEngine(host, tokenizer, {"": sae}) as engine:
        yield engine


def generated(host, tokenizer, prompt: str, n: int, *steering: object, **options: object) -> list[int]:
    """What transformers generates under `steer`."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    start = inputs["input_ids"].shape[1]
    arguments = {"max_new_tokens": n, "do_sample": False, "pad_token_id": tiny.PAD, "eos_token_id": None}
    if not steering:
        return host.generate(**inputs, **arguments)[0, start:].tolist()
    with steer(host, *steering, tokenizer=tokenizer, **options):
        return host.generate(**inputs, **arguments)[0, start:].tolist()


def ids(stream) -> list[int]:
    return [token.id for token in stream.tokens]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_is_what_steer_and_generate_give(family, tokenizer, sae) -> None:
    host = FAMILIES[family]()
    variants = [Variant("baseline"), *(Variant(name, SteeringPlan({"": edits})) for name, edits in PLANS.items())]
    with SteeringEngine(host, tokenizer, {"": sae}) as engine:
        assert engine.shares_a_cache == (family != "mamba")
        streams = engine.generate(SteeringRequest(PROMPT, tuple(variants), max_new_tokens=12))
    assert ids(streams[0]) == generated(host, tokenizer, PROMPT, 12)
    changed = 0
    for stream, edits in zip(streams[1:], PLANS.values(), strict=True):
        assert ids(stream) == generated(host, tokenizer, PROMPT, 12, sae, edits), stream.name
        changed += ids(stream) != ids(streams[0])
    assert changed >= 4  # edits that change nothing would show nothing


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_positions_are_those_of_steer(engine, host, tokenizer, sae, positions) -> None:
    plan = SteeringPlan({"": add({3: 6.0})}, positions)
    (stream,) = engine.generate(SteeringRequest(PROMPT, (Variant("s", plan),), max_new_tokens=10))
    assert ids(stream) == generated(host, tokenizer, PROMPT, 10, sae, add({3: 6.0}), positions=positions)


def test_bos_is_steered_only_if_the_plan_says_so(engine, host, tokenizer, sae) -> None:
    edits = add({3: 9.0})
    found = []
    for include in (False, True):
        plan = SteeringPlan({"": edits}, "prompt", include)
        (stream,) = engine.generate(SteeringRequest("w7", (Variant("s", plan),), max_new_tokens=10))
        assert ids(stream) == generated(
            host, tokenizer, "w7", 10, sae, edits, positions="prompt", include_special=include
        )
        found.append(ids(stream))
    assert found[0] != found[1]


def test_several_autoencoders_at_several_places(host, tokenizer, sae) -> None:
    other = tiny.autoencoder("mlp_in.1", 4, hook_out="mlp_out.1")
    with SteeringEngine(host, tokenizer, {"a": sae, "b": other}) as engine:
        plan = SteeringPlan({"a": add({3: 3.0}), "b": clamp({2: 30.0})})
        (both,) = engine.generate(SteeringRequest(PROMPT, (Variant("s", plan),), max_new_tokens=12))
        (first,) = engine.generate(
            SteeringRequest(PROMPT, (Variant("s", SteeringPlan({"a": add({3: 3.0})})),), max_new_tokens=12)
        )
    assert ids(both) == generated(host, tokenizer, PROMPT, 12, {sae: add({3: 3.0}), other: clamp({2: 30.0})})
    assert ids(both) != ids(first)


def test_a_conditional_edit_holds_only_where_its_trigger_fires(engine, host, tokenizer, sae) -> None:
    from hf_sae.hooks import capture
    from hf_sae.steering import when

    inputs = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad(), capture(host, tiny.POINT) as acts:
        host(inputs)
    clean = acts[tiny.POINT]
    latents = sae.encode(clean[0])
    fires = (latents[1:] > 0).sum(0)  # BOS is not steered
    trigger = int((fires >= 3).nonzero()[0])
    above = (
        latents[1:, trigger].detach().sort().values[-2].item()
    )  # it fires on three tokens, and more than this on one
    with torch.no_grad(), steer(host, sae, when(add({3: 5.0}), trigger, above)), capture(host, tiny.POINT) as acts:
        host(inputs)
    expected = clean.clone()
    where = latents[:, trigger] > above
    where[0] = False
    expected[0, where] += 5.0 * sae.W_dec[3]
    torch.testing.assert_close(acts[tiny.POINT], expected)
    assert where.sum() == 1


def test_the_gauge_is_the_divergence_from_the_host_by_itself(engine, host, tokenizer, sae) -> None:
    plan = SteeringPlan({"": add({3: 3.0})})
    baseline, stream = engine.generate(SteeringRequest(PROMPT, (Variant("b"), Variant("s", plan)), max_new_tokens=6))
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt, torch.tensor([ids(stream)])], 1)
    with torch.no_grad():
        q = host(whole).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        with steer(host, sae, add({3: 3.0}), tokenizer=tokenizer):
            p = host(whole).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(torch.tensor([t.kl for t in stream.tokens]), kl, atol=1e-4, rtol=1e-4)
    surprise = -q[range(6), ids(stream)]
    torch.testing.assert_close(torch.tensor([t.surprise for t in stream.tokens]), surprise, atol=1e-4, rtol=1e-4)
    assert stream.coherence is not None
    assert stream.coherence.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert stream.coherence.perplexity == pytest.approx(float(surprise.mean().exp()), rel=1e-3)
    entropy = -(q.exp() * q).sum(-1)
    assert stream.coherence.excess == pytest.approx(float((surprise - entropy).mean()), abs=1e-4)
    assert baseline.coherence is not None
    assert baseline.coherence.kl == 0


def test_an_instruction_is_gauged_against_the_prompt_without_it(engine, host, tokenizer) -> None:
    request = SteeringRequest(PROMPT, (Variant("b"), Variant("told", instruction="w11 w12")), max_new_tokens=4)
    baseline, told = engine.generate(request)
    assert ids(told) == generated(host, tokenizer, f"w11 w12 {PROMPT}", 4)
    assert told.tokens[0].kl == pytest.approx(_kl_after(host, tokenizer, f"w11 w12 {PROMPT}", PROMPT), abs=1e-4)
    assert baseline.prompt == PROMPT


def _kl_after(host, tokenizer, one: str, other: str) -> float:
    with torch.no_grad():
        p, q = (
            host(tokenizer(t, return_tensors="pt")["input_ids"]).logits[0, -1].log_softmax(-1) for t in (one, other)
        )
    return float((p.exp() * (p - q)).sum())


def test_the_trace_names_the_strongest_latents_of_every_generated_token(engine, host, tokenizer, sae) -> None:
    plan = SteeringPlan({"": add({3: 3.0})})
    (stream,) = engine.generate(SteeringRequest(PROMPT, (Variant("s", plan),), max_new_tokens=5, trace=3))
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    from hf_sae.hooks import capture

    whole = torch.cat([prompt, torch.tensor([ids(stream)])], 1)
    with torch.no_grad(), steer(host, sae, add({3: 3.0}), tokenizer=tokenizer), capture(host, tiny.POINT) as acts:
        host(whole)
    latents = sae.encode(acts[tiny.POINT][0, prompt.shape[1] :])
    for token, row in zip(stream.tokens, latents, strict=True):
        best = row.abs().topk(3)
        assert [latent for _, latent, _ in token.latents] == best.indices.tolist()
        torch.testing.assert_close(
            torch.tensor([v for _, _, v in token.latents]), row[best.indices], atol=1e-4, rtol=1e-4
        )


def test_variants_share_their_random_numbers(engine) -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    plans = (Variant("a"), Variant("b"), Variant("weak", SteeringPlan({"": add({3: 1e-6})})))
    a, b, weak = engine.generate(SteeringRequest(PROMPT, plans, max_new_tokens=30, sampling=sampling))
    assert ids(a) == ids(b) == ids(weak)
    (again,) = engine.generate(SteeringRequest(PROMPT, (Variant("a"),), max_new_tokens=30, sampling=sampling))
    assert ids(again) == ids(a)
    (other,) = engine.generate(
        SteeringRequest(PROMPT, (Variant("a"),), max_new_tokens=30, sampling=Sampling(temperature=1.0, seed=12))
    )
    assert ids(other) != ids(a)


def test_a_sweep_multiplies_the_plan(engine, host, tokenizer, sae) -> None:
    plan = SteeringPlan({"": [add({3: 2.0}), scale({1: 3.0}), ablate(4)]})
    streams = engine.generate(SteeringRequest(PROMPT, sweep(plan, [0.5, 2]), max_new_tokens=8))
    halves = [[add({3: 1.0}), scale({1: 2.0}), ablate(4)], [add({3: 4.0}), scale({1: 5.0}), ablate(4)]]
    assert [s.name for s in streams] == ["0.5×", "2×"]
    for stream, edits in zip(streams, halves, strict=True):
        assert ids(stream) == generated(host, tokenizer, PROMPT, 8, sae, edits)
    (off,) = engine.generate(SteeringRequest(PROMPT, (Variant("off", plan.ablated()),), max_new_tokens=8))
    assert ids(off) == generated(host, tokenizer, PROMPT, 8, sae, ablate([3, 1, 4]))


def test_a_text_ends_at_eos_and_only_that_one(host, tokenizer, sae) -> None:
    baseline = generated(host, tokenizer, PROMPT, 10)
    ended = tiny.tokenizer()
    ended.eos_token = f"w{baseline[4]}"
    first = baseline.index(baseline[4])
    with SteeringEngine(host, ended, {"": sae}) as engine:
        plan = SteeringPlan({"": add({3: 6.0})})
        a, b = engine.generate(SteeringRequest(PROMPT, (Variant("b"), Variant("s", plan)), max_new_tokens=10))
    assert (ids(a), a.note) == (baseline[:first], "the text ended")
    other = generated(host, tokenizer, PROMPT, 10, sae, add({3: 6.0}))
    assert ids(b) == (other[: other.index(baseline[4])] if baseline[4] in other else other)


CHAT = (
    "{% for m in messages %}w{{ 10 + loop.index0 }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %} {% endfor %}{% if add_generation_prompt %}w40{% endif %}"
)


def test_a_chat_is_read_through_its_template_and_only_the_assistant_is_steered(host, sae) -> None:
    tokenizer = tiny.tokenizer(CHAT)
    chat = [
        {"role": "user", "content": "w5 w6"},
        {"role": "assistant", "content": "w7 w8"},
        {"role": "user", "content": "w9"},
    ]
    with SteeringEngine(host, tokenizer, {"": sae}) as engine:
        plan = SteeringPlan({"": add({3: 5.0})}, "assistant")
        variants = (Variant("b"), Variant("s", plan), Variant("told", instruction="w33"))
        baseline, stream, told = engine.generate(SteeringRequest(chat, variants, max_new_tokens=6))
    rendered = "w10 w5 w6 w11 w7 w8 w12 w9 w40"
    assert baseline.prompt == rendered
    assert told.prompt == "w10 w33 w11 w5 w6 w12 w7 w8 w13 w9 w40"
    prompt = torch.tensor([[int(word[1:]) for word in rendered.split()]])
    assistant = torch.tensor([[word in ("w7", "w8") for word in rendered.split()]])

    def where(call: object) -> torch.Tensor:
        mask = call.generated_mask.clone()
        n = min(mask.shape[1], assistant.shape[1])
        if not call.generated_mask[0, 0]:
            mask[:, :n] |= assistant[:, :n]
        return mask

    with steer(host, sae, add({3: 5.0}), positions=where, tokenizer=tokenizer):
        expected = host.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1)[0, 9:]
    assert ids(stream) == expected.tolist()
    assert ids(stream) != ids(baseline)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompt": ""}, DataError, "empty"),
        ({"prompt": []}, DataError, "no messages"),
        ({"prompt": [{"role": "user", "content": "w5"}]}, DataError, "no chat template"),
        ({"prompt": [{"role": "user"}]}, DataError, "no chat template|no message"),
        ({"max_new_tokens": 1000}, DataError, "128"),
        ({"variants": (Variant("s", SteeringPlan({"x": add({3: 1.0})})),)}, ValueError, "'x'"),
        ({"variants": (Variant("s", SteeringPlan({"": add({99: 1.0})})),)}, ValueError, "d_sae=40"),
        ({"variants": tuple(Variant(str(i)) for i in range(97))}, ValueError, "97 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(engine, change, error, words) -> None:
    options = {"prompt": PROMPT, "variants": (Variant("b"),), "max_new_tokens": 4} | change
    with pytest.raises(error, match=words):
        engine.start(SteeringRequest(**options))
    assert engine.generate(SteeringRequest(PROMPT, (Variant("b"),), max_new_tokens=2))[0].state == "done"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sampling(temperature=float("nan")),
        lambda: Sampling(temperature=-1),
        lambda: Sampling(top_p=0),
        lambda: Sampling(top_k=-1),
        lambda: Sampling(seed=-1),
        lambda: SteeringRequest("x", ()),
        lambda: SteeringRequest("x", (Variant("b"),), max_new_tokens=0),
        lambda: SteeringRequest("x", (Variant("b"),), trace=-1),
        lambda: SteeringPlan({}, "asistant"),
        lambda: sweep(SteeringPlan(), [float("inf")]),
    ],
)
def test_numbers_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make()


def test_top_k_and_top_p_leave_the_likeliest_tokens(engine) -> None:
    from hf_sae.steering.engine.sampler import Sampler

    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0, -1.0]])
    p = logits.softmax(-1)[0]
    for sampling, allowed in (
        (Sampling(1.0, top_k=2), [1, 2]),
        (Sampling(1.0, top_p=0.6), [1]),
        (Sampling(1.0, top_p=0.8), [1, 2]),
        (Sampling(1.0), [0, 1, 2, 3, 4]),
    ):
        sampler = Sampler(sampling)
        counts = torch.zeros(5)
        for _ in range(4000):
            counts[sampler.choose(logits)[0]] += 1
        expected = torch.zeros(5)
        expected[allowed] = p[allowed] / p[allowed].sum()
        torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_where_streams_part(engine) -> None:
    plan = SteeringPlan({"": add({3: 3.0})})
    baseline, stream = engine.generate(SteeringRequest(PROMPT, (Variant("b"), Variant("s", plan)), max_new_tokens=12))
    place = diverges_at(stream, baseline)
    assert place is not None
    assert ids(stream)[:place] == ids(baseline)[:place]
    assert ids(stream)[place] != ids(baseline)[place]
    assert diverges_at(baseline, baseline) is None
