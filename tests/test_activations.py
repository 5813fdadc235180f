from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae.activations import ActivationStream
from hf_sae.data import TokenDataset
from hf_sae.errors import DataError, HookPointError

from .toy_text import BOS, END, EOS, FIRST_WORD, MARKED_TEMPLATE, WORDS, chats, documents, tokenizer, word


WIDTH, POINTS = 8, ["embed", "resid_post.1"]
SLOT_BYTES = 2 * WIDTH * 4 + 16


def ring_of(slots: int) -> int:
    """The bytes that leave room for so many tokens beside the shuffled rows."""
    return -(-slots * SLOT_BYTES * 16 // 15)


RING = ring_of(200)


@pytest.fixture(scope="module")
def host() -> LlamaForCausalLM:
    """At `embed` a token's activation is its id, so what was served can be read off."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=FIRST_WORD + WORDS,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.arange(config.vocab_size)[:, None].expand(-1, WIDTH))
    return model


def make(host: Any, dataset: Any = None, points: Any = None, text: Any = None, **options: Any) -> ActivationStream:
    dataset = documents(60) if dataset is None else dataset
    options = {"context_length": 16, "batch_size": 2, "ring_bytes": RING, **options}
    return ActivationStream(host, text or tokenizer(), dataset, points or POINTS, **options)


def tokens(rows: dict[str, torch.Tensor]) -> list[int]:
    return rows["embed"][:, 0].long().tolist()


def served(stream: ActivationStream, size: int = 30) -> list[int]:
    return [token for rows in stream.batches(size) for token in tokens(rows)]


def expected(texts: list[str]) -> list[int]:
    encode = tokenizer()
    return sorted([i for text in texts for i in encode(text)["input_ids"]] + [EOS] * len(texts))


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    assert all(isinstance(key, str) for key in state)
    return {k: v if isinstance(v, torch.Tensor) else json.loads(json.dumps(v)) for k, v in state.items()}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [1, 30, 64, 100])
def test_each_kept_token_is_served_once(host, packed, size):
    stream = make(host, packed=packed)
    batches = list(stream.batches(size))
    got = [token for rows in batches for token in tokens(rows)]
    assert sorted(got) == expected(documents(60))
    assert all(len(rows["embed"]) == size for rows in batches[:-1])
    assert 0 < len(batches[-1]["embed"]) <= size
    assert stream.counts["served"] == len(got)
    assert stream.counts["seen"] == len(got) + len(documents(60))
    assert stream.counts["masked"] == len(documents(60))
    assert BOS not in got


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_the_host_batch_does_not_change_what_is_served(host, batch_size):
    stream = make(host, points=["embed", "resid_post.1"], batch_size=batch_size)
    rows = [
        torch.cat(column)
        for column in zip(*((r["embed"], r["resid_post.1"]) for r in stream.batches(50)), strict=True)
    ]
    reference = make(host, batch_size=3)
    other = [torch.cat(c) for c in zip(*((r["embed"], r["resid_post.1"]) for r in reference.batches(50)), strict=True)]
    words, others = (r[0][:, 0].argsort() for r in (rows, other))
    words, others = words[len(documents(60)) :], others[len(documents(60)) :]  # the EOS ids are not unique
    assert torch.equal(rows[0][words], other[0][others])
    torch.testing.assert_close(rows[1][words], other[1][others])


def test_activations_are_those_of_the_host(host):
    dataset = TokenDataset(documents(60), tokenizer(), context_length=16, batch_size=2)
    truth = {}
    with torch.no_grad():
        for batch in dataset:
            hidden = host.model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
            for token, row in zip(batch.input_ids.flatten(), hidden.hidden_states[2].flatten(0, 1), strict=True):
                truth[int(token)] = row
    for rows in make(host).batches(40):
        for token, row in zip(tokens(rows), rows["resid_post.1"], strict=True):
            if token != EOS:
                torch.testing.assert_close(row, truth[token])


def test_each_row_says_which_token_of_which_document_it_is(host):
    texts = documents(60)
    encode = tokenizer()
    home = {i: number for number, text in enumerate(texts) for i in encode(text)["input_ids"]}
    for rows in make(host, texts).batches(40):
        assert rows.token_ids.dtype == rows.document_ids.dtype == torch.int32
        assert rows.token_ids.tolist() == tokens(rows)
        for token, document in zip(tokens(rows), rows.document_ids.tolist(), strict=True):
            assert token == EOS or home[token] == document


def test_tokens_of_a_document_are_spread(host):
    texts = [word(*range(n * 50, n * 50 + 50)) for n in range(30)]
    order = [t for t in served(make(host, texts, ring_bytes=ring_of(800))) if t != EOS]
    position = {token: place for place, token in enumerate(order)}
    neighbours = sum(abs(position[t] - position[t + 1]) == 1 for t in order if t + 1 in position)
    assert neighbours < 20  # 1470 before the shuffle
    first = [(token - FIRST_WORD) // 50 for token in order[:100]]
    assert len(set(first)) > 8
    gaps = [abs(position[t] - position[t + 1]) for t in order if t + 1 in position]
    assert sum(gaps) / len(gaps) > 150


def test_seed(host):
    one, same, other = (served(make(host, seed=seed)) for seed in (4, 4, 5))
    assert one == same
    assert one != other


def stream_of(records: list[Any]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(records))


RESUMED = {
    "packed": (lambda: documents(80), {}),
    "rows": (lambda: documents(80), {"packed": False}),
    "dataset": (lambda: Dataset.from_dict({"text": documents(80)}), {}),
    "stream": (lambda: stream_of([{"text": text} for text in documents(80)]), {}),
    "chat": (lambda: chats(60), {"positions": "assistant"}),
    "epochs": (lambda: documents(30), {"repeat": True}),
    "stream epochs": (lambda: stream_of([{"text": text} for text in documents(30)]), {"repeat": True}),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_restored_stream_goes_on_to_the_bit(host, kind):
    def fresh() -> ActivationStream:
        dataset, options = RESUMED[kind]
        return make(host, dataset(), text=tokenizer(MARKED_TEMPLATE), **options)

    stream = fresh()
    batches, states = [], [through_json(stream.state_dict())]
    for rows in stream.batches(37):
        batches.append(rows)
        states.append(through_json(stream.state_dict()))
        if len(batches) == 60:
            break
    counts = stream.counts
    for stop in {0, 1, 2, len(batches) // 2, len(batches) - 1}:
        again = fresh()
        again.load_state_dict(states[stop])
        rest = again.batches(37)
        for rows in batches[stop:]:
            got = next(rest)
            assert all(torch.equal(got[point], rows[point]) for point in POINTS)
        assert again.counts == counts
        assert (next(rest, None) is None) == (len(batches) < 60)


def test_going_on_after_a_break(host):
    stream, got = make(host), []
    while len(got) < len(expected(documents(60))):
        for rows in stream.batches(30):
            got += tokens(rows)
            break
    assert got == served(make(host))
    with pytest.raises(DataError, match=r"at its end.*repeat=True"):
        stream.batches(30)


def test_epochs_are_whole(host):
    texts = documents(25)
    total, stream = len(expected(texts)), make(host, documents(25), repeat=True, ring_bytes=ring_of(64))
    got: list[int] = []
    for rows in stream.batches(20):
        got += tokens(rows)
        if len(got) >= 6 * total:
            break
    counts = torch.tensor(got).bincount(minlength=FIRST_WORD + WORDS)[FIRST_WORD : FIRST_WORD + total - len(texts)]
    assert counts.min() >= 5  # only what waits in the ring is missing
    assert counts.max() <= 7


def test_a_sample_changes_nothing(host):
    plain, sampled, got = make(host), make(host), []
    first = tokens(sampled.sample(50))
    assert sampled.counts["served"] == 0
    for rows in sampled.batches(30):
        got += tokens(rows)
        sampled.sample(1000)
    assert got == served(plain)
    assert got[:50] == first
    assert len(tokens(make(host).sample(10_000))) == 200


def test_memory_stays_within_the_ring_and_one_host_batch(host):
    stream = make(host, documents(100), ring_bytes=RING)
    host_batch, total = 2 * 16 * (2 * WIDTH * 4 + 8), len(expected(documents(100))) + 100
    for _ in stream.batches(25):
        ring = stream.ring
        held = [*ring.slots.values(), *ring.pending.values(), ring.order]
        assert ring.remaining >= ring.half or stream.counts["seen"] == total  # what is served is drawn from many
        # the storage behind a view counts, so that a leftover cannot keep a whole batch alive
        assert sum(t.untyped_storage().nbytes() for t in held) + stream.rows.nbytes <= RING + host_batch
    assert stream.ring.capacity == 200


def test_a_state_is_a_snapshot_without_what_is_empty(host):
    stream = make(host)
    assert not any(key.startswith("ring.slots") for key in stream.state_dict())
    batches = stream.batches(30)
    next(batches)
    state = stream.state_dict()
    before = state["ring.slots.0"].clone()
    list(batches)
    assert torch.equal(state["ring.slots.0"], before)
    small = make(host, documents(3))
    next(small.batches(5))
    assert len(small.state_dict()["ring.slots.0"]) == len(expected(documents(3)))


def test_only_what_the_role_wrote_is_served(host):
    stream = make(host, chats(20), text=tokenizer(MARKED_TEMPLATE), positions="assistant")
    encode = tokenizer()
    wrote = [
        i
        for record in chats(20)
        for message in record["messages"]
        if message["role"] == "assistant"
        for i in [*encode(message["content"])["input_ids"], END]
    ]
    assert sorted(served(stream)) == sorted(wrote)
    assert stream.counts["masked"] == stream.counts["seen"] - len(wrote) > 0


def test_the_mode_of_every_module_is_restored(host):
    host.train()
    host.model.layers[0].eval()
    try:
        next(make(host).batches(10))
        assert host.training
        assert not host.model.layers[0].mlp.training
        assert host.model.layers[1].mlp.training
        assert not host._forward_hooks
    finally:
        host.eval()


def test_dropout_is_off(host):
    config = LlamaConfig(**{**host.config.to_dict(), "attention_dropout": 0.9})
    noisy = LlamaForCausalLM(config)
    noisy.load_state_dict(host.state_dict())
    noisy.train()
    a, b = (torch.cat([r["resid_post.1"] for r in make(noisy).batches(50)]) for _ in range(2))
    assert torch.equal(a, b)


def test_dtypes(host):
    assert make(host).sample(3)["embed"].dtype == torch.float32
    assert make(host, dtype=torch.bfloat16).sample(3)["embed"].dtype == torch.bfloat16
    half = LlamaForCausalLM(host.config).to(torch.bfloat16)
    stream = make(half)
    assert stream.sample(3)["resid_post.1"].dtype == torch.bfloat16
    assert stream.ring.capacity > 300


def test_widths_and_info(host):
    stream = make(host, points=["resid_post.1", "model.layers.0.mlp.gate_proj:output"], seed=3)
    next(stream.batches(10))
    assert stream.widths == {"resid_post.1": WIDTH, "model.layers.0.mlp.gate_proj:output": 16}
    info = json.loads(json.dumps(stream.info()))
    assert info["hook_points"]["resid_post.1"] == "model.layers.1:output"
    assert info["host"]["hidden_size"] == WIDTH
    assert info["seed"] == 3
    assert info["counts"]["served"] == 10
    assert info["data"]["left_out"]["bos"] == BOS
    assert {"base_model", "base_revision", "ring_bytes"} <= info.keys()


def broken(host: LlamaForCausalLM, token: int | slice, value: float) -> LlamaForCausalLM:
    copy = LlamaForCausalLM(host.config)
    copy.load_state_dict(host.state_dict())
    with torch.no_grad():
        copy.model.embed_tokens.weight[token] = value
    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_left_out_and_counted(host, value, caplog):
    bad = FIRST_WORD + 100
    stream = make(broken(host, bad, value), points=["embed"], ring_bytes=ring_of(64))
    with caplog.at_level("WARNING", "hf_sae"):
        got = served(stream)
    assert sorted([*got, bad]) == expected(documents(60))
    assert stream.counts["non_finite"] == 1
    assert stream.counts["served"] == len(got) == stream.counts["seen"] - stream.counts["masked"] - 1
    assert caplog.text.count("1 tokens are not finite at 'embed'") == 1


def test_a_row_is_left_out_at_every_place_alike(host):
    """A bad embedding spoils what attends to it: both places lose the same tokens."""
    stream = make(broken(host, FIRST_WORD + 100, float("nan")), ring_bytes=ring_of(64))
    rows = list(stream.batches(30))
    whole = make(host, ring_bytes=ring_of(64))
    list(whole.batches(30))
    assert all(len(r["embed"]) == len(r["resid_post.1"]) and r["resid_post.1"].isfinite().all() for r in rows)
    assert stream.counts["non_finite"] >= 1
    assert stream.counts["served"] + stream.counts["non_finite"] == whole.counts["served"]


def test_a_host_batch_without_a_finite_row_stops_the_stream(host):
    stream = make(broken(host, slice(None), float("nan")), points=["embed"], ring_bytes=ring_of(64))
    with pytest.raises(DataError, match=r"all \d+ tokens of host batch 1 are not finite at 'embed'.*bfloat16"):
        served(stream)
    with pytest.raises(DataError, match="no valid state"):
        stream.state_dict()


def test_more_than_one_percent_that_is_not_finite_stops_the_stream(host):
    def texts() -> list[str]:
        return [word(*range(n % 40 * 50, n % 40 * 50 + 50)) for n in range(300)]

    few = broken(host, slice(FIRST_WORD + 100, FIRST_WORD + 108), float("nan"))  # 8 of 2000 words
    stream = make(few, texts(), points=["embed"])
    served(stream)
    assert 0.002 < stream.counts["non_finite"] / stream.counts["served"] < 0.006
    many = broken(host, slice(FIRST_WORD + 100, FIRST_WORD + 124), float("nan"))
    stream = make(many, texts(), points=["embed"])
    with pytest.raises(DataError, match=r"more than 1% are too many"):
        served(stream)
    assert stream.counts["seen"] > 8192


def test_large_but_finite_norms_are_served(host):
    stream = make(broken(host, FIRST_WORD + 100, 1e30), points=["embed"])
    assert len(served(stream)) == len(expected(documents(60)))


def test_norm_outliers_are_counted_and_served(host):
    flat = broken(host, FIRST_WORD, 1.0)
    with torch.no_grad():
        flat.model.embed_tokens.weight.fill_(1.0)
        flat.model.embed_tokens.weight[FIRST_WORD + 5] = 10.5
        flat.model.embed_tokens.weight[FIRST_WORD + 70] = 500.0
        flat.model.embed_tokens.weight[FIRST_WORD + 71] = 9.5
    stream = make(flat, points=["embed"])
    assert len(served(stream)) == len(expected(documents(60)))
    assert stream.counts["outliers"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ring_bytes": ring_of(31)},
            f"one host batch of 2 x 16 tokens. Give at least ring_bytes={ring_of(32)}",
        ),
        ({"context_length": 65}, "host has 64 positions"),
        ({"dataset": []}, "no records"),
    ],
)
def test_arguments_that_do_not_fit(host, options, message):
    with pytest.raises(DataError, match=message):
        make(host, **options)


def test_hook_points_that_do_not_fit(host):
    with pytest.raises(HookPointError):
        make(host, points=["resid_post.9"])
    with pytest.raises(HookPointError, match="at least one place"):
        ActivationStream(host, tokenizer(), documents(), [])


def test_batches_larger_than_half_the_ring(host):
    assert len(next(make(host).batches(100))["embed"]) == 100
    with pytest.raises(DataError, match=f"Give at least ring_bytes={ring_of(202)}"):
        make(host).batches(101)
    with pytest.raises(DataError, match="at least 1"):
        make(host).batches(0)


@pytest.mark.parametrize("repeat", [False, True])
def test_nothing_kept(host, repeat):
    stream = make(host, positions=lambda batch: torch.zeros_like(batch.keep), repeat=repeat)
    with pytest.raises(DataError, match="none is kept"):
        stream.batches(10)


def test_a_tokenizer_of_another_model(host):
    small = LlamaForCausalLM(LlamaConfig(**{**host.config.to_dict(), "vocab_size": 20}))
    with pytest.raises(DataError, match="not among the host's 20 embeddings"):
        make(small).sample(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": ["embed"]}, "points"),
        ({"points": POINTS[::-1]}, "points"),
        ({"dtype": torch.bfloat16}, "dtype"),
        ({"ring_bytes": RING * 2}, "capacity"),
        ({"context_length": 8}, "context_length"),
        ({"seed": 1}, "seed"),
    ],
)
def test_a_state_of_another_stream_is_refused(host, options, message):
    stream = make(host)
    next(stream.batches(10))
    with pytest.raises(DataError, match=message):
        make(host, **options).load_state_dict(through_json(stream.state_dict()))


def test_processes_share_the_tokens(host):
    parts = [served(make(host, rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == expected(documents(60))


def test_rows_of_long_documents_are_mixed_before_the_host(host):
    """The ring holds four rows of 16 tokens, the buffer before it many: neighbours must come from far apart."""
    stream = make(host, [" ".join(documents(100))], batch_size=1, ring_bytes=ring_of(64))
    assert stream.rows.rows.shape[1] < 10
    wide = make(host, [" ".join(documents(100))], batch_size=1, ring_bytes=ring_of(64))
    wide.rows = type(wide.rows)(wide.data, 60 * 16 * 16, seed=0)

    def spread(some_stream) -> float:
        order = [t for t in served(some_stream) if t != EOS]
        return sum(abs(a - b) for a, b in itertools.pairwise(order)) / len(order)

    assert spread(wide) > 2 * spread(stream)
