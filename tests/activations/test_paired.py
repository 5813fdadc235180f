"""One stream through two hosts: the same tokens in the same rows, resumable, and only with one tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_sae.activations import PairedStream, Rows
from hf_sae.errors import DataError, HookPointError
from hf_sae.hooks import read
from hf_sae.models import AutoSAE, CrosscoderConfig, CrosscoderSAE
from hf_sae.training import SAETrainer, SAETrainingArguments
from tests.activations.test_prefetch import through_json
from tests.activations.toy import live, served, tiny_host
from tests.toy_text import MARKED_TEMPLATE, documents, tokenizer


PLACES = ["a/resid_post.1", "b/resid_post.1"]


def hosts() -> dict[str, torch.nn.Module]:
    tuned = tiny_host()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.3)
    return {"a": tiny_host(), "b": tuned}


def paired(**options) -> PairedStream:
    chosen = {"context_length": 16, "batch_size": 2, "ring_bytes": 20_000, **options}
    points = chosen.pop("hook_points", "resid_post.1")
    return PairedStream(hosts(), chosen.pop("tokenizer", tokenizer()), documents(60), points, **chosen)


def test_row_i_of_both_hosts_is_the_same_token() -> None:
    stream, each = paired(), hosts()
    assert stream.widths == dict.fromkeys(PLACES, 8)
    batch = next(iter(stream.rows))
    rows = stream.reader(batch, batch.keep.flatten().nonzero().squeeze(1))
    assert set(rows) == set(PLACES)
    for name, host in each.items():
        found = read(host, "resid_post.1", input_ids=batch.input_ids, attention_mask=batch.attention_mask)[
            "resid_post.1"
        ]
        torch.testing.assert_close(rows[f"{name}/resid_post.1"], found[batch.keep])
    assert torch.equal(rows.token_ids, batch.input_ids[batch.keep].int())


def test_it_serves_what_a_stream_of_one_host_serves_and_goes_on_to_the_bit() -> None:
    assert sorted(served(paired(), 30)) == sorted(served(live(), 30))
    whole = [rows[PLACES[1]] for rows in paired().batches(30)]
    stream = paired()
    batches = stream.batches(30)
    next(batches)
    state = through_json(stream.state_dict())
    again = paired()
    again.load_state_dict(state)
    for expected, rows in zip(whole[1:], again.batches(30), strict=True):
        assert torch.equal(expected, rows[PLACES[1]])


def test_places_may_differ_and_what_it_reads_is_recorded() -> None:
    stream = paired(hook_points={"a": ["resid_post.1"], "b": ["mlp_in.1", "resid_post.2"]})
    assert list(stream.widths) == ["a/resid_post.1", "b/mlp_in.1", "b/resid_post.2"]
    info = stream.info()
    assert set(info["hosts"]) == {"a", "b"}
    assert info["hosts"]["a"]["host"]["hidden_size"] == 8
    assert info["hook_points"]["b/resid_post.2"] == "model.layers.2:output"


def test_a_crosscoder_trains_from_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = CrosscoderSAE(CrosscoderConfig(d_in=16, d_sae=32, hook_in=PLACES, k=4, input_norm="scalar"))
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=600, tokens_per_batch=30, disable_tqdm=True)
    figures = SAETrainer(sae, args, paired(repeat=True)).train()
    assert figures["fvu"] < 1
    loaded = AutoSAE.from_pretrained(tmp_path)
    assert loaded.config.hook_in == PLACES
    assert set(loaded.config.provenance["hosts"]) == {"a", "b"}
    rows = next(paired(seed=1).batches(100))  # the error at each place, as `evaluate` advises
    with torch.no_grad():
        found = loaded.fvu_by_place(torch.cat([rows[place] for place in PLACES], dim=-1))
        out = loaded.split(loaded(torch.cat([rows[place] for place in PLACES], dim=-1)).reconstruction)
    for place in PLACES:
        x = rows[place]
        assert found[place] == pytest.approx(float((x - out[place]).square().sum() / (x - x.mean(0)).square().sum()))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (tokenizer(MARKED_TEMPLATE), "chat_template"),
        (tokenizer(bos_token="<u>"), "bos_token_id"),
        (None, "'w5000'"),
    ],
)
def test_another_tokenizer_is_refused(other, said: str) -> None:
    if other is None:
        other = tokenizer()
        other.add_tokens(["w5000"])
    with pytest.raises(DataError, match=said):
        paired(tokenizer={"a": tokenizer(), "b": other})
    paired(tokenizer={"a": tokenizer(), "b": tokenizer()})


def test_rows_of_different_tokens_are_refused() -> None:
    stream = paired()
    second = stream.reader.readers["b"]

    def shifted(batch, kept):
        rows = second(batch, kept)
        return Rows(rows, rows.ids + 1)

    stream.reader.readers["b"] = shifted
    with pytest.raises(DataError, match="different tokens"):
        next(stream.batches(10))


def test_names_are_checked() -> None:
    with pytest.raises(HookPointError, match="two or more"):
        PairedStream({"a": tiny_host()}, tokenizer(), documents(5), "resid_post.1")
    with pytest.raises(HookPointError, match="without a slash"):
        PairedStream({"a/b": tiny_host(), "c": tiny_host()}, tokenizer(), documents(5), "resid_post.1")
    with pytest.raises(HookPointError, match="the hosts are"):
        paired(hook_points={"a": "resid_post.1"})
