"""One ordinary `model.safetensors` of a dictionary whose rows are in many processes, in bounded memory.

The file is written as the format says (eight bytes of header length, a JSON header, the tensors one after the other),
so that a tensor never has to be whole in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CheckpointError
from ...models import SAE
from ...models.checkpoint import FEATURE_STATS, atomic_folder
from ...models.code_export import without_code
from .processes import Processes


WEIGHTS = "model.safetensors"
CHUNK_BYTES = 32 * 2**20
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_model(processes: Processes, sae: SAE, bounds: list[int], folder: Path) -> None:
    """Writes config and weights on the main process; all take part.

    Args:
        processes ([`Processes`]): that hold the rows.
        sae ([`SAE`]): this process's part.
        bounds (`list[int]`): where the range of each process starts, and the end.
        folder (`Path`): of the main process.

    Raises:
        CheckpointError: on the main process, if it cannot be written; the other processes go on.
    """
    pieces = _pieces(processes, sae, bounds)
    if not processes.is_main:
        for _ in pieces:
            pass
        return
    try:
        _write(sae, pieces, folder)
    finally:
        for _ in pieces:  # a disk that is full here must not leave the others waiting
            pass


def save_whole(sae: SAE, folder: Path) -> None:
    """Writes an SAE that is whole here, from any process: transformers saves on the first one only.

    Raises:
        CheckpointError: if it cannot be written.
    """
    _write(sae, (tensor for _, tensor in _ordered(sae)), folder)


def _write(sae: SAE, pieces: Iterator[Tensor], folder: Path) -> None:
    with atomic_folder(folder) as temporary, without_code(sae):
        sae.config.architectures = [type(sae).__name__]
        sae.config.dtype = str(sae.dtype).removeprefix("torch.")
        sae.config.save_pretrained(temporary)
        with open(temporary / WEIGHTS, "wb") as file:
            _write_header(file, sae)
            for piece in pieces:
                file.write(piece.contiguous().view(-1).view(torch.uint8).cpu().numpy())
    Path(folder, FEATURE_STATS).unlink(missing_ok=True)  # those of other weights, which stood there before


def _pieces(processes: Processes, sae: SAE, bounds: list[int]) -> Iterator[Tensor]:
    """The rows of every tensor in the order of the file; a piece is valid on the main process, one at a time."""
    for name, tensor in _ordered(sae):
        if name not in sae.per_latent:
            yield tensor
            continue
        step = max(1, CHUNK_BYTES // max(1, tensor[:1].nbytes))
        for rank, (start, stop) in enumerate(pairwise(bounds)):
            for first in range(0, stop - start, step):
                count = min(step, stop - start - first)
                yield processes.send_to_main(rank, tensor[first : first + count], (count, *tensor.shape[1:]))


def _ordered(sae: SAE) -> list[tuple[str, Tensor]]:
    # parameters and buffers; wide ones first: all are aligned
    return sorted(sae.state_dict().items(), key=lambda item: (-item[1].element_size(), item[0]))


def _write_header(file: IO[bytes], sae: SAE) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in _ordered(sae):
        shape = [sae.config.d_sae, *tensor.shape[1:]] if name in sae.per_latent else list(tensor.shape)
        end = offset + math.prod(shape) * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    file.write(len(text).to_bytes(8, "little") + text)


@torch.no_grad()
def load_model(sae: SAE, start: int, stop: int, folder: Path) -> None:
    """Reads the rows `start` to `stop` of a checkpoint into an SAE that holds only those.

    Raises:
        CheckpointError: for a file that is missing, damaged or not finite, or of another shape.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            for name, tensor in _ordered(sae):
                part = file.get_slice(name)
                part = part[start:stop] if name in sae.per_latent else part[:]
                if part.shape != tensor.shape or not torch.isfinite(part).all():
                    raise CheckpointError(
                        f"{str(path)!r}: {name} is {list(part.shape)}, wanted {list(tensor.shape)} with finite values. "
                        "Resume from an older checkpoint."
                    )
                tensor.copy_(part)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}. Resume from an older checkpoint.") from error
