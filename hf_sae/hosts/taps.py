"""The only file that registers hooks: taps on inputs and outputs, and the bookkeeping of calls.

All of it goes into an `ExitStack`, whose end removes it: after success, an error in the `with`, an error or a
`KeyboardInterrupt` inside the forward.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import CallTracker, bind_call
from ..errors import HookPointError
from .hook_points import Site
from .towers import is_compiled


Visit = Callable[[Tensor], Tensor | None]
_suspended: ContextVar[bool] = ContextVar("_suspended", default=False)
_generating: weakref.WeakKeyDictionary[nn.Module, list[CallTracker]] = weakref.WeakKeyDictionary()


@contextmanager
def suspended() -> Generator[None]:
    """Lets a forward pass by all taps and trackers: a probe must not reach captures and edits that are running."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


@contextmanager
def taps(host: nn.Module) -> Generator[ExitStack]:
    """A stack for taps on a host.

    A compiled host runs eagerly meanwhile: torch ignores hooks that come after the first compiled call, and where it
    does compile them anew, it loses what they remember between two modules. Its compiled code stays for afterwards.
    """
    with ExitStack() as stack:
        if is_compiled(host):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield stack


class _Editing:
    """Marks the hooks that may change a value."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *args: Any) -> Any:
        return self.hook(*args)


def tap(stack: ExitStack, site: Site, visit: Visit, edits: bool = True) -> None:
    """Calls `visit` with the tensor at a site, `[..., width]`, and puts what it returns (unless `None`) in its place.

    Taps that edit run first, in the order of their registration, then those that only look, and hooks of others: some
    models read their hidden states back through hooks of transformers' own, which must see the edited ones.

    Raises:
        HookPointError: inside the forward, if there is no tensor, or the returned one has another shape.
    """
    shape: list[torch.Size] = []
    delta: list[Tensor] = []

    def changed(x: Tensor) -> Tensor | None:
        view = x.view(*shape[0], -1) if site.flat and shape else x
        new = visit(view)
        if new is None or new is view:
            return None
        if not isinstance(new, Tensor) or new.shape != view.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise HookPointError(
                f"the edit at {site.place.name!r} returned {got} for a tensor {tuple(view.shape)}: return one of the "
                "same shape."
            )
        new = new.to(x.device, x.dtype).reshape(x.shape)
        if site.stream:
            delta[:] = [new - x]
        return new

    if site.flat and site.block is not None:
        _hold(stack, site.block.register_forward_pre_hook(_shape_keeper(shape), with_kwargs=True))
    if site.place.side == "input":
        hook, hooks = _input_hook(site, changed), site.module._forward_pre_hooks
        register = functools.partial(site.module.register_forward_pre_hook, with_kwargs=True)
    else:
        hook, hooks = _output_hook(site, changed), site.module._forward_hooks
        register = site.module.register_forward_hook
    _hold(stack, register(_Editing(hook) if edits else hook))
    if edits:
        for key in [key for key, other in hooks.items() if not isinstance(other, _Editing)]:
            hooks[key] = hooks.pop(key)
    if site.stream and site.block is not None:
        _hold(stack, site.block.register_forward_hook(_Editing(_adder(delta)), prepend=True))


def after(stack: ExitStack, module: nn.Module, function: Callable[[], None]) -> None:
    """Calls a function when a module has run."""
    _hold(stack, module.register_forward_hook(lambda *_: function()))


def watch(stack: ExitStack, modules: dict[str, nn.Module], visit: Callable[[str, str, Tensor], None]) -> None:
    """Calls `visit(name, side, tensor)` for every module with the main tensor of its input and of its output."""

    def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (key := input_key(args, kwargs)) is not None:
            visit(name, "input", args[0] if key == 0 else kwargs[str(key)])

    def behind(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (tensor := output_tensor(output)) is not None:
            visit(name, "output", tensor)

    for name, module in modules.items():
        _hold(stack, module.register_forward_pre_hook(functools.partial(before, name), with_kwargs=True))
        _hold(stack, module.register_forward_hook(functools.partial(behind, name)))


def track(stack: ExitStack, root: nn.Module, owner: nn.Module) -> CallTracker:
    """Follows the calls of the model around a hook point, and `generate` of the root."""
    tracker = CallTracker(root)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _suspended.get():
            return
        if module is root:
            tracker.enter_root(module, args, kwargs)
        if module is owner:
            tracker.enter_owner(module, args, kwargs)

    for module in {id(m): m for m in (root, owner)}.values():
        _hold(stack, module.register_forward_pre_hook(enter, with_kwargs=True))
    _hold(stack, owner.register_forward_hook(lambda *_: tracker.leave_owner(), always_call=True))
    _hold(stack, root.register_forward_hook(lambda *_: tracker.leave_root(), always_call=True))
    if callable(generate := getattr(root, "generate", None)):
        _follow_generate(stack, root, generate, tracker)
    return tracker


def input_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    """Where a module's main input is: the first argument, `hidden_states`, or the only floating-point keyword."""
    if args and isinstance(args[0], Tensor):
        return 0
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states"
    floating = [k for k, v in kwargs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    return floating[0] if len(floating) == 1 else None


def output_tensor(output: Any) -> Tensor | None:
    """A module's main output: the tensor, or the first item of a tuple, list or `ModelOutput`."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    first = next(iter(output.values()), None) if isinstance(output, dict) else first
    return first if isinstance(first, Tensor) else None


def _input_hook(site: Site, changed: Visit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _suspended.get():
            return None
        key = input_key(args, kwargs)
        if key is None:
            raise _no_tensor(site, module)
        new = changed(args[0] if key == 0 else kwargs[str(key)])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if key == 0 else (args, {**kwargs, str(key): new})

    return hook


def _output_hook(site: Site, changed: Visit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if _suspended.get():
            return None
        tensor = output_tensor(output)
        if tensor is None:
            raise _no_tensor(site, module)
        new = changed(tensor)
        return None if new is None else _with_first(output, new)

    return hook


def _with_first(output: Any, new: Tensor) -> Any:
    if isinstance(output, Tensor):
        return new
    if isinstance(output, dict):
        copy = type(output)(**output)
        copy[next(iter(output))] = new
        return copy
    if hasattr(output, "_replace"):  # a namedtuple, whose class takes its items one by one
        return type(output)(new, *output[1:])
    return type(output)([new, *output[1:]])


def _shape_keeper(shape: list[torch.Size]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        key = input_key(args, kwargs)
        if key is not None:
            shape[:] = [(args[0] if key == 0 else kwargs[str(key)]).shape[:-1]]

    return hook


def _adder(delta: list[Tensor]) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tensor = output_tensor(output)
        if not delta or tensor is None or _suspended.get():
            return None
        return _with_first(output, tensor + delta.pop().view_as(tensor))

    return hook


def _follow_generate(stack: ExitStack, root: nn.Module, generate: Callable[..., Any], tracker: CallTracker) -> None:
    """Tells trackers of `generate`, which expands its batch before the first forward, so that no hook can see it."""
    trackers = _generating.setdefault(root, [])
    if not trackers:
        root.__dict__["generate"] = _announcing(generate, trackers)
    trackers.append(tracker)

    def leave() -> None:
        trackers.remove(tracker)
        if not trackers:
            del root.__dict__["generate"], _generating[root]

    stack.callback(leave)


def _announcing(generate: Callable[..., Any], trackers: list[CallTracker]) -> Callable[..., Any]:
    @functools.wraps(generate)
    def announced(*args: Any, **kwargs: Any) -> Any:
        arguments = bind_call(generate, args, kwargs)
        running = list(trackers)
        for tracker in running:
            tracker.begin_generate(arguments)
        try:
            return generate(*args, **kwargs)
        finally:
            for tracker in running:
                tracker.end_generate()

    return announced


def _no_tensor(site: Site, module: nn.Module) -> HookPointError:
    return HookPointError(
        f"{site.place.name!r}: the {site.place.side} of {type(module).__name__} at {site.place.path!r} has no tensor "
        "in front. Choose a module whose first input or output is one."
    )


def _hold(stack: ExitStack, handle: torch.utils.hooks.RemovableHandle) -> None:
    stack.callback(handle.remove)
