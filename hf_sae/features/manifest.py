"""What a feature dataset is about: its autoencoders, the text they read, the embedding model, and which file holds what.

It lies beside the tables as `feature_dataset.json`. Nothing in it is trusted: names, numbers and paths are checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..errors import DataError


if TYPE_CHECKING:
    from ..models import SAE

MANIFEST = "feature_dataset.json"
VERSION = 1
_FILE = re.compile(r"data/(features|examples|explanations|embeddings)-\d{5}\.parquet")
_KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "str": str, "bool": bool}


class _Facts:
    """Fields of plain values, checked when they come from a file."""

    @classmethod
    def read(cls, values: Any, what: str) -> Self:
        """From JSON.

        Raises:
            DataError: for fields that are missing, unknown, or of another type.
        """
        if not isinstance(values, dict):
            raise DataError(f"{MANIFEST}: {what} is no JSON object.")
        known = {f.name: f for f in fields(cls)}  # ty: ignore[invalid-argument-type]
        needed = {name for name, f in known.items() if f.default is MISSING}
        if wrong := sorted((values.keys() - known.keys()) | (needed - values.keys())):
            raise DataError(f"{MANIFEST}: {what} has unknown or missing fields: {', '.join(map(repr, wrong))}.")
        for name, value in values.items():
            kind, _, optional = str(known[name].type).partition(" | ")
            number = isinstance(value, bool) and kind == "int"
            if not (value is None and optional) and (number or not isinstance(value, _KINDS[kind])):
                raise DataError(f"{MANIFEST}: {name!r} of {what} is {value!r}, wanted {known[name].type}.")
        return cls(**values)


@dataclass(frozen=True)
class SAESource(_Facts):
    """The autoencoder that the rows of one `sae_id` are about.

    Args:
        d_sae (`int`): number of latents.
        repo_id (`str`, *optional*), subfolder (`str`, *optional*), commit (`str`, *optional*): where it lies on the Hub.
        sha256 (`str`, *optional*): of its weights.
        architecture (`str`, *optional*): `topk`, `jumprelu`, …
        hook_in (`str`, *optional*), hook_out (`str`, *optional*): places in the host.
        base_model (`str`, *optional*), base_revision (`str`, *optional*): the host.
        n_tokens (`int`, *optional*): how many tokens were read, the denominator of `density`.
    """

    d_sae: int
    repo_id: str | None = None
    subfolder: str | None = None
    commit: str | None = None
    sha256: str | None = None
    architecture: str | None = None
    hook_in: str | None = None
    hook_out: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    n_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.d_sae < 2**31:
            raise DataError(f"d_sae={self.d_sae}: give the number of latents, at least 1.")

    @classmethod
    def of(cls, sae: SAE, subfolder: str | None = None, n_tokens: int | None = None) -> SAESource:
        """What a loaded autoencoder says of itself; `subfolder` is where it lies in its repo, if it does not know.

        Folders of this machine mean nothing elsewhere and are left out.
        """
        config = sae.config
        commit = getattr(config, "_commit_hash", None)
        name = str(sae.name_or_path).split(
            "/"
        )  # of one loaded from a subfolder, transformers makes repo and folder one
        repo_id, folder = "/".join(name[:2]), "/".join(name[2:])
        points = [
            None if p is None else p if isinstance(p, str) else ", ".join(p) for p in (config.hook_in, config.hook_out)
        ]
        return cls(
            d_sae=config.d_sae,
            repo_id=repo_id if commit else None,
            subfolder=subfolder or (folder if commit else None) or None,
            commit=commit,
            architecture=config.model_type.removeprefix("hf_sae_"),
            hook_in=points[0],
            hook_out=points[1],
            base_model=None if config.base_model and Path(config.base_model).exists() else config.base_model,
            base_revision=config.base_revision,
            n_tokens=n_tokens,
        )


@dataclass(frozen=True)
class EmbeddingModel(_Facts):
    """What made the vectors of `embeddings`; a query has to be embedded by the same.

    Args:
        model (`str`): Hub id or name.
        dim (`int`): length of every vector.
        normalised (`bool`): whether every vector has length 1.
        revision (`str`, *optional*): commit or version.
    """

    model: str
    dim: int
    normalised: bool
    revision: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.dim <= 1 << 16:
            raise DataError(f"dim={self.dim}: give the length of the vectors, 1 to {1 << 16:,}.")


@dataclass(frozen=True)
class Shard:
    """One file of a table: where it lies, how many rows it has, and the first and the last `(sae_id, feature)` in it."""

    file: str
    rows: int
    first: tuple[str, int] | None = None
    last: tuple[str, int] | None = None

    def may_hold(self, sae_id: str, feature: int) -> bool:
        """Whether rows of that feature can be in it."""
        return self.first is not None and self.last is not None and self.first <= (sae_id, feature) <= self.last


@dataclass(frozen=True)
class Manifest:
    """All that is known of a feature dataset without opening its tables.

    Args:
        saes (`dict[str, SAESource]`): the autoencoders by `sae_id`.
        data (`dict`): the text that was read, in plain values: `name`, `split`, `revision`, `context_length`, `positions`, …
        embedding ([`EmbeddingModel`], *optional*): of the vectors, where there are any.
        shards (`dict[str, tuple[Shard, ...]]`): files by table, in order.
    """

    saes: dict[str, SAESource]
    data: dict[str, Any] = field(default_factory=dict)
    embedding: EmbeddingModel | None = None
    shards: dict[str, tuple[Shard, ...]] = field(default_factory=dict)

    def rows(self, table: str) -> int:
        """How many rows a table has."""
        return sum(shard.rows for shard in self.shards.get(table, ()))

    def to_json(self) -> str:
        """The text of the file.

        Raises:
            DataError: if `data` holds something else than JSON values.
        """
        facts = {"format": "hf_sae_features", "version": VERSION, **asdict(self)}
        try:
            return json.dumps(facts, indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise DataError(f"data= describes the text in plain JSON values: {error}.") from error

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Manifest:
        """What [`Manifest.to_json`] wrote.

        Raises:
            DataError: if anything in it is not as it should be, such as a path that leads elsewhere.
        """
        if facts.get("format") != "hf_sae_features" or facts.get("version") != VERSION:
            raise DataError(
                f"{MANIFEST} is of format {facts.get('format')!r}, version {facts.get('version')!r}; this hf-sae reads "
                f"'hf_sae_features', version {VERSION}. Is it newer? Then upgrade hf-sae."
            )
        saes, shards, data = (facts.get(key) for key in ("saes", "shards", "data"))
        lists = isinstance(shards, dict) and all(isinstance(items, list) for items in shards.values())
        if not (isinstance(saes, dict) and saes and isinstance(data, dict) and isinstance(shards, dict) and lists):
            raise DataError(f"{MANIFEST} has no 'saes', 'shards' or 'data' of the right kind.")
        embedding = facts.get("embedding")
        return cls(
            {name: SAESource.read(values, f"sae {name!r}") for name, values in saes.items()},
            data,
            None if embedding is None else EmbeddingModel.read(embedding, "'embedding'"),
            {name: tuple(_shard(name, item) for item in items) for name, items in shards.items()},
        )


def is_feature_dataset(folder: str | Path) -> bool:
    """Whether a folder holds one."""
    return (Path(folder) / MANIFEST).is_file()


def _shard(table: str, facts: Any) -> Shard:
    values = facts if isinstance(facts, dict) else {}
    file, rows, keys = values.get("file"), values.get("rows"), [values.get("first"), values.get("last")]
    match = _FILE.fullmatch(file) if isinstance(file, str) else None
    if not isinstance(file, str) or match is None or match[1] != table:
        raise DataError(
            f"{MANIFEST} lists {file!r} for {table!r}: files are called 'data/{table}-00000.parquet' and so on."
        )
    if not isinstance(rows, int) or rows < 0 or not all(key is None or _is_key(key) for key in keys):
        raise DataError(f"{MANIFEST}: {file!r} has no valid 'rows', 'first' or 'last'.")
    first, last = (None if key is None else (key[0], key[1]) for key in keys)
    return Shard(file, rows, first, last)


def _is_key(key: Any) -> bool:
    return isinstance(key, list) and len(key) == 2 and isinstance(key[0], str) and type(key[1]) is int
