"""Torch files are read as torch reads them, and nothing that is in them happens."""

from __future__ import annotations

import functools
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_sae.conversion import pickles
from hf_sae.conversion.files import open_files
from hf_sae.conversion.pickles import Inert, read_pt
from hf_sae.conversion.tensors import tensors_of
from hf_sae.errors import ConversionError


class Config:
    """What a foreign library puts beside its weights."""

    def __init__(self) -> None:
        self.d_in, self.dtype, self.device, self.path = 7, torch.float32, torch.device("cpu"), Path("x")


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def saved(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    return path


def test_tensors_are_those_that_were_saved(tmp_path: Path):
    base = torch.randn(6, 5)
    content = OrderedDict(
        {str(dtype): torch.arange(6).to(dtype).view(2, 3) for dtype in (torch.float64, torch.float16, torch.bfloat16)}
        | {str(dtype): torch.arange(6).to(dtype) for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool)}
        | {"transposed": base.T, "slice": base[1:4, ::2], "whole": base, "empty": torch.empty(0, 3)}
        | {"scalar": torch.tensor(2.5), "parameter": torch.nn.Parameter(base.clone())}
    )
    read = read_pt(saved(tmp_path, content))
    assert list(read) == list(content)
    for name, tensor in content.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_plain_values_and_objects_of_unknown_classes(tmp_path: Path):
    read = read_pt(saved(tmp_path, {"cfg": Config(), "k": 3, "names": ["a", ("b", None)], "n": np.float64(2.0)}))
    assert (read["k"], read["names"]) == (3, ["a", ("b", None)])
    assert isinstance(read["cfg"], Inert)
    assert type(read["cfg"]) is not Config
    assert read["cfg"].state["d_in"] == 7
    assert read["cfg"].state["dtype"] is torch.float32


@pytest.mark.parametrize("nested", [lambda c: c, lambda c: {"a": [1, (c,)]}, lambda c: OrderedDict(w=c)])
def test_nothing_is_called(tmp_path: Path, nested: Any):
    mark = tmp_path / "mark"
    calls = [
        Call(os.system, f"touch {mark}"),
        Call(Path.touch, mark),
        Call(eval, f"open({str(mark)!r}, 'w')"),
        Call(functools.partial, Path.touch, mark),
        Call(exec, f"open({str(mark)!r}, 'w')"),
        Call(getattr, "x", "upper"),
    ]
    for call in calls:
        try:
            read_pt(saved(tmp_path, nested(call)))
        except ConversionError:
            continue
    assert not mark.exists()


def archive(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def stored(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0) -> bytes:
    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": Tensor()})
    return buffer.getvalue()


def test_the_pickle_made_by_hand_is_a_right_one(tmp_path: Path):
    raw = torch.arange(4.0).numpy().tobytes()
    path = archive(tmp_path / "x.pt", {"x/data.pkl": tensor_pickle((2, 2), (2, 1), 4), "x/data/0": raw})
    assert torch.equal(read_pt(path)["w"], torch.arange(4.0).view(2, 2))


@pytest.mark.parametrize(
    ("size", "stride", "count", "offset"),
    [
        ((10**9,), (0,), 4, 0),  # one number as a billion
        ((5,), (1,), 4, 0),
        ((2, 2), (2, 1), 4, 1),
        ((2, 2), (2, -1), 4, 0),
        ((2, 2), (2, 1), 4, -1),
        ((2,), (1,), 10**12, 0),  # a storage that says more than it has
        ((2, 2), (2,), 4, 0),
    ],
)
def test_tensors_beyond_their_storage(tmp_path: Path, size: Any, stride: Any, count: int, offset: int):
    raw = torch.arange(4.0).numpy().tobytes()
    records = {"x/data.pkl": tensor_pickle(size, stride, count, offset), "x/data/0": raw}
    with pytest.raises(ConversionError):
        read_pt(archive(tmp_path / "x.pt", records))


def test_archives_that_torch_never_writes(tmp_path: Path):
    whole = stored(saved(tmp_path, {"w": torch.zeros(1000)}))
    prefix = next(name for name in whole if name.endswith("data.pkl")).removesuffix("data.pkl")
    bomb = {**whole, f"{prefix}data/0": bytes(50_000_000)}
    broken = [
        archive(tmp_path / "bomb.pt", bomb, zipfile.ZIP_DEFLATED),
        archive(tmp_path / "none.pt", {name: c for name, c in whole.items() if not name.endswith("data.pkl")}),
        archive(tmp_path / "two.pt", {**whole, "other/data.pkl": whole[f"{prefix}data.pkl"]}),
        archive(tmp_path / "big.pt", {**whole, f"{prefix}byteorder": b"big"}),
        archive(tmp_path / "gone.pt", {name: c for name, c in whole.items() if not name.endswith("data/0")}),
        archive(tmp_path / "garbage.pt", {"x/data.pkl": b"\x80\x02garbage."}),
        archive(tmp_path / "deep.pt", {"x/data.pkl": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."}),
    ]
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    for path in broken:
        with pytest.raises(ConversionError):
            tensors_of(open_files(str(tmp_path)), path.name)
    # every reference is to the same few objects: nothing grows
    laughs = b"\x80\x02]q\x00" + b"".join(b"]q%c(" % (i + 1) + b"h%c" % i * 10 + b"e" for i in range(30)) + b"."
    read_pt(archive(tmp_path / "laughs.pt", {"x/data.pkl": laughs}))


def put(kind: bytes, number: bytes) -> bytes:
    return b"\x80\x02N" + kind + number + b"."


@pytest.mark.parametrize("pickled", [put(b"r", (1 << 24).to_bytes(4, "little")), put(b"p", b"16777216\n")])
def test_the_table_of_remembered_objects_is_no_larger_than_the_file(tmp_path: Path, pickled: bytes):
    """With 2**29 instead, a hundred bytes take eight gigabytes: the interpreter allocates up to the largest number."""
    with pytest.raises(ConversionError, match="memory"):
        read_pt(archive(tmp_path / "x.pt", {"x/data.pkl": pickled}))


def test_attributes_of_what_a_pickle_names_cannot_be_set(tmp_path: Path):
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00markedK\x01sb."
    with pytest.raises(ConversionError):
        read_pt(archive(tmp_path / "x.pt", {"x/data.pkl": build.replace(b"\x05", b"\x06")}))
    assert not hasattr(pickles._rebuild_tensor, "marked")


def test_other_kinds_of_files(tmp_path: Path):
    path = tmp_path / "x.pt"
    for content in (b"", b"PK", pickle.dumps({"w": 1}), b"\x00" * 1000):
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=r"x\.pt"):
            read_pt(path)
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match="safetensors"):
        read_pt(path)


def test_arrays_that_are_none(tmp_path: Path):
    path = tmp_path / "x.npz"

    def read() -> Any:
        return tensors_of(open_files(str(tmp_path)), "x.npz")

    np.savez(path, a=np.arange(3, dtype=">f4"), b=np.ones(2, np.float16))
    assert torch.equal(read().take("b").float(), torch.ones(2))
    np.savez(path, a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(ConversionError):
        read()
    np.savez_compressed(path, a=np.zeros(20_000_000, np.float32))
    with pytest.raises(ConversionError, match="bomb"):
        read()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**11,)})
    archive(path, {"a.npy": header.getvalue() + bytes(16)})
    with pytest.raises(ConversionError, match="promises"):
        read()
