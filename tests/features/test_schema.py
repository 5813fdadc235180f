"""Feature datasets: what is written comes back as it was, what is wrong is named, nothing is left half-written."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_sae.errors import DataError
from hf_sae.features import footers, writing
from hf_sae.features.manifest import MANIFEST, EmbeddingModel, Manifest, SAESource
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.schema import METADATA, TABLES, storable
from hf_sae.features.writing import FeatureWriter
from hf_sae.models import TopKConfig, TopKSAE
from tests.features.toy_features import (
    DATA,
    EMBEDDING,
    ROWS,
    SAES,
    embedding,
    example,
    explanation,
    feature,
    write,
)


MAKE = {"features": feature, "examples": example, "explanations": explanation, "embeddings": embedding}


def rows_of(dataset: FeatureDataset, table: str) -> list[dict[str, Any]]:
    return [row for batch in dataset.batches(table) for row in batch.to_pylist()]


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_every_value_comes_back_as_it_was(tmp_path: Path):
    dataset = FeatureDataset.open(write(tmp_path / "f"))
    for name, rows in ROWS.items():
        assert rows_of(dataset, name) == rows
        assert list(getattr(dataset, name)) == rows, "as a datasets.Dataset"
    assert (dataset.saes, dataset.data, dataset.embedding, dataset.commit) == (SAES, DATA, EMBEDDING, None)
    assert repr(dataset).endswith("5 features, 7 examples, 3 explanations, 3 embeddings)")


def test_one_feature_has_its_row_its_contexts_and_its_labels(tmp_path: Path):
    dataset = FeatureDataset.open(write(tmp_path / "f"))
    record = dataset.feature("layer_1", 3)
    assert record.facts == ROWS["features"][1]
    assert record.examples == ROWS["examples"][:6]
    assert record.explanations == ROWS["explanations"][:2]
    assert dataset.feature("layer_2", 3).examples == ROWS["examples"][6:]
    assert dataset.feature("layer_1", 63).examples == []
    with pytest.raises(KeyError, match="nothing about feature 4"):
        dataset.feature("layer_1", 4)
    with pytest.raises(KeyError, match="0 to 63, not 64"):
        dataset.feature("layer_1", 64)
    with pytest.raises(KeyError, match="Did you mean 'layer_1'"):
        dataset.feature("layer1", 3)


def test_files_are_what_the_viewer_and_range_readers_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "ROW_GROUP", 8)
    rows = [example(index=i, rank=rank) for i in range(20) for rank in range(3)]
    folder = tmp_path / "f"
    with FeatureWriter(folder, SAES) as writer:
        for start in range(0, 60, 7):
            writer.append("examples", rows[start : start + 7])
    file = pq.ParquetFile(folder / "data/examples-00000.parquet")
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [8] * 7 + [4], "row groups do not depend on the batches"
    column = groups[3].column(1)
    assert (column.path_in_schema, column.compression) == ("feature", "ZSTD")
    assert (column.statistics.min, column.statistics.max) == (8, 10)
    assert column.has_offset_index
    assert column.has_column_index
    assert [c.column_index for c in groups[0].sorting_columns] == [0, 1]
    assert json.loads(file.schema_arrow.metadata[METADATA]) == {"table": "examples", "version": 1}
    assert all(pq.read_schema(folder / f"data/{n}-00000.parquet").names == t.names for n, t in TABLES.items())


def test_one_feature_reads_only_the_row_groups_that_can_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "ROW_GROUP", 8)
    rows = [example(sae_id, i, rank) for sae_id in SAES for i in range(64) for rank in range(3)]
    write(tmp_path / "f", {"features": [feature(s, i) for s in SAES for i in range(64)], "examples": rows})
    read: list[tuple[str, list[int]]] = []
    original = pq.ParquetFile.iter_batches

    def counting(self: pq.ParquetFile, *args: Any, row_groups: list[int], **kwargs: Any) -> Any:
        read.append((self.schema_arrow.names[2], row_groups))
        return original(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    record = FeatureDataset.open(tmp_path / "f").feature("layer_2", 10)
    assert [e["rank"] for e in record.examples] == [0, 1, 2]
    # 192 rows of layer_1 are 24 groups; rows 222 to 224 are the feature's
    assert read == [("density", [9]), ("kind", [27, 28])]


def test_shards_follow_one_another_and_each_is_found_by_its_first_and_last_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writing, "ROW_GROUP", 8)
    rows = [example(index=i, rank=rank) for i in range(10) for rank in range(4)]
    features = [feature(index=i) for i in range(10)]
    write(tmp_path / "f", {"features": features, "examples": rows}, shard_bytes=1)
    dataset = FeatureDataset.open(tmp_path / "f")
    shards = dataset.manifest.shards["examples"]
    assert [s.file for s in shards] == [f"data/examples-{i:05d}.parquet" for i in range(5)]
    assert [(s.first, s.last) for s in shards[:2]] == [
        (("layer_1", 0), ("layer_1", 1)),
        (("layer_1", 2), ("layer_1", 3)),
    ]
    assert rows_of(dataset, "examples") == rows
    assert dataset.feature("layer_1", 5).examples == rows[20:24]
    assert list(dataset.examples) == rows


def test_a_table_without_rows_is_a_file_too(tmp_path: Path):
    dataset = FeatureDataset.open(write(tmp_path / "f", {}))
    for name, table in TABLES.items():
        assert rows_of(dataset, name) == []
        assert getattr(dataset, name).column_names == table.names
    dataset.validate()


def test_text_that_utf8_cannot_hold_becomes_visible(tmp_path: Path):
    undecodable = b"caf\xe9".decode("utf-8", "surrogateescape")
    given = [undecodable, "\ud83e\udd9c", "\ud800", "ok"]
    assert storable(given) == ["caf⟨e9⟩", "🦜", "\N{REPLACEMENT CHARACTER}", "ok"]
    row = feature(pos_tokens=given, pos_token_ids=[1, 2, 3, 4], pos_logits=[1.0] * 4, text=undecodable)
    dataset = FeatureDataset.open(write(tmp_path / "f", {"features": [row]}))
    facts = dataset.feature("layer_1", 0).facts
    assert (facts["pos_tokens"], facts["text"]) == (storable(given), "caf⟨e9⟩")


NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("features", {"sae_id": "layer_3"}, "none of the autoencoders"),
    ("features", {"sae_id": None}, "'sae_id' is null"),
    ("features", {"feature": 64}, "'feature' is not in 0 to d_sae - 1"),
    ("features", {"feature": -1}, "'feature' is not in 0 to d_sae - 1"),
    ("features", {"density": 1.5}, "'density' is not in 0 to 1"),
    ("features", {"density": NAN}, "'density' is not finite"),
    ("features", {"max_act": INF}, "'max_act' is not finite"),
    ("features", {"max_act": 1e300}, "'max_act' is not finite"),
    ("features", {"pos_logits": [NAN] * 11}, "'pos_logits' is not finite"),
    ("features", {"n_fired": -1}, "'n_fired' is negative"),
    ("features", {"n_fired": 0.5}, "value of another type"),
    ("features", {"pos_tokens": ["a"]}, "'pos_tokens' and 'pos_token_ids' have different lengths"),
    ("features", {"neg_logits": []}, "'neg_tokens' and 'neg_logits' have different lengths"),
    ("features", {"nn_cos": []}, "'nn_idx' and 'nn_cos' have different lengths"),
    ("features", {"nn_idx": [64, 1]}, "'nn_idx' holds an index"),
    ("features", {"coact_idx": [-1]}, "'coact_idx' holds an index"),
    ("features", {"pos_tokens": [None] * 11}, "'pos_tokens' has a null in it"),
    ("features", {"hist_edges": [0.0, 1.0]}, "'hist_edges' needs one entry more than 'hist_counts'"),
    ("features", {"logit_hist_edges": [0.0, 1.0]}, "'logit_hist_edges' needs one entry more"),
    ("features", {"colour": "red"}, "has the unknown 'colour'"),
    ("examples", {"acts": [1.0]}, "'tokens' and 'acts' have different lengths"),
    ("examples", {"kind": "best"}, "'kind' is none of 'top', 'quantile', 'random', 'zero'"),
    ("examples", {"max_pos": 11}, "'max_pos' is no place in 'tokens'"),
    ("examples", {"special_pos": [0, 11]}, "'special_pos' holds a place"),
    ("examples", {"bin_min": INF}, "'bin_min' is not finite"),
    ("examples", {"tokens": "abc"}, "value of another type"),
    ("explanations", {"text": None}, "'text' is null"),
    ("explanations", {"score": NAN}, "'score' is not finite"),
    ("explanations", {"created": "yesterday"}, "value of another type"),
    ("embeddings", {"vector": [1.0, 0.0]}, "'vector' is not of length 4"),
    ("embeddings", {"vector": [1.0, 1.0, 0.0, 0.0]}, "'vector' does not have length 1"),
    ("embeddings", {"vector": [NAN] * 4}, "'vector' is not finite"),
]


@pytest.mark.parametrize(("table", "wrong", "message"), WRONG, ids=[f"{t}-{w}"[:50] for t, w, _ in WRONG])
def test_a_row_that_is_wrong_is_named_and_nothing_is_written(
    table: str, wrong: dict[str, Any], message: str, tmp_path: Path
):
    good = MAKE[table](index=0)
    with pytest.raises(DataError, match=message) as error:
        write(tmp_path / "f", {table: [good, MAKE[table](index=1) | wrong]})
    if "row of" not in str(error.value):
        assert f"table '{table}', row 1:" in str(error.value)
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", TABLES)
def test_order_and_keys_hold_across_batches(name: str, tmp_path: Path):
    make = MAKE[name]

    def append(*batches: list[dict[str, Any]]) -> None:
        with FeatureWriter(tmp_path / "f", SAES, embedding=EMBEDDING, overwrite=True) as writer:
            for batch in batches:
                writer.append(name, batch)

    append([make(index=1)], [make(index=2)], [make("layer_2", 0)])
    with pytest.raises(DataError, match="row 1: rows are not sorted"):
        append([make(index=2)], [make(index=1)])
    with pytest.raises(DataError, match="row 1: rows are not sorted"):
        append([make("layer_2", 0), make(index=1)])
    with pytest.raises(DataError, match=r"row 2: the key .* is there twice"):
        append([make(index=1), make(index=2)], [make(index=2)])
    with pytest.raises(DataError, match=r"row 0: .* none of the autoencoders"):
        append([make("layer_3", 0)])
    if name != "features":
        other = {"examples": "rank"}.get(name, "number")
        again = [[make(index=1, **{other: 0})], [make(index=1, **{other: 1})], [make(index=1, **{other: 0})]]
        with pytest.raises(DataError, match=r"row 2: the key .* is there twice"):
            append(*again)


def test_columns_that_may_be_null_may_be_left_out_and_others_may_not(tmp_path: Path):
    short = {key: value for key, value in explanation().items() if value is not None}
    assert rows_of(FeatureDataset.open(write(tmp_path / "f", {"explanations": [short]})), "explanations") == [
        explanation()
    ]
    del short["method"]
    with pytest.raises(DataError, match="lacks 'method'"):
        write(tmp_path / "g", {"explanations": [short]})


def test_arrow_tables_are_taken_and_other_types_refused(tmp_path: Path):
    table = pa.Table.from_pylist(ROWS["features"], TABLES["features"].schema)
    write(tmp_path / "f", {"features": table.select(table.column_names[::-1])})
    assert rows_of(FeatureDataset.open(tmp_path / "f"), "features") == ROWS["features"]
    wide = table.set_column(4, "max_act", table["max_act"].cast(pa.float64()))
    with pytest.raises(DataError, match="column 'max_act' is double, wanted float"):
        write(tmp_path / "g", {"features": wide})
    with pytest.raises(DataError, match="one for each"):
        write(tmp_path / "g", {"features": feature()})
    with pytest.raises(DataError, match="Did you mean 'examples'"):
        write(tmp_path / "g", {"exmples": []})


def test_an_error_in_the_block_leaves_what_was_there(tmp_path: Path):
    folder = write(tmp_path / "f")
    (folder / "README.md").write_text("mine")
    before = {name: (folder / name).read_bytes() for name in left(folder) if (folder / name).is_file()}

    def harvest() -> Iterator[dict[str, Any]]:
        yield feature()
        raise RuntimeError("harvest")

    with pytest.raises(RuntimeError, match="harvest"), FeatureWriter(folder, SAES, overwrite=True) as writer:
        writer.append("features", harvest())
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert left(tmp_path) == sorted(["f", *(f"f/{name}" for name in left(folder))])


@pytest.mark.parametrize("moment", ["row group", "footer", "manifest", "move"])
def test_a_full_disk_leaves_what_was_there(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "f")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_move(self: Path, target: Path) -> Path:
        return full() if self.name == "new" else rename(self, target)

    def full_close(self: pq.ParquetWriter) -> None:
        close(self)
        full()

    rename, close = Path.rename, pq.ParquetWriter.close
    place, name, broken = {
        "row group": (pq.ParquetWriter, "write_table", full),
        "footer": (pq.ParquetWriter, "close", full_close),
        "manifest": (Path, "write_text", full),
        "move": (Path, "rename", full_move),
    }[moment]
    monkeypatch.setattr(place, name, broken)
    monkeypatch.setattr(writing, "ROW_GROUP", 1)
    with pytest.raises(DataError, match=r"No space left on device.*Nothing was changed"):
        write(folder, overwrite=True)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert left(tmp_path) == sorted(["f", *(f"f/{name}" for name in left(folder))])
    FeatureDataset.open(folder).validate()


def test_one_table_is_renewed_and_the_others_stay(tmp_path: Path):
    folder = write(tmp_path / "f")
    (folder / "README.md").write_text("mine")
    with FeatureWriter(folder) as writer:
        writer.append("explanations", [explanation(index=9)])
    dataset = FeatureDataset.open(folder)
    assert rows_of(dataset, "explanations") == [explanation(index=9)]
    assert rows_of(dataset, "examples") == ROWS["examples"]
    assert (dataset.data, (folder / "README.md").read_text()) == (DATA, "mine")
    with (
        pytest.raises(DataError, match="append the new vectors too"),
        FeatureWriter(folder, embedding=EmbeddingModel("other", 2, False)) as writer,
    ):
        writer.append("explanations", [])
    with FeatureWriter(folder, embedding=EmbeddingModel("other", 2, False)) as writer:
        writer.append("embeddings", [embedding(vector=[3.0, 4.0])])
    assert FeatureDataset.open(folder).embedding == EmbeddingModel("other", 2, False)


def test_a_folder_that_holds_something_else_is_not_written_over(tmp_path: Path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match="no feature dataset: give a new or an empty folder"):
        FeatureWriter(tmp_path / "f", SAES, overwrite=True)
    with pytest.raises(DataError, match="no feature dataset to add to"):
        FeatureWriter(tmp_path / "new")
    with pytest.raises(DataError, match="overwrite=True"):
        FeatureWriter(write(tmp_path / "g"), SAES)
    with pytest.raises(DataError, match="inside the block"):
        FeatureWriter(tmp_path / "new", SAES).append("features", [])
    with pytest.raises(DataError, match="plain JSON values"):
        FeatureWriter(tmp_path / "new", SAES, data={"tensor": torch.ones(1)})
    with pytest.raises(DataError, match="which model made them"), FeatureWriter(tmp_path / "new", SAES) as writer:
        writer.append("embeddings", [embedding()])


def test_a_source_is_what_the_autoencoder_says(tmp_path: Path):
    sae = TopKSAE(
        TopKConfig(d_in=4, d_sae=8, k=2, hook_in="resid_post.1", base_model="org/model", base_revision="abc")
    )
    facts = {"architecture": "topk", "hook_in": "resid_post.1"}
    facts |= {"base_model": "org/model", "base_revision": "abc"}
    assert SAESource.of(sae, n_tokens=5) == SAESource(8, n_tokens=5, **facts)
    sae.config._commit_hash, sae.name_or_path = "c" * 40, "user/repo"
    assert SAESource.of(sae, "layer_1") == SAESource(8, "user/repo", "layer_1", "c" * 40, **facts)
    sae.config.base_model = str(tmp_path)
    assert SAESource.of(sae).base_model is None, "a folder of this machine is nobody else's business"


def damage(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SHARD = {"file": "data/features-00000.parquet", "rows": 5, "first": ["layer_1", 0], "last": ["layer_2", 127]}
MANIFESTS: list[tuple[dict[str, Any], str]] = [
    ({"format": "other"}, "is of format 'other'"),
    ({"version": 2}, "version 2; this hf-sae reads .*upgrade"),
    ({"saes": {}}, "no 'saes'"),
    ({"saes": {"a": 1}}, "sae 'a' is no JSON object"),
    ({"saes": {"a": {"d_sae": "64"}}}, "'d_sae' of sae 'a' is '64', wanted int"),
    ({"saes": {"a": {"d_sae": True}}}, "'d_sae' of sae 'a' is True"),
    ({"saes": {"a": {"d_sae": 0}}}, "d_sae=0"),
    ({"saes": {"a": {"repo_id": "x"}}}, "missing fields: 'd_sae'"),
    ({"saes": {"a": {"d_sae": 1, "colour": 2}}}, "unknown or missing fields: 'colour'"),
    ({"embedding": {"model": "m", "dim": 1 << 30, "normalised": True}}, "dim=1073741824"),
    ({"shards": {"features": [SHARD | {"file": "../../etc/passwd"}]}}, "lists '../../etc/passwd' for 'features'"),
    ({"shards": {"features": [SHARD | {"file": "data/../features-00000.parquet"}]}}, "files are called"),
    ({"shards": {"features": [SHARD | {"file": "data/examples-00000.parquet"}]}}, "for 'features'"),
    (
        {"shards": {"features": [SHARD | {"file": "data/features-00007.parquet"}]}},
        "lacks 'data/features-00007.parquet'",
    ),
    ({"shards": {"features": [SHARD | {"rows": -1}]}}, "no valid 'rows'"),
    ({"shards": {"features": [SHARD | {"first": ["layer_1"]}]}}, "no valid 'rows', 'first'"),
    ({"shards": {"features": 3}}, "no 'saes', 'shards'"),
]


@pytest.mark.parametrize(("changes", "message"), MANIFESTS, ids=[m[:40] for _, m in MANIFESTS])
def test_a_hostile_description_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    folder = write(tmp_path / "f")
    damage(folder, **changes)
    with pytest.raises(DataError, match=message):
        FeatureDataset.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 10_000, '{"format": NaN', "\ud800"])
def test_a_description_that_is_no_json_object_is_refused(text: str, tmp_path: Path):
    folder = write(tmp_path / "f")
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError):
        FeatureDataset.open(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(DataError, match="no feature dataset"):
        FeatureDataset.open(folder)


def replace_table(folder: Path, table: pa.Table, **options: Any) -> FeatureDataset:
    pq.write_table(table, folder / "data/features-00000.parquet", **options)
    return FeatureDataset.open(folder)


def refuse(dataset: FeatureDataset, message: str) -> None:
    """All three ways to the rows are closed."""
    with pytest.raises(DataError, match=message):
        dataset.validate()
    with pytest.raises(DataError, match=message):
        dataset.feature("layer_1", 3)


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "cut", "flipped"])
def test_a_file_that_is_no_parquet_is_refused(content: bytes | str, tmp_path: Path):
    folder = write(tmp_path / "f")
    path = folder / "data/features-00000.parquet"
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    if content == "cut":
        content = whole[: len(whole) // 2]
    elif content == "flipped":  # the pages, not the footer
        content = whole[:4] + bytes(255 - byte for byte in whole[4:-footer]) + whole[-footer:]
    path.write_bytes(content)
    dataset = FeatureDataset.open(folder)
    refuse(dataset, "is no Parquet file, or damaged")
    with pytest.raises(DataError):
        dataset.features.to_list()


def test_tables_that_are_not_of_the_schema_are_refused(tmp_path: Path):
    folder, kind = write(tmp_path / "f"), TABLES["features"]
    good = pa.Table.from_pylist(ROWS["features"], kind.schema)
    plain = good.replace_schema_metadata(None)
    assert replace_table(folder, plain).feature("layer_1", 3).facts == ROWS["features"][1], "a table of another writer"
    refuse(replace_table(folder, good.drop_columns(["density"])), "lacks the column 'density'")
    refuse(replace_table(folder, good.append_column("x", pa.nulls(5))), "does not know, or some twice: 'x'")
    refuse(replace_table(folder, good.append_column("text", good["text"])), "some twice")
    feature64 = good.set_column(1, "feature", good["feature"].cast(pa.int64()))
    refuse(replace_table(folder, feature64), "column 'feature' is int64, wanted int32")
    refuse(replace_table(folder, good.replace_schema_metadata({METADATA: b'{"version": 9}'})), "schema version 9")
    refuse(replace_table(folder, good.replace_schema_metadata({METADATA: b"["})), "damaged metadata")
    named = good.replace_schema_metadata({METADATA: b'{"table": "examples", "version": 1}'})
    refuse(replace_table(folder, named), "holds the table 'examples'")
    nulls = plain.set_column(4, "max_act", pa.nulls(5, pa.float32()))
    refuse(
        replace_table(folder, nulls.cast(pa.schema([f.with_nullable(True) for f in plain.schema]))),
        "'max_act' is null",
    )
    with pytest.raises(DataError, match="not sorted"):
        replace_table(folder, plain.take([1, 0, 2, 3, 4])).validate()
    with pytest.raises(DataError, match="has 4 rows, not 5"):
        replace_table(folder, plain.slice(0, 4)).validate()


def test_lists_and_row_groups_without_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "f")
    good = pa.Table.from_pylist(ROWS["features"], TABLES["features"].schema)
    size = (1 << 20) + 1
    longer = [[0] * size, *([0] for _ in range(4))]
    giant = good.set_column(18, good.schema.field("coact_idx"), pa.array(longer, pa.list_(pa.int32())))
    assert (folder / "data/features-00000.parquet").stat().st_size < 50_000
    replace_table(folder, giant, compression="zstd")
    with pytest.raises(DataError, match="'coact_idx' has too many entries"):
        FeatureDataset.open(folder).validate()
    replace_table(folder, good)
    monkeypatch.setattr(footers, "MAX_GROUP_ROWS", 4)
    refuse(FeatureDataset.open(folder), "row group 0 has 5 rows")


def test_what_is_written_is_described_in_one_small_file(tmp_path: Path):
    text = (write(tmp_path / "f") / MANIFEST).read_text()
    manifest = Manifest.from_json(json.loads(text))
    assert manifest.to_json() == text
    assert manifest.shards["features"][0] == manifest.shards["features"][0].__class__(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in SHARD.items()}
    )
    assert str(tmp_path) not in text
