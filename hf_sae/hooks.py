"""Reading and editing activations of a host, at places by meaning or by module path.

Every hook lives inside a `with` and is removed when it ends, however it ends. Hooks see the tensor that flows:
gradients pass through them, and nothing is moved except an edit's result, which goes to the activation's device and
dtype.

Limits: a host under `torch.compile` runs eagerly inside the `with` (torch ignores hooks that come after the first
compiled call); give the compiled host, not the module inside it, so that this can be seen. A module that runs several
times in one forward is edited each time and captured the last time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .calls import Call
from .errors import HookPointError
from .hosts import resolve
from .hosts.fingerprints import warn_of_another_host
from .hosts.hook_points import HookPoint, Site
from .hosts.taps import Visit, after, tap, taps, track
from .hosts.towers import Tower, host_device, towers_of, unwrap


__all__ = ["Activations", "Call", "HookPoint", "capture", "edit", "read", "splice"]

_MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
Edit = Callable[[Tensor, Call], Tensor]


class Autoencoder(Protocol):
    """What [`splice`] needs of a model."""

    config: Any

    def __call__(self, hidden_states: Tensor) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Activations(dict[str, Tensor]):
    """Captured tensors by hook point, as written; a [`HookPoint`] is a key too."""

    def __missing__(self, key: object) -> Tensor:
        if isinstance(key, HookPoint) and key.text in self:
            return self[key.text]
        have = ", ".join(map(repr, self)) or "nothing yet: run the host inside the with"
        raise HookPointError(f"{str(key)!r} was not captured. Captured: {have}.")


class _Done(Exception):  # noqa: N818
    """Ends a forward whose points have all been read; never leaves this file."""


@contextmanager
def capture(host: nn.Module, *points: str | HookPoint) -> Generator[Activations]:
    """Keeps what passes through some places of a host, after all edits there: the last call's tensors.

    Args:
        host (`nn.Module`): any model, in any wrapper.
        points (`str` or [`HookPoint`]): the places.

    Yields:
        [`Activations`]: `{point as written: tensor [..., width]}`, filled when the host runs.

    Raises:
        HookPointError: if a place does not exist.
    """
    kept = Activations()
    sites = {str(point): resolve(host, point) for point in points}
    with taps(host) as stack:
        for name, site in sites.items():
            tap(stack, site, _keeper(kept, name), edits=False)
        yield kept


@torch.no_grad()
def read(host: nn.Module, points: str | HookPoint | Sequence[str | HookPoint], **inputs: Any) -> Activations:
    """Runs the host without gradients, only as far as the last of the places, and returns what passed through them.

    Inputs are moved to the host's device; the host is never moved. A host with offloaded weights runs to the end of
    the block, so that accelerate can put the weights away.

    Args:
        host (`nn.Module`): any model, in any wrapper.
        points (`str`, [`HookPoint`] or several): the places.
        inputs: what the host's forward takes; inputs of one modality alone run that tower alone.

    Returns:
        [`Activations`]: `{point as written: tensor [..., width]}`.

    Raises:
        HookPointError: if a place does not exist, or the forward does not pass through it.
    """
    several = [points] if isinstance(points, (str, HookPoint)) else list(points)
    kept = Activations()
    sites = {str(point): resolve(host, point) for point in several}
    offloaded = any(p.device.type == "meta" for p in host.parameters())
    device = host_device(host)
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def stop() -> None:
        if len(kept) == len(sites):
            raise _Done

    with taps(host) as stack:
        for name, site in sites.items():
            keep = _keeper(kept, name)
            tap(stack, site, keep if offloaded else _then(keep, stop), edits=False)
            if offloaded and site.block is not None:
                after(stack, site.block, stop)
        with suppress(_Done):
            _runner(host, list(sites.values()), inputs)(**inputs)
    if missing := [name for name in sites if name not in kept]:
        raise HookPointError(
            f"the forward did not pass through {', '.join(map(repr, missing))} with the inputs "
            f"{', '.join(inputs)}. Give the inputs of that tower too."
        )
    return Activations({name: kept[name] for name in sites})


@contextmanager
def edit(host: nn.Module, point: str | HookPoint, fn: Edit) -> Generator[None]:
    """Replaces what passes through a place by `fn(x, call)` in every forward inside the `with`.

    Args:
        host (`nn.Module`): any model, in any wrapper.
        point (`str` or [`HookPoint`]): the place.
        fn (`Callable`): gets the tensor `[..., width]` and the [`Call`], and returns a tensor of the same shape;
            returning `x` itself changes nothing, to the bit.

    Raises:
        HookPointError: if the place does not exist, or (inside the forward) if `fn` returns another shape.
    """
    site = resolve(host, point)
    with taps(host) as stack:
        tracker = track(stack, unwrap(host), site.owner)
        tap(stack, site, lambda x: fn(x, tracker.call))
        yield


@contextmanager
def splice(host: nn.Module, sae: Autoencoder, keep_error: bool = False) -> Generator[None]:
    """Replaces the place that an autoencoder writes by its reconstruction of the place that it reads.

    Activations go to the autoencoder's device and dtype and the reconstruction comes back to theirs.

    Args:
        host (`nn.Module`): any model, in any wrapper.
        sae ([`SAE`]): reads `config.hook_in`; writes `config.hook_out`, or the same place where that is `None`.
        keep_error (`bool`): add the error, detached: the values stay what they were, to the bit, and gradients flow
            through the reconstruction.

    Raises:
        HookPointError: if a place does not exist, has another width, or is written before it is read.
    """
    warn_of_another_host(sae, host, stacklevel=4)  # 4: past contextlib
    hook_in, hook_out = one_place(sae, "hook_in", "splice"), sae.config.hook_out
    hook_out = hook_in if hook_out is None else one_place(sae, "hook_out", "splice")
    source, target = resolve(host, hook_in), resolve(host, hook_out)
    _check_width(sae, "d_in", source.place.width, hook_in)
    _check_width(sae, "d_out", target.place.width, hook_out)
    held: list[Tensor] = []

    def hold(x: Tensor) -> None:
        _check_width(sae, "d_in", x.shape[-1], hook_in)
        held[:] = [x]

    def replace(x: Tensor) -> Tensor:
        if not held:
            raise HookPointError(f"{hook_out!r} runs before {hook_in!r}, so there is nothing to reconstruct it from.")
        weight = next(sae.parameters())
        out = sae(held.pop().to(weight.device, weight.dtype)).reconstruction
        _check_width(sae, "d_out", x.shape[-1], hook_out)
        out = out.to(x.device, x.dtype)
        return x.detach() + (out - out.detach()) if keep_error else out

    def both(x: Tensor) -> Tensor:
        hold(x)
        return replace(x)

    with taps(host) as stack:
        if hook_in == hook_out:
            tap(stack, source, both)
        else:
            tap(stack, source, hold)
            tap(stack, target, replace)
        yield


def _keeper(kept: Activations, name: str) -> Visit:
    def keep(x: Tensor) -> None:
        # A copy where there is no graph: some blocks add to the residual stream in place.
        kept[name] = x if x.requires_grad else x.clone()

    return keep


def _then(first: Visit, second: Callable[[], None]) -> Visit:
    def both(x: Tensor) -> None:
        first(x)
        second()

    return both


def _runner(host: nn.Module, sites: list[Site], inputs: dict[str, Any]) -> nn.Module:
    """The host without DDP and compiler; the tower alone where the inputs are of its modality alone."""
    while isinstance(inner := host._modules.get("_orig_mod", host._modules.get("module")), nn.Module) and (
        "_orig_mod" in host._modules or isinstance(host, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    ):
        host = inner
    owners = {id(site.owner): site.owner for site in sites}
    model = unwrap(host)
    owner = next(iter(owners.values()))
    if len(owners) > 1 or owner is model or len({t.modality for t in _towers(model)}) < 2:
        return host
    mains = {name for name in _MAIN_INPUTS if name in inputs}
    return owner if mains == {getattr(owner, "main_input_name", "")} else host


def _towers(model: nn.Module) -> list[Tower]:
    try:
        return towers_of(model)
    except HookPointError:
        return []


def one_place(sae: Autoencoder, key: str, what: str) -> str:
    """The place in `config.hook_in` or `config.hook_out` (`key`), for `what` cannot do with several.

    Raises:
        HookPointError: if there is none, or there are several.
    """
    place = getattr(sae.config, key)
    if isinstance(place, str):
        return place
    advice = "Set it to one hook point, such as 'resid_post.6'."
    if place is not None:
        advice = (
            "Of several places `evaluate` replaces all by what was read in a clean run, and `read(host, sae.config.places_in, …)` "
            "gives what `encode_sparse` takes side by side (torch.cat, dim=-1)."
        )
    raise HookPointError(f"{what} needs one place in config.{key}, which is {place!r}. {advice}")


def _check_width(sae: Autoencoder, key: str, width: int | None, place: str) -> None:
    expected = getattr(sae.config, key)
    if width is not None and width != expected:
        raise HookPointError(
            f"{place!r} is {width} wide and the autoencoder's {key} is {expected}. Use the host and the place that it "
            f"was trained on (config.base_model is {getattr(sae.config, 'base_model', None)!r})."
        )
