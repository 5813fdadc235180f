"""What a cache is: its host, places, statistics and files. Nothing in a manifest is trusted: names and numbers are checked."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from .storage import Storage, storage_by_name


MANIFEST = "manifest.json"
FORMAT, VERSION = "hf_sae_activations", 1
_FILE, _SHA256 = re.compile(r"activations-\d{5,}\.safetensors"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One file: its name, tokens, size in bytes and SHA-256."""

    file: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def read(cls, facts: Any) -> Shard:
        """From JSON.

        Raises:
            DataError: for a name, number or hash that is none.
        """
        values = [facts.get(key) for key in ("file", "rows", "bytes", "sha256")] if isinstance(facts, dict) else []
        match values:
            case [str() as file, int() as rows, int() as size, str() as sha256] if (
                _FILE.fullmatch(file) and rows > 0 and size > 0 and _SHA256.fullmatch(sha256)
            ):
                return cls(file, rows, size, sha256)
        raise DataError(
            f"{MANIFEST} lists the shard {facts!r}: wanted are a file 'activations-00000.safetensors', rows, bytes and a SHA-256."
        )


@dataclass(frozen=True)
class PointFacts:
    """One place: its width and the statistics of all its activations in the cache, before they were stored.

    Args:
        width (`int`): d.
        mean_norm (`float`): mean of ‖x‖.
        total_variance (`float`): mean of ‖x − mean‖².
        fvu_floor (`float`): what storing adds to the fraction of variance unexplained: mean of ‖x − x̂‖² over `total_variance`.
        mean (`list[float]`): `[d]`.
    """

    width: int
    mean_norm: float
    total_variance: float
    fvu_floor: float
    mean: list[float]

    @classmethod
    def read(cls, point: str, facts: Any) -> PointFacts:
        """From JSON.

        Raises:
            DataError: for missing or wrong values.
        """
        values = facts if isinstance(facts, dict) else {}
        numbers = [values.get(key) for key in ("mean_norm", "total_variance", "fvu_floor")]
        width, mean = values.get("width"), values.get("mean")
        fits = isinstance(mean, list) and all(isinstance(x, int | float) for x in [*mean, *numbers])
        if not fits or type(width) is not int or not 0 < width == len(mean or ()):
            raise DataError(f"{MANIFEST}: the place {point!r} has no valid width, statistics or mean.")
        return cls(width, *(float(x or 0) for x in numbers), mean)


@dataclass(frozen=True)
class Manifest:
    """All that is known of a cache without opening its shards.

    Args:
        points (`dict[str, PointFacts]`): by place, as written.
        storage ([`Storage`]): how activations lie in the files, and the dtype they are served in.
        rows_per_shard (`int`): of every shard but the last.
        shards (`tuple[Shard, ...]`): in order.
        source (`dict`): what the stream said of itself: host, revision, fingerprint, places, data, seed, counts.
    """

    points: dict[str, PointFacts]
    storage: Storage
    rows_per_shard: int
    shards: tuple[Shard, ...]
    source: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def widths(self) -> dict[str, int]:
        """Size of the activations at each place."""
        return {point: facts.width for point, facts in self.points.items()}

    @property
    def identity(self) -> str:
        """SHA-256 over the shards' hashes: equal for equal activations, wherever they lie."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of the file."""
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "n_tokens": self.n_tokens,
            "storage": self.storage.name,
            "dtype": str(self.storage.dtype).removeprefix("torch."),
            "rows_per_shard": self.rows_per_shard,
            "points": {point: asdict(found) for point, found in self.points.items()},
            "source": self.source,
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(facts, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """What [`Manifest.to_json`] wrote.

        Raises:
            DataError: if anything in it is not as it should be, such as a path that leads elsewhere.
        """
        try:
            facts = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{MANIFEST} is not JSON: {error}. Write or download the cache again.") from error
        kind = facts if isinstance(facts, dict) else {}
        if kind.get("format") != FORMAT or kind.get("version") != VERSION:
            raise DataError(
                f"{MANIFEST} is of format {kind.get('format')!r}, version {kind.get('version')!r}; this hf-sae reads {FORMAT!r}, "
                f"version {VERSION}. Is it newer? Then upgrade hf-sae."
            )
        points, shards, source, rows = (facts.get(key) for key in ("points", "shards", "source", "rows_per_shard"))
        lists = isinstance(points, dict) and isinstance(shards, list) and isinstance(source, dict)
        if not (lists and points and shards and type(rows) is int):
            raise DataError(f"{MANIFEST} has no 'points', 'shards', 'source' or 'rows_per_shard' of the right kind.")
        return cls(
            {point: PointFacts.read(point, found) for point, found in points.items()},
            storage_by_name(facts.get("storage"), facts.get("dtype")),
            rows,
            tuple(Shard.read(shard) for shard in shards),
            source,
        )

    @classmethod
    def open(cls, folder: str | Path) -> Manifest:
        """The manifest of a finished cache in a folder.

        Raises:
            DataError: if there is none.
        """
        path = Path(folder) / MANIFEST
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{str(folder)!r} holds no finished activation cache ({error}). Write one with write_cache() or "
                "`hf-sae cache write`; one that was interrupted goes on with resume=True, or --resume."
            ) from error


def summary(manifest: Manifest) -> dict[str, Any]:
    """The facts that a person asks for, as JSON values."""
    points = {p: {k: v for k, v in asdict(facts).items() if k != "mean"} for p, facts in manifest.points.items()}
    return {
        "n_tokens": manifest.n_tokens,
        "shards": len(manifest.shards),
        "rows_per_shard": manifest.rows_per_shard,
        "bytes": manifest.n_bytes,
        "storage": manifest.storage.name,
        "dtype": str(manifest.storage.dtype).removeprefix("torch."),
        "points": points,
        "base_model": manifest.source.get("base_model"),
        "base_revision": manifest.source.get("base_revision"),
        "seed": manifest.source.get("seed"),
        "counts": manifest.source.get("counts"),
        "identity": manifest.identity,
    }
