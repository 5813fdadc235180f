"""Places in any AutoModel: from what is written to the module and side that carry it, by structure alone.

`resid_pre`, `resid_post`, `embed`, `final` and module paths follow from the module tree. The places inside a block
(`resid_mid`, `attn_*`, `mlp_*`) follow from one small probe forward of the host (`hf_sae.hosts.wiring`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from ..errors import HookPointError
from .fingerprints import compare_fingerprints, fingerprint
from .hook_points import HOST_NAMES, LAYER_NAMES, HookPoint, Place, Site
from .towers import Tower, choose_tower, hidden_size, towers_of, unwrap
from .wiring import probe_width, wiring_of


__all__ = ["Place", "Site", "compare_fingerprints", "fingerprint", "places", "resolve", "unwrap", "width_of"]

_WRAPPER_SEGMENTS = ("_orig_mod", "module", "base_model.model", "base_model")
_EARLY = re.compile(r"emb|pre_?la?y|pre_?norm|proj")
_LATE = re.compile(r"final|post|last|norm_f|ln_f|out")
_SIMPLE = {"resid_pre": "input", "resid_post": "output"}


def resolve(host: nn.Module, point: str | HookPoint) -> Site:
    """Finds a place in a host.

    Args:
        host (`nn.Module`): any model, also wrapped by PEFT, DistributedDataParallel or `torch.compile`.
        point (`str` or [`HookPoint`]): the place.

    Raises:
        HookPointError: if the place is misspelled, does not exist, is ambiguous, or cannot be explained by the probe.
    """
    point, host = HookPoint.of(point), unwrap(host)
    if point.path is not None:
        return _resolve_path(host, point)
    tower = choose_tower(host, point)
    if point.name in HOST_NAMES:
        path = _embedding_path(host, tower) if point.name == "embed" else _final_path(host, tower)
        width = _module_width(host, path) or hidden_size(host.get_submodule(tower.model_path))
        return _site(host, point.text, path, "output", width)
    if point.layer is None or point.layer >= tower.n_layers:
        last = tower.n_layers - 1
        raise HookPointError(
            f"{point.text!r}: {type(host).__name__} has {tower.n_layers} layers at {tower.path!r}. Give 0 to {last}."
        )
    block = tower.block_path(point.layer)
    if point.name in _SIMPLE:
        width = hidden_size(host.get_submodule(tower.model_path))
        return _site(host, point.text, block, _SIMPLE[point.name], width, block)
    found = wiring_of(host, tower, point.layer).place(point)
    path = f"{block}.{found.path}" if found.path else block
    return _site(host, point.text, path, found.side, found.width, block, flat=found.flat, stream=found.stream)


def places(host: nn.Module) -> list[Place]:
    """Every place by meaning that the host has, tower by tower and layer by layer, with its width.

    Raises:
        HookPointError: where the host has no block list.
    """
    host = unwrap(host)
    return [place for tower in towers_of(host) for place in _places_in(host, tower)]


def width_of(host: nn.Module, point: str | HookPoint) -> int:
    """Size of the last dimension at a place; one probe forward where the structure does not say it.

    Raises:
        HookPointError: if the place does not exist or the probe does not pass through it.
    """
    site = resolve(host, point)
    if site.place.width is not None:
        return site.place.width
    host, path = unwrap(host), site.place.path
    tower = next((t for t in _towers_or_none(host) if t.model_path and path.startswith(f"{t.model_path}.")), None)
    return probe_width(host, tower, site.module, site.place)


def _places_in(host: nn.Module, tower: Tower) -> Iterator[Place]:
    prefix = f"{tower.prefix}:" if tower.prefix else ""
    names = [f"{name}.{layer}" for layer in range(tower.n_layers) for name in LAYER_NAMES]
    for name in ["embed", *names, "final"]:
        try:
            yield resolve(host, f"{prefix}{name}").place
        except HookPointError:
            continue  # a place that this kind of block does not have


def _site(
    host: nn.Module,
    name: str,
    path: str,
    side: str,
    width: int | None,
    block: str | None = None,
    flat: bool = False,
    stream: bool = False,
) -> Site:
    side = "input" if side == "input" else "output"
    around = host.get_submodule(block) if block is not None else None
    return Site(Place(name, path, side, width), host.get_submodule(path), _owner(host, path), around, flat, stream)


def _owner(host: nn.Module, path: str) -> nn.Module:
    owner, segments = host, path.split(".")
    for depth in range(1, len(segments)):
        module = host.get_submodule(".".join(segments[:depth]))
        owner = module if isinstance(module, PreTrainedModel) else owner
    return owner


def _resolve_path(host: nn.Module, point: HookPoint) -> Site:
    modules = dict(host.named_modules())
    path = next((p for p in _spellings(host, point.path or "") if p and p in modules), None)
    if path is None:
        head, _, tail = (point.path or "").partition(".")
        meanings = [f"{name}.{tail or 0}" for name in difflib.get_close_matches(head, LAYER_NAMES, n=2)]
        meanings += difflib.get_close_matches(point.path or "", HOST_NAMES, n=1)
        near = [*meanings, *difflib.get_close_matches(point.path or "", list(modules), n=3)][:3]
        hint = f"Closest: {', '.join(map(repr, near))}." if near else "List them with hf_sae.hosts.places(host)."
        raise HookPointError(f"no module {point.path!r} in {type(host).__name__}. {hint}")
    block = next(
        (
            t.block_path(i)
            for t in _towers_or_none(host)
            for i in range(t.n_layers)
            if f"{path}.".startswith(f"{t.block_path(i)}.")
        ),
        None,
    )
    width = _module_width(host, path) if point.side == "output" else getattr(modules[path], "in_features", None)
    return _site(host, point.text, path, point.side, width, block)


def _spellings(host: nn.Module, path: str) -> Iterator[str]:
    """The path as written; without the wrapper's segments; with or without the head model's prefix."""
    yield path
    for segment in _WRAPPER_SEGMENTS:
        path = path.removeprefix(f"{segment}.")
    yield path
    prefix = getattr(host, "base_model_prefix", "")
    if prefix:
        yield path.removeprefix(f"{prefix}.")
        yield f"{prefix}.{path}"


def _towers_or_none(host: nn.Module) -> list[Tower]:
    try:
        return towers_of(host)
    except HookPointError:
        return []


def _module_width(host: nn.Module, path: str) -> int | None:
    module = host.get_submodule(path)
    for key in ("out_features", "embedding_dim"):
        if isinstance(width := getattr(module, key, None), int):
            return width
    if _is_norm(module) and (weight := getattr(module, "weight", None)) is not None:
        return weight.shape[-1]
    return None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _beside(host: nn.Module, tower: Tower) -> Iterator[tuple[str, nn.Module, bool]]:
    """Children beside the block list, and beside what holds it as long as no other tower is there.

    Yields path, module, and whether it was declared after the blocks.
    """
    others = [t.path for t in towers_of(host) if t.path != tower.path]
    path = tower.path
    while path:
        path, _, inner = path.rpartition(".")
        if any(other.startswith(f"{path}." if path else "") for other in others):
            return
        after = False
        for name, child in host.get_submodule(path).named_children():
            after = after or name == inner
            if name != inner:
                yield (f"{path}.{name}" if path else name), child, after


def _embedding_path(host: nn.Module, tower: Tower) -> str:
    model = host.get_submodule(tower.model_path)
    composite = [path for path, _, _ in _beside(host, tower) if re.search(r"(^|\.)embeddings?$", path)]
    if composite:
        return composite[0]
    getter = getattr(model, "get_input_embeddings", None)
    try:
        table = getter() if callable(getter) else None
    except NotImplementedError:
        table = None
    path = next((name for name, module in host.named_modules() if module is table), None)
    if not isinstance(table, nn.Embedding) or path is None:
        raise HookPointError(
            f"{type(host).__name__} has no single embedding module at {tower.path!r}: use 'resid_pre.0', what enters "
            "the first block."
        )
    return path


def _final_path(host: nn.Module, tower: Tower) -> str:
    beside = [(path, after) for path, module, after in _beside(host, tower) if _is_norm(module)]
    names = [(path, after, path.rpartition(".")[2]) for path, after in beside]
    # A norm that is declared before the blocks may run before them: then only its name can tell.
    norms = [p for p, after, name in names if not _EARLY.search(name) and (after or _LATE.search(name))]
    if len(norms) == 1:
        return norms[0]
    last = f"resid_post.{tower.n_layers - 1}"
    found = f"several norms beside the blocks ({', '.join(norms)})" if norms else "no norm after the blocks"
    raise HookPointError(f"{type(host).__name__} has {found} at {tower.path!r}: use {last!r} or a module path.")
