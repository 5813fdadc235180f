"""Damaged checkpoints of every format: a typed error each, and no other exception escapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_sae import AutoSAE
from hf_sae.conversion import identify, open_files
from hf_sae.conversion.registry import FORMATS
from hf_sae.errors import CheckpointError, ConfigError
from tests.conversion.layouts import weights
from tests.conversion.written import WRITERS, D, F, Where


# without these it is another checkpoint of the format: a tied decoder, a ReLU
OPTIONAL = {("openai", "decoder.weight"), ("circuit_tracer", "activation_function.threshold")}
# a config beside these says nothing
NO_CONFIG = ("gemma_scope", "qwen_scope", "goodfire", "deepseek", "openai", "pchlenski")
NAMED_WIDTH = ("gemma_scope", "gemma_scope_2", "qwen_scope")  # their width stands in the name
NAMES = [module.__name__.rpartition(".")[2] for module in FORMATS]  # a new format without a writer fails here
pytestmark = pytest.mark.parametrize("write", [WRITERS[name] for name in NAMES], ids=NAMES)


def load(where: Where) -> Any:
    return AutoSAE.from_pretrained(where[0], subfolder=where[1])


def tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        return {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    return {key: value for key, value in state(unpickled(path)).items() if isinstance(value, torch.Tensor)}


def unpickled(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # noqa: TID251


def state(content: dict[str, Any]) -> dict[str, Any]:
    return content.get("state_dict", content)


def put(path: Path, content: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    else:
        whole = unpickled(path)
        rest = {key: value for key, value in state(whole).items() if not isinstance(value, torch.Tensor)}
        torch.save({**whole, "state_dict": content} if "state_dict" in whole else {**rest, **content}, path)


def test_whole_it_loads(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    assert load(where).config.d_sae == F
    assert identify(open_files(str(where[0]), where[1])).__name__.endswith(write.__name__)


def test_truncated_anywhere(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    whole = where[2].read_bytes()
    for share in range(20):
        where[2].write_bytes(whole[: len(whole) * share // 20])
        with pytest.raises((CheckpointError, ConfigError)):
            load(where)


def test_each_tensor_missing_misshapen_or_not_finite(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    whole = tensors(where[2])
    for name, value in whole.items():
        damaged = [{**whole, name: torch.full_like(value, damage)} for damage in (torch.nan, torch.inf, -torch.inf)]
        if (write.__name__, name) not in OPTIONAL:
            damaged.append({key: tensor for key, tensor in whole.items() if key != name})
        if value.ndim:
            damaged += [{**whole, name: value[..., :-1].clone()}, {**whole, name: value.unsqueeze(0)}]
        for content in damaged:
            put(where[2], content)
            with pytest.raises((CheckpointError, ConfigError)):
                load(where)
    put(where[2], {**whole, "something_else": torch.ones(3)})
    with pytest.raises(CheckpointError, match="something_else"):
        load(where)


def test_square_matrices_keep_their_orientation(tmp_path: Path, write: Callable[..., Where]):
    size = 1024 if write.__name__ in NAMED_WIDTH else 16
    sae = load(write(tmp_path, size, size))
    w = weights(sae.config.d_in, sae.config.d_sae)
    assert torch.equal(sae.W_enc, w["W_enc"])
    assert torch.equal(sae.W_dec, w["W_dec"])


def test_configs_that_are_none(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    folder = where[0] / where[1]
    config = next(iter([*folder.glob("*.json"), *where[0].glob("*.json"), *where[0].glob("*.yaml")]), None)
    if config is None:
        config = (folder if folder.is_dir() else where[0]) / "config.json"
    for text in (
        "",
        "[1]",
        "{",
        "null",
        '{"trainer": 3, "d_in": [], "architecture": {}, "metadata": 7}',
        "[" * 100_000,
        '{"d_in": ' + "9" * 5000 + "}",
        '{"d_in": NaN, "d_model": 1e999, "trainer": {"dict_class": "AutoEncoder", "dict_size": -1}, "act_name": 3, "hf_hook_point_in": 3}',
        "a: [&x 1, *x]",
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            load(where)
        except (CheckpointError, ConfigError):
            continue
        assert write.__name__ in NO_CONFIG, f"nobody read {text[:80]!r}"
