"""The stacks of transformer blocks in a host, found by structure, and which of them a tower prefix means."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import HookPointError
from .hook_points import HookPoint


# Children that mark a module as a transformer (or state space) block, whatever its class is called.
_MIXING = re.compile(r"attn|attention|mixer|mamba|ssm|rwkv|recurrent|time_mix", re.IGNORECASE)
# The first path segment that says something decides: 'text_model.encoder.layers' is text, 'encoder.bert' an encoder.
_MODALITIES = {
    "vision": re.compile(r"vision|visual|image|pixel", re.IGNORECASE),
    "audio": re.compile(r"audio|speech|sound", re.IGNORECASE),
    "text": re.compile(r"text|language", re.IGNORECASE),
}
_ROLES = {"encoder": re.compile(r"encoder", re.IGNORECASE), "decoder": re.compile(r"decoder", re.IGNORECASE)}
_INPUT_MODALITY = {"input_ids": "text", "pixel_values": "vision", "input_features": "audio", "input_values": "audio"}


@dataclass(frozen=True)
class Tower:
    """One stack of blocks of a host.

    Args:
        path (`str`): of the block list, in the unwrapped host.
        n_layers (`int`): its length.
        model_path (`str`): of the innermost `PreTrainedModel` around it.
        modality (`str`): `"text"`, `"vision"` or `"audio"`.
        role (`str`, *optional*): `"encoder"` or `"decoder"`.
        prefix (`str`): what a hook point needs in front to mean this tower; empty where there is no other.
    """

    path: str
    n_layers: int
    model_path: str
    modality: str
    role: str | None
    prefix: str = ""

    @property
    def kin(self) -> tuple[str, str, str | None]:
        """Block lists that share this are rivals for one name; the longest one gets it."""
        return self.model_path, self.modality, self.role

    def block_path(self, layer: int) -> str:
        """Path of one block."""
        return f"{self.path}.{layer}"


def unwrap(host: nn.Module) -> nn.Module:
    """The model itself: without `torch.compile`, (Distributed)DataParallel and PEFT around it."""
    while True:
        if isinstance(host, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            host = host.module
        elif isinstance(compiled := host._modules.get("_orig_mod"), nn.Module):
            host = compiled
        elif callable(base := getattr(host, "get_base_model", None)):
            host = base()
        else:
            return host


def is_compiled(host: nn.Module) -> bool:
    """Whether `torch.compile(host)` or `module.compile()` was applied to the host or a part of it."""
    return any("_orig_mod" in m._modules or m.__dict__.get("_compiled_call_impl") for m in host.modules())


def towers_of(host: nn.Module) -> list[Tower]:
    """All block lists of an unwrapped host, in module order; the longest one where a model has several.

    Raises:
        HookPointError: where the host has none.
    """
    found = [_describe(host, path, blocks) for path, blocks in _block_lists(host)]
    longest: dict[tuple[str, str, str | None], int] = {}
    for tower in found:
        longest[tower.kin] = max(longest.get(tower.kin, 0), tower.n_layers)
    towers = [tower for tower in found if tower.n_layers == longest[tower.kin]]
    if not towers:
        raise HookPointError(
            f"{type(host).__name__} has no list of blocks with attention or a mixer in it, so places by meaning do not "
            "exist here. Give a module path, as in 'some.module:output'."
        )
    if len(towers) == 1:
        return towers
    by_role = bool(getattr(getattr(host, "config", None), "is_encoder_decoder", False))
    return [_with_prefix(tower, by_role) for tower in towers]


def choose_tower(host: nn.Module, point: HookPoint) -> Tower:
    """The tower that a point by meaning is in.

    Raises:
        HookPointError: if it could be several, or the tower does not exist; the choices are listed.
    """
    towers = towers_of(host)
    fitting = [t for t in towers if point.tower is None or point.tower in (t.modality, t.role)]
    if len(fitting) == 1:
        return fitting[0]
    rest = point.text.rpartition(":")[2]
    if len({t.prefix for t in towers}) == len(towers):
        choices = ", ".join(repr(f"{t.prefix}:{rest}" if t.prefix else rest) for t in fitting or towers)
    else:
        choices = "the blocks by module path: " + ", ".join(repr(t.path) for t in fitting or towers)
    what = f"could be in {len(fitting)} towers of" if fitting else "names a tower that is not in"
    raise HookPointError(f"{point.text!r} {what} {type(host).__name__}. Choose one of {choices}.")


def _block_lists(host: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    lists: list[tuple[str, nn.ModuleList]] = []
    for path, module in host.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{known}.") for known, _ in lists):
            continue
        if len(module) and all(_is_block(block) for block in module):
            lists.append((path, module))
    return lists


def _is_block(block: nn.Module) -> bool:
    return any(
        _MIXING.search(name.rpartition(".")[2]) or _MIXING.search(type(child).__name__)
        for name, child in block.named_modules()
        if child is not block
    )


def _describe(host: nn.Module, path: str, blocks: nn.ModuleList) -> Tower:
    segments, model_path, model = path.split("."), "", host
    for depth in range(1, len(segments)):
        inner = host.get_submodule(".".join(segments[:depth]))
        if isinstance(inner, PreTrainedModel):
            model_path, model = ".".join(segments[:depth]), inner
    modality = _first_match(segments, _MODALITIES)
    modality = modality or _INPUT_MODALITY.get(getattr(model, "main_input_name", ""), "text")
    return Tower(path, len(blocks), model_path, modality, _first_match(segments, _ROLES))


def _first_match(segments: list[str], patterns: dict[str, re.Pattern[str]]) -> str | None:
    return next((name for s in segments for name, pattern in patterns.items() if pattern.search(s)), None)


def _with_prefix(tower: Tower, by_role: bool) -> Tower:
    prefix = (tower.role if by_role else None) or tower.modality
    return Tower(tower.path, tower.n_layers, tower.model_path, tower.modality, tower.role, prefix)


def hidden_size(model: nn.Module) -> int | None:
    """Width of the residual stream from the model's own config, where that says it."""
    config = getattr(model, "config", None)
    size = getattr(config, "hidden_size", None) if isinstance(config, PreTrainedConfig) else None
    return size if isinstance(size, int) else None


def host_device(host: nn.Module) -> torch.device:
    """Where inputs go: the device of the first parameter that is not on `meta` (offloaded ones are)."""
    return next((p.device for p in host.parameters() if p.device.type != "meta"), torch.device("cpu"))
