"""The four tables of a feature dataset, column by column: what a harvest writes and search, explanations and dashboards read.

* Parquet is the truth: lists lie beside a plain `text` column, which the Hub's viewer and full-text search can look into.
* Every table is sorted by `(sae_id, feature)`, so that one feature is a few row groups of a file of any size.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import DataError


VERSION = 1
METADATA = b"hf_sae"  # in the Parquet schema: which table this is, of which version
KINDS = ("top", "quantile", "random", "zero")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_LONE = re.compile("[\ud800-\udfff]")

TEXT, INDEX, COUNT, REAL, RATE = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
TEXTS, INDICES, COUNTS, REALS = (pa.list_(of) for of in (TEXT, INDEX, COUNT, REAL))


@dataclass(frozen=True)
class Column:
    """One column: its type, what it means, and whether a row may do without it."""

    name: str
    type: pa.DataType
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        name (`str`): of the configuration on the Hub.
        about (`str`): what a row is.
        key (`tuple[str, ...]`): columns that no two rows share; the rows are sorted by the first two.
        columns (`tuple[Column, ...]`): in order.
        aligned (`tuple[tuple[str, ...], ...]`): lists of one length in each row.
        histograms (`tuple[tuple[str, str], ...]`): counts, and edges of which there is one more.
    """

    name: str
    about: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    aligned: tuple[tuple[str, ...], ...] = ()
    histograms: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the table's name and version in its metadata."""
        fields = [pa.field(column.name, column.type, nullable=column.optional) for column in self.columns]
        return pa.schema(fields, metadata={METADATA: json.dumps({"table": self.name, "version": VERSION})})


_OF = (
    Column("sae_id", TEXT, "which autoencoder, as listed above"),
    Column("feature", INDEX, "index of the latent, 0 to d_sae - 1"),
)

FEATURES = Table(
    "features",
    "one latent of one autoencoder",
    ("sae_id", "feature"),
    (
        *_OF,
        Column("density", RATE, "share of the tokens on which it fires"),
        Column("n_fired", COUNT, "tokens on which it fires"),
        Column("max_act", REAL, "its strongest activation, with its sign; 0 if it never fired"),
        Column("mean_act", REAL, "its mean over the tokens on which it fires"),
        Column("hist_counts", COUNTS, "histogram of its non-zero activations"),
        Column("hist_edges", REALS, "edges of these bins, one more than counts"),
        Column("pos_tokens", TEXTS, "tokens whose logits its decoder row raises most"),
        Column("pos_token_ids", INDICES, "their ids"),
        Column("pos_logits", REALS, "by how much, per unit of activation"),
        Column("neg_tokens", TEXTS, "tokens whose logits it lowers most"),
        Column("neg_token_ids", INDICES, "their ids"),
        Column("neg_logits", REALS, "by how much, per unit of activation"),
        Column("logit_hist_counts", COUNTS, "histogram of its effect on all logits"),
        Column("logit_hist_edges", REALS, "edges of these bins, one more than counts"),
        Column("nn_idx", INDICES, "latents of the same autoencoder with the most similar decoder rows"),
        Column("nn_cos", REALS, "cosine of the two rows"),
        Column("coact_idx", INDICES, "latents that fire most on the same tokens"),
        Column("coact_count", COUNTS, "tokens on which both fired"),
        Column("text", TEXT, "the promoted tokens as plain text, to search in"),
    ),
    (
        ("pos_tokens", "pos_token_ids", "pos_logits"),
        ("neg_tokens", "neg_token_ids", "neg_logits"),
        ("nn_idx", "nn_cos"),
        ("coact_idx", "coact_count"),
    ),
    (("hist_counts", "hist_edges"), ("logit_hist_counts", "logit_hist_edges")),
)

EXAMPLES = Table(
    "examples",
    "one context in which a latent was looked at",
    ("sae_id", "feature", "kind", "bin", "rank"),
    (
        *_OF,
        Column("kind", TEXT, "`top`, `quantile`, `random` (of those where it fires) or `zero` (it does not fire)"),
        Column("bin", INDEX, "which interval of activations, for `quantile`", optional=True),
        Column("bin_min", REAL, "lower end of that interval", optional=True),
        Column("bin_max", REAL, "upper end of that interval", optional=True),
        Column("bin_share", REAL, "share of its contexts that fall into it", optional=True),
        Column("rank", INDEX, "place within the kind and bin, 0 is first"),
        Column("tokens", TEXTS, "the context, token by token; a part of a character is `⟨hex⟩`"),
        Column("token_ids", INDICES, "their ids"),
        Column("acts", REALS, "activation on each token, 0 where it does not fire"),
        Column("max_pos", INDEX, "which token of the list is the strongest"),
        Column("special_pos", INDICES, "which tokens of the list are special ones"),
        Column("doc_id", COUNT, "number of the record in the dataset"),
        Column("doc_name", TEXT, "its name, where it has one", optional=True),
        Column("text", TEXT, "the context as plain text, to search in"),
    ),
    (("tokens", "token_ids", "acts"),),
)

EXPLANATIONS = Table(
    "explanations",
    "one label that somebody or something gave a latent",
    ("sae_id", "feature", "number"),
    (
        *_OF,
        Column("number", INDEX, "counts the labels of a latent from 0"),
        Column("text", TEXT, "the label"),
        Column("method", TEXT, "how it was made"),
        Column("model", TEXT, "the model that wrote it", optional=True),
        Column("model_revision", TEXT, "its commit or version", optional=True),
        Column("prompt", TEXT, "name or version of the prompt", optional=True),
        Column("score", REAL, "how well it predicts where the latent fires", optional=True),
        Column("score_method", TEXT, "what the score is, such as balanced accuracy of detection", optional=True),
        Column("score_chance", REAL, "the same score of a label that says nothing", optional=True),
        Column("score_low", REAL, "lower end of its 95 % interval", optional=True),
        Column("score_high", REAL, "upper end", optional=True),
        Column("score_count", INDEX, "contexts that were judged", optional=True),
        Column("score_failed", INDEX, "answers of the judge that could not be read", optional=True),
        Column("counterexamples", TEXTS, "texts where the label says that it fires and it does not"),
        Column("created", pa.timestamp("us", tz="UTC"), "when the label was made"),
    ),
)

EMBEDDINGS = Table(
    "embeddings",
    "the vector of one text about a latent",
    ("sae_id", "feature", "source", "number"),
    (
        *_OF,
        Column("source", TEXT, "what was embedded: a label of `explanations`, or other text about the latent"),
        Column("number", INDEX, "of the label, or a count from 0"),
        Column("text", TEXT, "the text that was embedded"),
        Column("vector", REALS, "its vector, of the dimension given above"),
    ),
)

TABLES = {table.name: table for table in (FEATURES, EXAMPLES, EXPLANATIONS, EMBEDDINGS)}


def table_of(name: str) -> Table:
    """A table by its name.

    Raises:
        DataError: for another name.
    """
    if name not in TABLES:
        close = difflib.get_close_matches(name, TABLES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"there is no table {name!r}: a feature dataset has {', '.join(map(repr, TABLES))}.{hint}")
    return TABLES[name]


def check_schema(table: Table, found: pa.Schema, where: str) -> None:
    """Compares names and types of columns; whether they may be null is seen in the values.

    Raises:
        DataError: for a version that is not known here, another table, and columns that are missing, too many or of
            another type.
    """
    stamp = _stamp(found, where)
    if stamp.get("version", VERSION) != VERSION:
        raise DataError(
            f"{where} is of schema version {stamp['version']!r}, and this hf-sae reads {VERSION}: upgrade hf-sae."
        )
    if stamp.get("table", table.name) != table.name:
        raise DataError(f"{where} holds the table {stamp['table']!r}, not {table.name!r}.")
    missing = [name for name in table.names if name not in found.names]
    if missing:
        raise DataError(f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}.")
    extra = [name for name in found.names if name not in table.names]
    if extra or len(found.names) != len(table.names):
        listed = ", ".join(map(repr, extra or found.names))
        raise DataError(f"{where} has columns that {table.name!r} does not know, or some twice: {listed}.")
    for column in table.columns:
        given = found.field(column.name).type
        if not _same_type(given, column.type):
            raise DataError(f"{where}: column {column.name!r} is {given}, wanted {column.type}. Cast it to that.")


def storable(value: Any) -> Any:
    """The same value with text that UTF-8 can hold, inside lists and dictionaries too.

    A byte that Python could not decode (a lone surrogate of `surrogateescape`) becomes `⟨hex⟩`, as parts of characters are
    written elsewhere, any other lone surrogate the replacement character; a pair of them is the character it means.
    """
    if isinstance(value, str):
        joined = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), value)
        return _LONE.sub(_visible, joined)
    if isinstance(value, dict):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


def _visible(lone: re.Match[str]) -> str:
    code = ord(lone[0])
    return f"⟨{code - 0xDC00:02x}⟩" if 0xDC80 <= code <= 0xDCFF else "\N{REPLACEMENT CHARACTER}"


def _same_type(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal apart from whether a list's items may be null."""
    if pa.types.is_list(given) and pa.types.is_list(wanted):
        return given.value_type == wanted.value_type
    return given == wanted


def _stamp(schema: pa.Schema, where: str) -> dict[str, Any]:
    try:
        stamp = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} has damaged metadata: {error}.") from error
    if not isinstance(stamp, dict):
        raise DataError(f"{where} has damaged metadata: no JSON object.")
    return stamp
