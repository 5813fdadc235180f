"""What reports share: numbers and columns as text, JSON values, files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


WIDTH = 80


def json_safe(value: Any) -> Any:
    """`value` as JSON values; a number that is not finite is `None`."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    if isinstance(value, Tensor):
        return json_safe(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def write_json(data: Mapping[str, Any], path: str | Path) -> None:
    """Write JSON values to a file, whole or not at all."""
    write_bytes(f"{json.dumps(data, indent=2, allow_nan=False)}\n".encode(), path)


def write_bytes(data: bytes, path: str | Path) -> None:
    """Write a file, whole or not at all; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def number(value: float | None) -> str:
    """Four digits after the point, powers of ten where that says nothing, `-` where there is no value."""
    if value is None:
        return "-"
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e5):
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 100 else f"{value:.1f}"


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Columns of text, cut at 80; `sides` has `<` or `>` for each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)) for row in rows)
    return [line.rstrip()[:WIDTH] for line in lines]
