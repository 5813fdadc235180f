"""Conversations one by one (FAST): rows, special tokens, truncation, padding, mixing, near-copies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from hf_sae.activations import ActivationStream
from hf_sae.activations.reading import HostReader
from hf_sae.data import TokenBatch, TokenDataset, WithoutRepeats
from hf_sae.errors import DataError
from tests.hosts_zoo import ZOO
from tests.toy_text import BOS, END, EOS, PAD, PLAIN_TEMPLATE, TURN_ASSISTANT, TURN_USER, chats, ids, tokenizer, word


SPECIAL = (BOS, EOS, PAD, TURN_USER, TURN_ASSISTANT, END)


def rendered(record: dict[str, Any], text: Any = None) -> list[int]:
    """What the tokenizer alone makes of a conversation."""
    return (text or tokenizer()).apply_chat_template(record["messages"], tokenize=True, return_dict=True)["input_ids"]


def rows(dataset: TokenDataset) -> dict[int, list[int]]:
    """The real tokens of each row, by the number of its conversation."""
    return {
        int(numbers[0]): tokens[mask.bool()].tolist()
        for batch in dataset
        for tokens, mask, numbers in zip(batch.input_ids, batch.attention_mask, batch.documents, strict=True)
    }


def test_each_conversation_is_a_row_as_its_template_writes_it():
    dataset = TokenDataset(chats(), tokenizer(), context_length=40, batch_size=5)
    found = rows(dataset)
    assert found == {number: rendered(record) for number, record in enumerate(chats())}
    for number, row in found.items():
        expected = Counter(token for token in rendered(chats()[number]) if token in SPECIAL)
        assert Counter(token for token in row if token in SPECIAL) == expected
        assert expected[BOS] == 1
        assert row[0] == BOS


def test_a_rendered_conversation_in_a_text_column_gets_no_second_bos():
    text = tokenizer().apply_chat_template(chats()[0]["messages"], tokenize=False)
    (row,) = rows(TokenDataset([text], adding_bos(), context_length=40, packed=False)).values()
    assert row == [*rendered(chats()[0]), EOS]
    assert adding_bos()(text)["input_ids"][:2] == [BOS, BOS]


def adding_bos() -> Any:
    """A tokenizer that puts BOS before every text, as most do."""
    from tokenizers import processors

    made = tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return made


def test_all_that_the_template_writes_is_kept_but_bos_even_where_turns_end_with_the_padding_token():
    text = tokenizer(PLAIN_TEMPLATE.replace("<e>", "<pad>"))
    kept: Counter[int] = Counter()
    for batch in TokenDataset(chats(), text, context_length=40, batch_size=5):
        kept += Counter(batch.input_ids[batch.keep].tolist())
        assert not batch.keep[batch.attention_mask == 0].any()
    expected = Counter(token for record in chats() for token in rendered(record, text))
    assert expected[PAD] > 12
    assert kept == Counter({token: count for token, count in expected.items() if token != BOS})


def test_truncation_leaves_out_what_is_behind_the_row():
    cut = TokenDataset(chats(), tokenizer(), context_length=8, batch_size=3, truncation=True, positions="assistant")
    assert rows(cut) == {number: rendered(record)[:8] for number, record in enumerate(chats())}
    assert sum(len(batch.input_ids) for batch in cut) == len(chats())
    whole = TokenDataset(chats(), tokenizer(), context_length=8, batch_size=3, positions="assistant")
    assert sum(len(batch.input_ids) for batch in whole) > len(chats())
    state = iter(cut)
    next(state)
    with pytest.raises(DataError, match="truncation=True"):
        whole.load_state_dict(cut.state_dict())
    with pytest.raises(DataError, match=r"text documents are packed here\. Pass packed=False"):
        TokenDataset([word(1)], tokenizer(), truncation=True)
    with pytest.raises(DataError, match="chat documents are packed here"):
        TokenDataset(chats(), tokenizer(), packed=True, truncation=True)


def test_conversations_are_packed_on_request_alone():
    packed = TokenDataset(chats(), tokenizer(), context_length=10, batch_size=2, packed=True)
    batches = list(packed)
    assert all(batch.attention_mask.all() for batch in batches[:-1])
    assert any(len(row.unique()) > 1 for batch in batches for row in batch.documents)
    tokens = Counter(t for batch in batches for t in batch.input_ids[batch.attention_mask == 1].tolist())
    assert tokens == Counter(t for record in chats() for t in rendered(record))
    assert packed.settings()["packed"]
    assert not TokenDataset(chats(), tokenizer()).settings()["packed"]
    assert TokenDataset([word(1)], tokenizer()).settings()["packed"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2", "qwen3"])
def test_a_row_has_the_same_activations_alone_and_padded_and_others_when_packed(kind: str):
    host = ZOO[kind]().eval()
    conversations = [[5, 9, 11, 7, 5, 12, 7], [5, 20, 7], [5, 30, 31, 32, 7, 6, 8]]
    length = 12
    padded = torch.tensor([row + [0] * (length - len(row)) for row in conversations])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in conversations])
    reader = HostReader(host, ["resid_post.1"], None)
    where = mask.flatten().nonzero().squeeze(1)
    together = reader(TokenBatch(padded, mask, mask.bool(), mask), where)["resid_post.1"]
    alone = []
    for row in conversations:
        one = torch.ones(1, len(row), dtype=torch.long)
        alone.append(
            reader(TokenBatch(torch.tensor([row]), one, one.bool(), one), torch.arange(len(row)))["resid_post.1"]
        )
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    flat = torch.tensor([[token for row in conversations for token in row]])
    ones = torch.ones_like(flat)
    packed = reader(TokenBatch(flat, ones, ones.bool(), ones), torch.arange(flat.numel()))["resid_post.1"]
    first = len(conversations[0])
    torch.testing.assert_close(packed[:first], alone[0], atol=1e-5, rtol=0)
    assert (packed[first:] - torch.cat(alone[1:])).norm(dim=1).min() > 1e-3


def test_every_activation_is_emitted_once_and_batches_mix_conversations():
    from tests.activations.toy import tiny_host

    records = chats(60)
    for packed in (None, True):
        stream = ActivationStream(
            tiny_host(),
            tokenizer(),
            records,
            "embed",
            context_length=16,
            batch_size=4,
            ring_bytes=12_000,
            packed=packed,
            truncation=packed is None,
        )
        served, documents = Counter(), []
        for batch in stream.batches(20):
            served += Counter(zip(batch.token_ids.tolist(), batch.document_ids.tolist(), strict=True))
            documents.append(len(batch.document_ids.unique()))
        cut = 16 if packed is None else None
        assert served == Counter((t, n) for n, record in enumerate(records) for t in rendered(record)[1:cut])
        assert min(documents[:-1]) >= 2
        assert stream.counts["served"] == sum(served.values())


def test_near_copies_are_dropped_and_reading_starts_afresh():
    first = word(*range(40))
    records = [
        first,
        word(*range(100, 140)),
        word(*range(500, 510), *range(15, 35), *range(600, 610)),  # twenty words of the first one
        word(*range(700, 710), *range(15, 34), *range(800, 810)),  # nineteen
        word(*range(3)),
        word(*range(3)),  # short, and the same
        word(*range(2, 5)),
    ]
    kept = [records[i] for i in (0, 1, 3, 4, 6)]
    filtered = WithoutRepeats(records)
    assert list(filtered) == kept
    assert list(filtered) == kept
    assert filtered.dropped == 2
    as_chats = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": a[::-1]}]} for a in records
    ]
    assert [record["messages"][0]["content"] for record in WithoutRepeats(as_chats)] == kept
    assert rows(TokenDataset(WithoutRepeats(as_chats), tokenizer(), context_length=200)).keys() == {0, 1, 2, 3, 4}


def test_the_filter_is_as_small_as_it_says_and_errs_on_the_dropping_side():
    records = [word(*range(30 * i, 30 * i + 30)) for i in range(60)]
    assert list(WithoutRepeats(records, n_bytes=2**16)) == records
    assert len(list(WithoutRepeats(records, n_bytes=16))) < 60  # 128 bits are soon all set
    assert list(WithoutRepeats([*records, *records], n_bytes=2**16)) == records


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {"n": 0}, "n=0"),
        ([{"other": "x"}], {}, r"no text or conversation \(\['other'\]\)"),
        ([{"text": "x"}], {"column": "body"}, "column="),
        ([3], {}, "int"),
    ],
)
def test_what_has_no_words(records: list[Any], options: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        list(WithoutRepeats(records, **options))


def test_ids_of_words_are_those_that_the_tests_think():
    assert rendered({"messages": [{"role": "user", "content": word(1)}]}) == [BOS, TURN_USER, *ids(1), END]
