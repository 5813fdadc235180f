from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset

from hf_sae.data import TokenBatch, TokenDataset
from hf_sae.data.documents import DocumentReader
from hf_sae.errors import DataError

from .toy_text import (
    BOS,
    END,
    EOS,
    MARKED_TEMPLATE,
    PAD,
    PLAIN_TEMPLATE,
    SPACED_TEMPLATE,
    TURN_ASSISTANT,
    TURN_SYSTEM,
    TURN_USER,
    chats,
    documents,
    ids,
    tokenizer,
    word,
)


class Reiterable:
    """Neither a length nor an index: has to be counted through."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def __iter__(self) -> Any:
        return iter(self.records)


def stream(records: list[Any]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(records))


def one(batches: Any) -> TokenBatch:
    (batch,) = list(batches)
    return batch


def kept(dataset: TokenDataset) -> list[int]:
    return [i for batch in dataset for i in batch.input_ids[batch.keep].tolist()]


def same(left: TokenBatch, right: TokenBatch) -> bool:
    names = ("input_ids", "attention_mask", "keep", "documents")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint does to a state: tensors pass, everything else becomes JSON."""
    return {k: v if isinstance(v, torch.Tensor) else json.loads(json.dumps(v)) for k, v in state.items()}


def test_packed_rows_are_documents_in_a_row():
    texts = Reiterable([word(1, 2, 3), word(4), "", word(5, 6, 7, 8)])
    batch = one(TokenDataset(texts, tokenizer(), context_length=5, batch_size=8))
    assert batch.input_ids.tolist() == [
        [BOS, *ids(1, 2, 3), EOS],
        [BOS, *ids(4), EOS, BOS, *ids(5)],
        [*ids(6, 7, 8), EOS, PAD],
    ]
    assert batch.attention_mask.tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 1, 0]]
    assert batch.keep.tolist() == [
        [False, True, True, True, True],
        [False, True, True, False, True],
        [True] * 4 + [False],
    ]
    assert batch.documents.tolist() == [[0] * 5, [1, 1, 1, 3, 3], [3, 3, 3, 3, -1]]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.documents.dtype == torch.long
    assert batch.keep.dtype == torch.bool


def test_rows_of_their_own():
    texts = Reiterable([word(1, 2, 3, 4), word(5)])
    batch = one(TokenDataset(texts, tokenizer(), context_length=4, batch_size=8, packed=False))
    assert batch.input_ids.tolist() == [[BOS, *ids(1, 2, 3)], [*ids(4), EOS, PAD, PAD], [BOS, *ids(5), EOS, PAD]]
    assert batch.documents.tolist() == [[0] * 4, [0, 0, -1, -1], [1, 1, 1, -1]]
    assert batch.attention_mask.sum().item() == 9
    assert kept(TokenDataset(texts, tokenizer(), context_length=4, packed=False)) == [
        *ids(1, 2, 3, 4),
        EOS,
        *ids(5),
        EOS,
    ]


@pytest.mark.parametrize(
    ("special", "row", "keep"),
    [
        ({"pad_token": "</s>"}, [BOS, *ids(1), EOS, EOS], [False, True, True, False]),
        ({"pad_token": "<s>"}, [BOS, *ids(1), EOS, BOS], [False, True, True, False]),
        ({"eos_token": "<s>"}, [BOS, *ids(1), PAD, PAD], [False, True, False, False]),
        ({"bos_token": None, "pad_token": None}, [*ids(1), EOS, EOS, EOS], [True, True, False, False]),
        ({"bos_token": None, "eos_token": None}, [*ids(1), PAD, PAD, PAD], [True, False, False, False]),
    ],
)
def test_padding_is_known_from_the_mask_where_its_id_is_shared(special, row, keep):
    batch = one(TokenDataset([word(1)], tokenizer(**special), context_length=4, packed=False))
    assert batch.input_ids.tolist() == [row]
    assert batch.keep.tolist() == [keep]


def test_the_last_batch_is_smaller_and_a_second_pass_is_the_same():
    dataset = TokenDataset(documents(), tokenizer(), context_length=8, batch_size=7)
    first, second = list(dataset), list(dataset)
    assert [len(b.input_ids) for b in first[:-1]] == [7] * (len(first) - 1)
    assert 0 < len(first[-1].input_ids) <= 7
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("packed", [True, False])
def test_each_token_appears_once_whatever_the_batch(packed):
    everything = sorted(i for text in documents() for i in tokenizer()(text)["input_ids"])
    for batch_size in (1, 3, 50):
        got = kept(TokenDataset(documents(), tokenizer(), context_length=6, batch_size=batch_size, packed=packed))
        assert sorted(i for i in got if i != EOS) == everything
        assert got.count(EOS) == len(documents())


SOURCES = {
    "list": lambda: documents(200),
    "dataset": lambda: Dataset.from_dict({"text": documents(200)}),
    "reiterable": lambda: Reiterable(documents(200)),
    "stream": lambda: stream([{"text": text} for text in documents(200)]),
    "shards": lambda: Dataset.from_dict({"text": documents(200)}).to_iterable_dataset(num_shards=4),
    "shuffled stream": lambda: (
        Dataset.from_dict({"text": documents(200)}).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=30)
    ),
    "chat": lambda: chats(30),
    "chat stream": lambda: stream(chats(30)),
    "ids": lambda: [{"input_ids": ids(*range(n, n + n % 9 + 1))} for n in range(80)],
}


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_a_restored_state_goes_on_exactly(source, packed, repeat):
    def make() -> TokenDataset:
        return TokenDataset(
            SOURCES[source](), tokenizer(), context_length=12, batch_size=5, packed=packed, repeat=repeat
        )

    dataset = make()
    states, batches = [dataset.state_dict()], []
    for batch in dataset:
        batches.append(batch)
        states.append(through_json(dataset.state_dict()))
        if dataset.epoch == 3:
            break
    assert len(batches) > 3
    for stop in {0, 1, len(batches) // 3, 2 * len(batches) // 3, len(batches) - 1}:
        again = make()
        again.load_state_dict(states[stop])
        rest = iter(again)
        assert all(same(next(rest), batch) for batch in batches[stop:])
        assert repeat or next(rest, None) is None


def test_epochs_have_the_same_tokens_in_another_order():
    dataset = TokenDataset(documents(), tokenizer(), context_length=10, batch_size=1, repeat=True, packed=False)
    rows = sum(-(-(len(text.split()) + 2) // 10) for text in documents())
    batches = iter(dataset)
    epochs = [[next(batches).input_ids[0].tolist() for _ in range(rows)] for _ in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    unshuffled = TokenDataset(Reiterable(documents()), tokenizer(), context_length=10, batch_size=1, packed=False)
    assert epochs[0] != [b.input_ids[0].tolist() for b in unshuffled]


def test_the_seed_decides_the_order():
    first, same_seed, other = (kept(TokenDataset(documents(), tokenizer(), seed=s)) for s in (1, 1, 2))
    assert first == same_seed
    assert first != other


@pytest.mark.parametrize("source", ["list", "dataset", "reiterable", "stream", "shards"])
def test_processes_share_the_documents(source):
    parts = [kept(TokenDataset(SOURCES[source](), tokenizer(), rank=r, world_size=3)) for r in range(3)]
    whole = kept(TokenDataset(SOURCES[source](), tokenizer()))
    assert sorted(token for part in parts for token in part) == sorted(whole)
    assert all(len(part) > len(whole) // 5 for part in parts)


def test_documents_are_row_numbers():
    texts = documents()
    for batch in TokenDataset(Dataset.from_dict({"text": texts}), tokenizer(), context_length=9):
        for token, number in zip(batch.input_ids[batch.keep], batch.documents[batch.keep], strict=True):
            assert token == EOS or f"w{token - 8}" in texts[number].split()


def test_local_files(tmp_path):
    texts = documents(20)
    table = Dataset.from_dict({"text": texts})
    table.to_json(tmp_path / "a.jsonl")
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv", sep="\t")
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "folder").mkdir()
    table.to_json(tmp_path / "folder" / "train.jsonl")
    table.save_to_disk(tmp_path / "disk")
    DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(tmp_path / "splits")
    expected = sorted(kept(TokenDataset(texts, tokenizer())))
    for name in ("a.jsonl", "a.parquet", "a.csv", "a.tsv", "a.txt", "folder", "disk", "splits"):
        assert sorted(kept(TokenDataset(str(tmp_path / name), tokenizer()))) == expected, name
    part = TokenDataset(tmp_path / "splits", tokenizer(), split="test")
    assert len(kept(part)) < len(expected)
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        TokenDataset(tmp_path / "splits", tokenizer(), split="tset")
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(DataError, match="unknown kind"):
        TokenDataset(tmp_path / "a.docx", tokenizer())
    with pytest.raises(DataError, match="no file or folder"):
        TokenDataset(str(tmp_path / "missing.jsonl"), tokenizer())


def test_columns_are_found_and_named():
    records = Dataset.from_dict({"body": [word(1)], "text": [word(2)], "input_ids": [ids(3)]})
    assert kept(TokenDataset(records, tokenizer())) == [*ids(2), EOS]
    assert kept(TokenDataset(records, tokenizer(), column="body")) == [*ids(1), EOS]
    assert kept(TokenDataset(records, tokenizer(), column="input_ids")) == ids(3)
    with pytest.raises(DataError, match=r"no column 'boddy'.*'input_ids'.*Did you mean 'body'"):
        TokenDataset(records, tokenizer(), column="boddy")
    with pytest.raises(DataError, match=r"column=.*'body'"):
        TokenDataset(records.select_columns(["body"]), tokenizer())
    with pytest.raises(DataError, match="without columns"):
        TokenDataset([word(1)], tokenizer(), column="text")


CONVERSATION = [
    {"role": "system", "content": word(9)},
    {"role": "user", "content": word(1, 2)},
    {"role": "assistant", "content": word(3)},
    {"role": "user", "content": word(4)},
    {"role": "assistant", "content": word(5, 6)},
]
CONVERSATION_IDS = [
    *(BOS, TURN_SYSTEM, *ids(9), END),
    *(TURN_USER, *ids(1, 2), END),
    *(TURN_ASSISTANT, *ids(3), END),
    *(TURN_USER, *ids(4), END),
    *(TURN_ASSISTANT, *ids(5, 6), END),
]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE, SPACED_TEMPLATE])
@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", CONVERSATION_IDS[1:]),
        ("assistant", [*ids(3), END, *ids(5, 6), END]),
        ("user", [*ids(1, 2), END, *ids(4), END]),
    ],
)
def test_roles(template, positions, expected):
    dataset = TokenDataset([{"messages": CONVERSATION}], tokenizer(template), context_length=32, positions=positions)
    batch = one(dataset)
    assert batch.input_ids[0, : len(CONVERSATION_IDS)].tolist() == CONVERSATION_IDS
    assert batch.input_ids[batch.keep].tolist() == expected
    assert dataset.info()["packed"] is False


def test_role_masks_survive_cutting_into_rows():
    for template in (PLAIN_TEMPLATE, MARKED_TEMPLATE):
        got = kept(
            TokenDataset([{"messages": CONVERSATION}], tokenizer(template), context_length=4, positions="assistant")
        )
        assert got == [*ids(3), END, *ids(5, 6), END]


def test_repeated_and_empty_messages_are_told_apart():
    turns = [("user", ""), ("assistant", word(1)), ("user", word(1)), ("assistant", word(1))]
    messages = [{"role": role, "content": content} for role, content in turns]
    for positions, expected in (("assistant", [*ids(1), END] * 2), ("user", [END, *ids(1), END])):
        assert kept(TokenDataset([{"messages": messages}], tokenizer(), positions=positions)) == expected


def test_sharegpt_conversations():
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[m["role"]], "value": m["content"]} for m in CONVERSATION]
    got = TokenDataset([{"conversations": turns}], tokenizer(), positions="assistant")
    assert kept(got) == [*ids(3), END, *ids(5, 6), END]
    with pytest.raises(DataError, match=r"record 0.*'narrator'"):
        list(TokenDataset([{"conversations": [{"from": "narrator", "value": "w1"}]}], tokenizer()))


def test_a_template_that_closes_only_the_last_message():
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<u> {{ m.content }}{% else %}<a> {{ m.content }}{% endif %}"
        "{% endfor %}</s>"
    )
    messages = [m for m in CONVERSATION if m["role"] != "system"]
    got = kept(TokenDataset([{"messages": messages}], tokenizer(template), positions="assistant"))
    assert got == [*ids(3), *ids(5, 6), EOS]


def test_a_template_that_rewrites_earlier_messages_is_refused():
    template = "{% for m in messages %}<u> {% if loop.last %}{{ m.content }}{% else %}w0{% endif %}<e>{% endfor %}"
    with pytest.raises(DataError, match="differently when more messages follow"):
        list(TokenDataset([{"messages": CONVERSATION}], tokenizer(template), positions="assistant"))


def test_chat_errors():
    with pytest.raises(DataError, match="no chat template"):
        list(TokenDataset(chats(), tokenizer(None)))
    with pytest.raises(DataError, match=r"refuses the conversation in record 0.*no system"):
        list(TokenDataset(chats(1), tokenizer("{{ raise_exception('no system') }}")))
    with pytest.raises(DataError, match="positions='assistant' needs conversations"):
        TokenDataset(documents(), tokenizer(), positions="assistant")


def test_ids_are_taken_as_they_are():
    records = [{"input_ids": [PAD, PAD, *ids(1), PAD, *ids(2), PAD]}]
    assert kept(TokenDataset(records, tokenizer())) == ids(1, 2)
    assert one(TokenDataset(records, tokenizer())).attention_mask.sum() == 3
    records = [{"input_ids": [*ids(1, 2, 3), EOS, EOS], "attention_mask": [0, 1, 1, 1, 0]}]
    batch = one(TokenDataset(records, tokenizer(pad_token="</s>"), context_length=6))
    assert batch.input_ids[batch.keep].tolist() == [*ids(2, 3), EOS]
    arrays = [{"tokens": torch.tensor(ids(4, 5))}]
    assert kept(TokenDataset(arrays, tokenizer())) == ids(4, 5)
    assert kept(TokenDataset([ids(4, 5)], tokenizer())) == ids(4, 5)


def test_a_mask_column():
    records = [{"input_ids": [BOS, *ids(1, 2, 3)], "chosen": [1, 0, 1, 1], "attention_mask": [1, 1, 1, 0]}]
    assert kept(TokenDataset(records, tokenizer(), positions="chosen")) == ids(2)
    with pytest.raises(DataError, match="Did you mean 'chosen'"):
        TokenDataset(records, tokenizer(), positions="choosen")
    with pytest.raises(DataError, match="for each of the 4 ids"):
        list(TokenDataset([{**records[0], "chosen": [1, 0]}], tokenizer(), positions="chosen"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([8, 100_000], "the id 100000"),
        ([8, -1], "the id -1"),
        ([0.5, 1.0], "float"),
        ([[1, 2]], "shape"),
        (["a", "b"], "list of str"),
        (3, "holds int"),
    ],
)
def test_wrong_ids(value, message):
    with pytest.raises(DataError, match=message):
        list(TokenDataset([{"input_ids": value}], tokenizer()))


def test_a_function_chooses_positions():
    got = kept(TokenDataset([word(*range(20))], tokenizer(), positions=lambda batch: batch.input_ids % 2 == 0))
    assert got == ids(*range(0, 20, 2))
    with pytest.raises(DataError, match="bool tensor"):
        list(TokenDataset([word(1)], tokenizer(), positions=lambda batch: batch.input_ids))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "no records"),
        (["", None], "empty"),
        (iter(["w1"]), "cannot be read twice"),
        (7, "cannot be read twice"),
        ([word(1), *[""] * 3, 5], "holds int"),
        ([word(1), ids(1)], "record 1 holds tokens"),
    ],
)
def test_datasets_that_cannot_be_read(dataset, message):
    with pytest.raises(DataError, match=message):
        list(TokenDataset(dataset, tokenizer(), seed=3))


def test_a_process_without_documents_says_so():
    with pytest.raises(DataError, match=r"no records|rank 1 of 2"):
        list(TokenDataset([word(1)], tokenizer(), rank=1, world_size=2))
    with pytest.raises(DataError, match="rank 2"):
        TokenDataset([word(1)], tokenizer(), rank=2, world_size=2)


def test_who_asks_for_little_does_not_wait_for_much_text(monkeypatch: pytest.MonkeyPatch):
    read = []
    original = DocumentReader.read
    monkeypatch.setattr(DocumentReader, "read", lambda self, records: read.extend(records) or original(self, records))
    texts = [" ".join(word(i) for i in range(8)) * 500 for _ in range(60)]
    data = TokenDataset(texts, tokenizer(), context_length=8, batch_size=2)
    next(iter(data))
    assert sum(len(text) for text in texts) > 20 * 1024 * 8
    assert 1 <= len(read) <= 3


def test_a_state_of_other_settings_is_refused():
    state = TokenDataset(documents(), tokenizer(), context_length=8).state_dict()
    with pytest.raises(DataError, match="context_length=8"):
        TokenDataset(documents(), tokenizer(), context_length=16).load_state_dict(state)
    with pytest.raises(DataError, match="rows=40"):
        TokenDataset(documents(10), tokenizer(), context_length=8).load_state_dict(state)


def test_two_readers_of_one_stream_do_not_move_each_other():
    shared = stream([{"text": text} for text in documents()])
    alone = list(TokenDataset(shared, tokenizer(), context_length=8, batch_size=2))
    first = iter(TokenDataset(shared, tokenizer(), context_length=8, batch_size=2))
    second = TokenDataset(shared, tokenizer(), context_length=8, batch_size=2)
    for expected, batch in zip(alone, second, strict=True):
        assert same(expected, batch)
        assert same(expected, next(first))


def test_info_is_json():
    dataset = TokenDataset(Dataset.from_dict({"text": documents()}), tokenizer(), seed=5, positions=lambda b: b.keep)
    info = json.loads(json.dumps(dataset.info()))
    assert info["seed"] == 5
    assert info["column"] == "text"
    assert info["left_out"] == {"padding": True, "bos": BOS, "pad": PAD}
    assert info["fingerprint"]
