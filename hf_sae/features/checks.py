"""Whether rows are what the schema says, batch by batch in bounded memory, with an error that names the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .manifest import EmbeddingModel, Manifest
from .schema import EMBEDDINGS, EXAMPLES, FEATURES, KINDS, Table, check_schema


MAX_LIST = 1 << 20  # entries of one list
LATENTS = ("nn_idx", "coact_idx")  # indices of other latents of the same autoencoder
NORM_TOLERANCE, MAX_TOLERANCE = 1e-3, 1e-5
Numbers = np.ndarray


class TableChecker:
    """Checks the rows of one table in the order in which they come.

    Args:
        table ([`Table`]): which.
        manifest ([`Manifest`]): says which autoencoders there are, how wide they are, and how vectors are made.
        where (`str`): what is checked, for errors.
    """

    def __init__(self, table: Table, manifest: Manifest, where: str | None = None) -> None:
        self.table, self.embedding, self.where = table, manifest.embedding, where or f"table {table.name!r}"
        self._places = {name: place for place, name in enumerate(sorted(manifest.saes))}
        self.widths = np.array([manifest.saes[name].d_sae for name in self._places], dtype=np.int64)
        self.rows = 0
        self._last: int | None = None
        self._seen: set[tuple[Any, ...]] = set()  # keys of the feature that the last batch ended with

    def check(self, rows: pa.Table) -> None:
        """Takes in the next rows.

        Raises:
            DataError: naming the first row that is wrong and why.
        """
        check_schema(self.table, rows.schema, self.where)
        if not rows.num_rows:
            return
        rows = rows.combine_chunks()
        self._values(rows)
        self._aligned(rows)
        place, feature = self._features(rows)
        self._latents(rows, place)
        self._own(rows)
        self._order(rows, place, feature)
        self.rows += rows.num_rows

    def _values(self, rows: pa.Table) -> None:
        """No null where none may be, none in a list, no list without bound, no number that is not finite."""
        for column in self.table.columns:
            name, values = column.name, _whole(rows, column.name)
            if values.null_count and not column.optional:
                self._refuse(_nulls(values), f"{name!r} is null")
            if not pa.types.is_list(values.type):
                self._refuse(_not_finite(values), f"{name!r} is not finite")
                continue
            self._refuse(_lengths(rows, name) > MAX_LIST, f"{name!r} has too many entries")
            self._refuse(_any(rows, name, _nulls(values.flatten())), f"{name!r} has a null in it")
            self._refuse(_any(rows, name, _not_finite(values.flatten())), f"{name!r} is not finite")

    def _aligned(self, rows: pa.Table) -> None:
        for first, *others in self.table.aligned:
            for other in others:
                wrong = _lengths(rows, first) != _lengths(rows, other)
                self._refuse(wrong, f"{first!r} and {other!r} have different lengths")
        for counts, edges in self.table.histograms:
            inner, outer = _lengths(rows, counts), _lengths(rows, edges)
            self._refuse((inner + outer > 0) & (inner + 1 != outer), f"{edges!r} needs one entry more than {counts!r}")

    def _features(self, rows: pa.Table) -> tuple[Numbers, Numbers]:
        """Place of each row's autoencoder in sorted order, and its feature, `[rows]` each."""
        place = np.array([self._places.get(name, -1) for name in _whole(rows, "sae_id").to_pylist()], dtype=np.int64)
        known = ", ".join(map(repr, self._places))
        self._refuse(place < 0, f"'sae_id' is none of the autoencoders of the dataset ({known})")
        feature = _numbers(rows, "feature").astype(np.int64)
        self._refuse((feature < 0) | (feature >= self.widths[place]), "'feature' is not in 0 to d_sae - 1")
        return place, feature

    def _latents(self, rows: pa.Table, place: Numbers) -> None:
        for name in (name for name in LATENTS if name in self.table.names):
            items, width = _items(rows, name), self.widths[place].repeat(_lengths(rows, name))
            wrong = _any(rows, name, (items < 0) | (items >= width))
            self._refuse(wrong, f"{name!r} holds an index that is not in 0 to d_sae - 1")

    def _own(self, rows: pa.Table) -> None:
        """What only one of the tables asks for."""
        if self.table is FEATURES:
            density = _numbers(rows, "density")
            self._refuse((density < 0) | (density > 1), "'density' is not in 0 to 1")
            self._refuse(_numbers(rows, "n_fired") < 0, "'n_fired' is negative")
        elif self.table is EXAMPLES:
            unknown = np.array([kind not in KINDS for kind in _whole(rows, "kind").to_pylist()])
            self._refuse(unknown, f"'kind' is none of {', '.join(map(repr, KINDS))}")
            length, peak = _lengths(rows, "tokens"), _numbers(rows, "max_pos")
            self._refuse((peak < 0) | (peak >= length), "'max_pos' is no place in 'tokens'")
            special, room = _items(rows, "special_pos"), length.repeat(_lengths(rows, "special_pos"))
            wrong = _any(rows, "special_pos", (special < 0) | (special >= room))
            self._refuse(wrong, "'special_pos' holds a place that is not in 'tokens'")
        elif self.table is EMBEDDINGS:
            self._vectors(rows, self.embedding)

    def _vectors(self, rows: pa.Table, embedding: EmbeddingModel | None) -> None:
        if embedding is None:
            raise DataError(
                f"{self.where} has vectors, and the dataset does not say which model made them: pass embedding=."
            )
        self._refuse(_lengths(rows, "vector") != embedding.dim, f"'vector' is not of length {embedding.dim}")
        norms = np.linalg.norm(_items(rows, "vector").reshape(rows.num_rows, embedding.dim), axis=1)
        wrong = np.abs(norms - 1) > NORM_TOLERANCE
        self._refuse(wrong & embedding.normalised, "'vector' does not have length 1, as was said")

    def _order(self, rows: pa.Table, place: Numbers, feature: Numbers) -> None:
        position = place << 32 | feature
        before = position[0] if self._last is None else self._last
        self._refuse(np.diff(position, prepend=before) < 0, "rows are not sorted by 'sae_id' and 'feature'")
        keys = list(zip(*(_whole(rows, name).to_pylist() for name in self.table.key), strict=True))
        goes_on = position[0] == self._last
        seen = set(self._seen) if goes_on else set()
        for row, key in enumerate(keys):
            if key in seen:
                self._refuse(np.arange(len(keys)) == row, f"the key ({', '.join(self.table.key)}) is there twice")
            seen.add(key)
        tail = [key for key, at in zip(keys, position, strict=True) if at == position[-1]]
        self._seen = self._seen.union(tail) if goes_on and position[0] == position[-1] else set(tail)
        self._last = int(position[-1])

    def _refuse(self, wrong: Numbers, why: str) -> None:
        if wrong.any():
            raise DataError(f"{self.where}, row {self.rows + int(wrong.argmax())}: {why}.")


class CrossChecker:
    """Whether the tables of a dataset fit each other; memory is 5 bytes for each latent.

    The rows of `features` have to come first.

    Args:
        manifest ([`Manifest`]): says which autoencoders there are.
        name (`str`): of the dataset, for errors.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        self.name, widths = name, {sae_id: source.d_sae for sae_id, source in manifest.saes.items()}
        self.known = {sae_id: np.zeros(width, dtype=bool) for sae_id, width in widths.items()}
        self.most = {sae_id: np.zeros(width, dtype=np.float32) for sae_id, width in widths.items()}

    def check(self, table: str, rows: pa.Table) -> None:
        """Takes in rows that [`TableChecker`] has passed.

        Raises:
            DataError: for a row about a feature that `features` does not have, and a context that is stronger than the maximum.
        """
        feature, coded = _numbers(rows, "feature"), _whole(rows, "sae_id").dictionary_encode()
        code = coded.indices.to_numpy(zero_copy_only=False)
        strongest = _strongest(rows) if table == EXAMPLES.name else None
        for number, sae_id in enumerate(coded.dictionary.to_pylist()):
            here = code == number
            if table == FEATURES.name:
                self.known[sae_id][feature[here]] = True
                self.most[sae_id][feature[here]] = np.abs(_numbers(rows, "max_act")[here])
                continue
            missing = here & ~_at(self.known[sae_id], feature, here)
            if missing.any():
                raise DataError(
                    f"table {table!r} of {self.name!r} is about feature {int(feature[missing.argmax()])} of {sae_id!r}, which the "
                    "table 'features' does not have: write both from one harvest, or leave such rows out."
                )
            if strongest is not None:
                above = here & (strongest > _at(self.most[sae_id], feature, here) * (1 + MAX_TOLERANCE))
                if above.any():
                    place = int(above.argmax())
                    raise DataError(
                        f"a context of feature {int(feature[place])} of {sae_id!r} in {self.name!r} has an activation of "
                        f"{strongest[place]:.6g}, and its max_act in 'features' is "
                        f"{self.most[sae_id][feature[place]]:.6g}: the two tables are of different harvests. Harvest again."
                    )


def _at(values: Numbers, feature: Numbers, here: Numbers) -> Numbers:
    """`[rows]`: the value of each feature where `here`, else 0."""
    out = np.zeros(len(feature), dtype=values.dtype)
    out[here] = values[feature[here]]
    return out


def _strongest(rows: pa.Table) -> Numbers:
    """`[rows]`: the size of the strongest activation of each context, 0 of one that does not fire or is empty."""
    acts, lengths = np.abs(_items(rows, "acts")), _lengths(rows, "acts")
    out = np.zeros(rows.num_rows, dtype=np.float32)
    np.maximum.at(out, np.arange(rows.num_rows).repeat(lengths), acts)
    return out


def check_features(rows: pa.Table, manifest: Manifest, where: str) -> None:
    """Whether every row is about a feature of an autoencoder of the dataset.

    Raises:
        DataError: if one is not.
    """
    coded = _whole(rows, "sae_id").dictionary_encode()
    widths = [manifest.saes[name].d_sae if name in manifest.saes else 0 for name in coded.dictionary.to_pylist()]
    place, feature = coded.indices.fill_null(len(widths)), _whole(rows, "feature").fill_null(-1)
    width = np.array([*widths, 0], dtype=np.int64)[place.to_numpy(zero_copy_only=False)]
    index = feature.to_numpy(zero_copy_only=False)
    if ((index < 0) | (index >= width)).any():
        raise DataError(f"{where} has a row about no feature of an autoencoder of the dataset.")


def check_keys(rows: Mapping[str, Any], table: Table, where: str) -> None:
    """Names of one row: every column that is needed, and no other.

    Raises:
        DataError: naming what is missing or too many.
    """
    missing = [c.name for c in table.columns if c.name not in rows and not c.optional]
    extra = [name for name in rows if name not in table.names]
    if missing or extra:
        parts = [
            f"{what} {', '.join(map(repr, names))}"
            for what, names in (("lacks", missing), ("has the unknown", extra))
            if names
        ]
        raise DataError(f"{where} {' and '.join(parts)}. Columns: {', '.join(table.names)}.")


def _whole(rows: pa.Table, name: str) -> Any:
    column = rows.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(rows: pa.Table, name: str) -> Numbers:
    return _whole(rows, name).to_numpy(zero_copy_only=False)


def _items(rows: pa.Table, name: str) -> Numbers:
    """Entries of all lists of a column, one after the other."""
    return _whole(rows, name).flatten().to_numpy(zero_copy_only=False)


def _lengths(rows: pa.Table, name: str) -> Numbers:
    return np.diff(_whole(rows, name).offsets.to_numpy())


def _any(rows: pa.Table, name: str, wrong: Numbers) -> Numbers:
    """`[rows]`: whether an entry of a row's list is marked."""
    out = np.zeros(rows.num_rows, dtype=bool)
    out[np.arange(rows.num_rows).repeat(_lengths(rows, name))[wrong]] = True
    return out


def _nulls(values: Any) -> Numbers:
    return values.is_null().to_numpy(zero_copy_only=False)


def _not_finite(values: Any) -> Numbers:
    if not pa.types.is_floating(values.type):
        return np.zeros(len(values), dtype=bool)
    return ~np.isfinite(values.to_numpy(zero_copy_only=False)) & ~_nulls(values)
