"""Reads the tensors of a checkpoint into a dictionary from which a format takes what it knows."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ConversionError
from .files import Files
from .pickles import read_pt


MAX_RATIO = 64  # float weights compress by a tenth, a zip bomb a thousandfold


class Tensors(dict[str, Tensor]):
    """Tensors by name; what is not taken is refused in the end.

    Args:
        name (`str`): of the file, for errors.
        tensors (`Mapping`): by name.
    """

    def __init__(self, name: str, tensors: Mapping[str, Any]) -> None:
        super().__init__({k: v for k, v in tensors.items() if isinstance(v, Tensor)})
        self.name = name

    def take(self, *names: str, ndim: int | None = None) -> Tensor:
        """Removes and returns the first of several spellings.

        Args:
            names (`str`): alternatives.
            ndim (`int`, *optional*): its number of dimensions.

        Raises:
            ConversionError: if there is none, it has other dimensions, or it is a vector with NaN or infinite values.
        """
        found = self.take_if(*names, ndim=ndim)
        if found is None:
            raise ConversionError(
                f"{self.name!r} lacks the tensor {' or '.join(map(repr, names))}. It has: {', '.join(sorted(self)) or 'none'}."
            )
        return found

    def take_if(self, *names: str, ndim: int | None = None) -> Tensor | None:
        """As [`take`], but `None` where there is no such tensor."""
        for name in names:
            if name in self:
                tensor = self.pop(name)
                if ndim is not None and tensor.ndim != ndim:
                    raise ConversionError(
                        f"{name!r} of {self.name!r} has shape {list(tensor.shape)}, not {ndim} dimensions."
                    )
                # matrices are looked at when the model is loaded; of a threshold, an infinity may be gone by then
                if tensor.ndim < 2 and not tensor.isfinite().all():
                    raise ConversionError(
                        f"{name!r} of {self.name!r} holds NaN or infinite values. Download it again."
                    )
                return tensor if tensor.is_floating_point() else tensor.float()
        return None

    def drop(self, *names: str) -> None:
        """Removes what training needs and inference does not."""
        for name in names:
            self.pop(name, None)

    def done(self) -> None:
        """Refuses tensors that nothing took: an unknown one may change what the others mean.

        Raises:
            ConversionError: if any is left.
        """
        if self:
            raise ConversionError(
                f"{self.name!r} has tensors that this format does not know: {', '.join(sorted(self))}. Is it another format?"
            )


def tensors_of(files: Files, name: str) -> Tensors:
    """The tensors of one `.safetensors`, `.npz` or `.pt`/`.pth` file; a `.pt` is a flat state dict.

    Raises:
        ConversionError: if the file is damaged, of another kind, or holds something else than numbers.
    """
    path = files.path(name)
    if name.endswith(".safetensors"):
        return Tensors(name, _safetensors(path))
    if name.endswith(".npz"):
        return Tensors(name, _npz(path))
    content = read_pt(path)
    if not isinstance(content, Mapping):
        raise ConversionError(f"{name!r} holds a {type(content).__name__}, not a dictionary of tensors.")
    return Tensors(name, content)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path.name!r} cannot be read: {error}. Download it again.") from error


def _npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > MAX_RATIO * path.stat().st_size:
                raise ConversionError(
                    f"{path.name!r} would grow from {path.stat().st_size:,} to {total:,} bytes: a zip bomb."
                )
            for info in archive.infolist():
                _check_npy(archive, info)
        with np.load(path, allow_pickle=False) as arrays:
            native = {key: arrays[key].astype(arrays[key].dtype.newbyteorder("="), copy=False) for key in arrays.files}
            return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in native.items()}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, SyntaxError, OverflowError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path.name!r} cannot be read: {error}. Download it again.") from error


def _check_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """The header of an array must promise what the record holds: numpy allocates before it reads."""
    import numpy as np

    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = dtype.itemsize
        for n in shape:
            size *= n
        if dtype.hasobject or size + file.tell() != info.file_size:
            raise ConversionError(
                f"array {info.filename!r} promises {size:,} bytes and the record has {info.file_size:,}."
            )
