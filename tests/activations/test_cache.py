"""Caches: what is written is what was served, what is read is what was written, in an order that is one number."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_sae.activations import CachedStream, Manifest, Rows, write_cache
from hf_sae.activations.cache.storage import Int8
from hf_sae.errors import DataError, HookPointError
from tests.activations.toy import WIDTHS, Counting, cache, live, served


def test_shards_hold_the_rows_in_order_and_the_manifest_says_what_they_are(tmp_path: Path):
    stream = cache(tmp_path, total=100, rows=30)
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert [shard["rows"] for shard in facts["shards"]] == [30, 30, 30, 10]
    assert {p.name for p in tmp_path.iterdir()} == {"manifest.json", *(s["file"] for s in facts["shards"])}
    found = [load_file(tmp_path / shard["file"]) for shard in facts["shards"]]
    for point, table in stream.table.items():
        assert torch.equal(torch.cat([tensors[point] for tensors in found]), table)
        known = facts["points"][point]
        assert known["width"] == table.shape[1]
        assert known["mean_norm"] == pytest.approx(float(table.double().norm(dim=1).mean()), rel=1e-12)
        variance = (table.double() - table.double().mean(0)).square().sum(1).mean()
        assert known["total_variance"] == pytest.approx(float(variance), rel=1e-12)
        assert known["fvu_floor"] == 0
        assert known["mean"] == pytest.approx(table.double().mean(0).tolist(), rel=1e-8)
    assert torch.equal(torch.cat([t["token_ids"] for t in found]), torch.arange(100, dtype=torch.int32))
    assert torch.equal(torch.cat([t["document_ids"] for t in found]), torch.arange(100, dtype=torch.int32) // 7)
    for shard in facts["shards"]:
        content = (tmp_path / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert facts["source"]["base_model"] == "org/toy"


def test_a_cache_of_a_host_serves_what_its_stream_served(tmp_path: Path):
    write_cache(live(), tmp_path, 10_000, rows_per_shard=64, disable_tqdm=True)
    half = live().largest_batch
    told = list(live().batches(half))
    cached = CachedStream(tmp_path)
    got = list(cached.batches(half))
    assert len(got) == len(told) > 3
    for one, other in zip(got, told, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[point], other[point]) for point in other)
        assert torch.equal(one.ids, other.ids)
    info = json.loads(json.dumps(cached.info()))
    assert info["host"]["hidden_size"] == 8
    assert info["hook_points"]["resid_post.1"] == "model.layers.1:output"
    assert info["data"]["left_out"]["padding"] is True
    assert info["cache"]["n_tokens"] == sum(rows.count for rows in told)


@pytest.mark.parametrize("size", [1, 7, 30, 64, 1000])
def test_every_token_is_served_once(tmp_path: Path, size: int):
    written = cache(tmp_path)
    stream = CachedStream(tmp_path)
    batches = list(stream.batches(size))
    assert [i for rows in batches for i in rows.token_ids.tolist()] == list(range(100))
    assert all(rows.count == size for rows in batches[:-1])
    for point, table in written.table.items():
        assert torch.equal(torch.cat([rows[point] for rows in batches]), table)
    assert stream.counts["served"] == 100
    with pytest.raises(DataError, match=r"at its end.*repeat=True"):
        stream.batches(size)


def test_later_epochs_have_an_order_of_their_own_in_which_shards_stay_together(tmp_path: Path):
    cache(tmp_path)
    stream = CachedStream(tmp_path, repeat=True)
    got = served(stream, 50, 300)
    first, second, third = got[:100], got[100:200], got[200:]
    assert first == list(range(100))
    assert sorted(second) == sorted(third) == list(range(100))
    assert second not in (first, third)
    shards = [token // 30 for token in second]
    runs = [key for key, _ in itertools.groupby(shards)]
    assert sorted(runs) == [0, 1, 2, 3]
    assert runs != [0, 1, 2, 3]
    one, other = ([token % 30 for token in second if token // 30 == shard] for shard in (0, 1))
    assert one != sorted(one)
    assert one != other
    assert served(CachedStream(tmp_path, repeat=True), 50, 300) == [*first, *second, *third]
    assert served(CachedStream(tmp_path, repeat=True, seed=1), 50, 300)[100:] != [*second, *third]


def test_going_on_after_a_break_and_across_epochs(tmp_path: Path):
    cache(tmp_path)
    whole = served(CachedStream(tmp_path, repeat=True), 10, 260)
    stream, got = CachedStream(tmp_path, repeat=True), []
    while len(got) < 260:
        got += served(stream, 10, 1)
    assert got == whole
    assert stream.epoch == 2


def test_processes_share_each_global_batch_and_a_state_fits_any_number_of_them(tmp_path: Path):
    cache(tmp_path, total=96, rows=20)
    whole = served(CachedStream(tmp_path, repeat=True), 12, 240)

    def interleaved(world: int, steps: int, state: dict | None) -> tuple[list[int], dict]:
        streams = [CachedStream(tmp_path, repeat=True, rank=r, world_size=world) for r in range(world)]
        for stream in streams:
            stream.load_state_dict(state or stream.state_dict())
        sources = [stream.batches(12 // world) for stream in streams]
        got = [t for _ in range(steps) for source in sources for t in next(source).token_ids.tolist()]
        states = [json.loads(json.dumps({**s.state_dict(), "counts": None})) for s in streams]
        assert all(found == states[0] for found in states)
        return got, streams[0].state_dict()

    got, state = interleaved(2, 5, None)
    more, state = interleaved(4, 7, state)
    rest, _ = interleaved(1, 8, state)
    assert got + more + rest == whole


def test_the_last_global_batch_is_shared_equally(tmp_path: Path):
    cache(tmp_path, total=101)
    parts = [served(CachedStream(tmp_path, rank=rank, world_size=2), 20) for rank in range(2)]
    assert [len(part) for part in parts] == [50, 50]
    assert sorted(parts[0] + parts[1]) == list(range(100))


def test_a_sample_changes_nothing_and_is_the_same_on_every_process(tmp_path: Path):
    cache(tmp_path)
    streams = [CachedStream(tmp_path, rank=rank, world_size=2) for rank in range(2)]
    for stream in streams:
        next(stream.batches(10))
        assert stream.sample(35).token_ids.tolist() == list(range(20, 55))
        assert stream.sample(1000).count == 80
    assert served(streams[1], 10)[:10] == list(range(30, 40))


def test_one_shard_is_open_at_a_time_and_no_batch_holds_it(tmp_path: Path):
    cache(tmp_path)
    stream = CachedStream(tmp_path)
    kept = []
    for rows in stream.batches(15):
        assert stream._open is not None
        assert {len(t) for t in stream._open[1].values()} <= {30, 10}
        kept.append(rows)
    for batch in kept:
        assert all(x.untyped_storage().nbytes() == batch.count * x.shape[1] * 4 for x in batch.values())


def test_places_can_be_chosen(tmp_path: Path):
    cache(tmp_path)
    stream = CachedStream(tmp_path, "mlp_in.0")
    assert stream.widths == {"mlp_in.0": 3}
    assert list(next(stream.batches(4))) == ["mlp_in.0"]
    with pytest.raises(HookPointError, match=r"does not hold 'mlp_in.9'. It holds 'resid_post.0', 'mlp_in.0'"):
        CachedStream(tmp_path, "mlp_in.9")


def test_int8_is_the_symmetric_quantiser_of_the_closed_form(tmp_path: Path):
    torch.manual_seed(0)
    x = torch.randn(4000, 64) * torch.rand(4000, 1) * 10
    storage = Int8(torch.float32)
    stored = storage.encode("p", x)
    error = storage.decode("p", stored) - x
    scale = x.abs().amax(1, keepdim=True) / 127
    assert stored["p"].dtype == torch.int8
    assert torch.equal(stored["p/scale"], scale)
    assert (error.abs() <= scale * 0.5001).all()
    # uniform in ±scale/2, apart from the largest coordinate of each row, which is exact
    told = (scale.double().square() / 12 * 63).sum()
    assert float(error.double().square().sum() / told) == pytest.approx(1, abs=0.02)
    assert torch.equal(storage.decode("p", storage.encode("p", torch.zeros(2, 5))), torch.zeros(2, 5))
    assert storage.decode("p", storage.encode("p", torch.full((1, 3), 1e38))).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_what_storing_loses_is_measured(tmp_path: Path, dtype: torch.dtype):
    stream = Counting(500)
    manifest = write_cache(stream, tmp_path, 500, rows_per_shard=128, dtype=dtype, disable_tqdm=True)
    got = list(CachedStream(tmp_path, dtype=torch.float32).batches(100))
    for point, table in stream.table.items():
        read = torch.cat([rows[point] for rows in got])
        assert read.dtype == torch.float32
        lost = (read.double() - table.double()).square().sum()
        told = lost / (table.double() - table.double().mean(0)).square().sum()
        assert manifest.points[point].fvu_floor == pytest.approx(float(told), rel=1e-9)
        assert 0 < float(told) < 1e-3
    size = Manifest.open(tmp_path).n_bytes
    assert size < 500 * (9 * (1 if dtype is torch.int8 else 2) + 8 + 8) + 4 * 1024


def test_float16_that_overflows_is_refused(tmp_path: Path):
    stream = Counting(10)
    stream.table["mlp_in.0"][3] = 1e6
    with pytest.raises(DataError, match=r"not finite as float16: store them as torch.bfloat16"):
        write_cache(stream, tmp_path, 10, dtype=torch.float16, disable_tqdm=True)
    with pytest.raises(DataError, match="cannot be stored"):
        write_cache(stream, tmp_path / "b", 10, dtype=torch.int16, disable_tqdm=True)


def test_data_that_ends_early_makes_a_smaller_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", "hf_sae"):
        manifest = write_cache(Counting(70), tmp_path, 1000, rows_per_shard=35, disable_tqdm=True)
    assert manifest.n_tokens == 70
    assert "ended after 70 of 1000" in caplog.text
    assert served(CachedStream(tmp_path), 50) == list(range(70))


def test_rows_are_put_together_and_taken_apart():
    rows = Counting(20).sample(20)
    again = Rows.join([rows.part(0, 3), rows.part(3, 20)])
    assert all(torch.equal(again[point], rows[point]) for point in WIDTHS)
    assert torch.equal(again.ids, rows.ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "Is it newer"),
        ({"format": "x"}, "format 'x'"),
        ({"storage": "int4"}, "'int4'"),
        ({"shards": [{"file": "../../etc/passwd", "rows": 1, "bytes": 1, "sha256": "0" * 64}]}, "lists the shard"),
        ({"shards": []}, "no 'points', 'shards'"),
        ({"points": {"a": {"width": 3}}}, "'a' has no valid width"),
    ],
)
def test_a_manifest_is_not_trusted(tmp_path: Path, change: dict, message: str):
    cache(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        CachedStream(tmp_path)
