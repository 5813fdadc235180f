"""Reads `torch.save` files without running anything that is in them.

A torch file is an uncompressed zip with one pickle (`data.pkl`) and one record of raw bytes per storage. The pickle is
interpreted here by a reader that knows tensors, ordered dictionaries and plain values; every other class becomes an
[`Inert`] that only remembers its state, so that a config object of a foreign library can be looked at but does nothing.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError


MAX_PICKLE = 1 << 26  # 64 MiB without tensors
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """An object of a class that is not loaded: its name and what was stored in it, nothing else."""

    state: dict[str, Any]

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Inert:
        """Here and not in `__init__`, which pickles do not call."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what the class would have taken."""

    def __setstate__(self, state: Any) -> None:
        # objects with slots store (state, slots)
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.state.update((str(key), value) for key, value in part.items())

    # pickles fill subclasses of list and dict through these
    def append(self, value: Any) -> None:
        """Forgets the value."""

    def extend(self, values: Any) -> None:
        """Forgets the values."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[str(key)] = value


def read_pt(path: Path) -> Any:
    """The content of a `torch.save` file: dictionaries, lists, plain values, CPU tensors and [`Inert`] objects.

    Args:
        path (`Path`): a file in the zip format of torch 1.6 and later.

    Raises:
        ConversionError: if it is not such a file, is truncated, compressed (a zip bomb), or holds tensors that reach
            beyond their storage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except ConversionError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ConversionError(
            f"{path.name!r} cannot be read as a torch file ({error}). Files of torch before 1.6 and plain pickles are "
            "not read: load it where it can be trusted and save its tensors as safetensors."
        ) from error
    except Exception as error:  # a malformed pickle can fail in any way inside the interpreter
        raise ConversionError(f"{path.name!r} holds a malformed pickle: {type(error).__name__}: {error}.") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    records = {info.filename: info for info in archive.infolist()}
    packed = [name for name, info in records.items() if info.compress_type != zipfile.ZIP_STORED]
    total = sum(info.file_size for info in records.values())
    if packed or total > path.stat().st_size:
        raise ConversionError(
            f"{path.name!r} has compressed or overlapping records, which torch never writes: it is damaged, or meant "
            "to fill the memory."
        )
    index = [name for name in records if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(index) != 1:
        raise ConversionError(f"{path.name!r} is a zip without the data.pkl of a torch file.")
    if records[index[0]].file_size > MAX_PICKLE:
        raise ConversionError(
            f"the pickle in {path.name!r} has {records[index[0]].file_size:,} bytes without tensors."
        )
    prefix = index[0].removesuffix("data.pkl")
    order = records.get(f"{prefix}byteorder")
    if order is not None and archive.read(order).strip() != b"little":
        raise ConversionError(f"{path.name!r} was written on a big-endian machine: save it again on another.")
    return _Reader(archive, prefix).load()


def _check_memo(content: bytes) -> None:
    """Objects are remembered under numbers that count up; the interpreter allocates a table up to the largest one."""
    for opcode, number, _ in pickletools.genops(content):
        if "PUT" in opcode.name and not 0 <= int(number or 0) < len(content):
            raise ConversionError(
                f"the pickle of {len(content):,} bytes numbers an object {number:,}: it is damaged, or meant to fill the memory."
            )


class _Call:
    """A function to a pickle, which may set attributes of what it names: on this there are none."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        content = archive.read(f"{prefix}data.pkl")
        _check_memo(content)
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a global name in the pickle means here; most mean nothing."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _Call(_rebuild_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _Call(_rebuild_parameter)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        return type(name, (Inert,), {"__module__": "inert"})

    def persistent_load(self, pid: Any) -> Any:
        """A storage `("storage", type, key, location, number of elements)` as a flat tensor."""
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ConversionError(f"a storage of an unknown kind: {str(pid)[:80]}.")
        if key not in self.storages:
            record = self.archive.getinfo(f"{self.prefix}data/{key}")
            raw = bytearray(record.file_size)
            stream: Any = self.archive.open(record)
            with stream:  # into place: a copy of a large storage would double the memory
                stream.readinto(raw)
            size = torch.empty((), dtype=dtype).element_size()
            if not isinstance(count, int) or count < 0 or count * size != len(raw):
                raise ConversionError(f"storage {key!r} says {count} elements of {dtype} and has {len(raw):,} bytes.")
            self.storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_rest: Any) -> Tensor:
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, Tensor)
        or not all(isinstance(n, int) and n >= 0 for n in numbers)
        or len(size) != len(stride)
    ):
        raise ConversionError("a tensor without a storage, or with a shape that is none.")
    elements = 1
    for n in size:
        elements *= n
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # elements > numel: a stride of 0 makes one number look like a billion
    if elements > storage.numel() or (elements and last >= storage.numel()):
        raise ConversionError(
            f"a tensor of shape {list(size)} reaches beyond its storage of {storage.numel():,} elements."
        )
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Any, *_rest: Any) -> Any:
    return data
