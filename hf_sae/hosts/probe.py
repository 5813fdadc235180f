"""One tiny forward of a host, made up from its config, to see what enters and leaves some of its modules.

Dropout is off and gradients are off; training flags, random numbers and the tensors of running captures are left as
they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import HookPointError
from .taps import suspended, watch
from .towers import Tower, host_device, is_compiled


TOKENS = 5
# Another length than the decoder's, so that what reads the encoder shows.
SOURCE_TOKENS = 7
SAMPLES = 4000  # a quarter of a second at 16 kHz: several frames of any waveform encoder


class _Done(Exception):  # noqa: N818
    """Ends the probe once everything was seen; never leaves this file."""


def run_probe(
    host: nn.Module,
    tower: Tower | None,
    modules: dict[str, nn.Module],
    visit: Callable[[str, str, Tensor], bool | None],
) -> None:
    """Runs the smallest model around a tower and calls `visit(name, side, tensor)` until it returns `True`.

    Args:
        host (`nn.Module`): an unwrapped host.
        tower ([`Tower`], *optional*): which part is run; `None` runs the whole host.
        modules (`dict`): the modules to watch, by any name.
        visit (`Callable`): sees the main tensor of each input and output.

    Raises:
        HookPointError: if no input for the host can be made from its config.
    """
    finished = False

    def see(name: str, side: str, tensor: Tensor) -> None:
        nonlocal finished
        if visit(name, side, tensor):
            finished = True
            raise _Done

    failures = []
    for model in _candidates(host, tower):
        try:
            with _quiet(host), ExitStack() as stack:
                watch(stack, modules, see)
                with suppress(_Done):
                    model(**_inputs_for(model))
            if finished:
                return
            failures.append(f"{type(model).__name__} does not run it")
        except Exception as error:  # any host may fail in any way on inputs that were made up
            failures.append(f"{type(model).__name__}: {type(error).__name__}: {error}")
    raise HookPointError(
        f"the probe forward of {type(host).__name__} failed ({'; '.join(failures)[:600]}). Use resid_pre, resid_post "
        "or a module path, which need no probe."
    )


def _candidates(host: nn.Module, tower: Tower | None) -> Iterator[nn.Module]:
    """The models around a tower, the innermost first; all of an encoder-decoder for its decoder."""
    is_pair = getattr(getattr(host, "config", None), "is_encoder_decoder", False)
    if tower is not None and tower.model_path and not (is_pair and tower.role == "decoder"):
        segments = tower.model_path.split(".")
        for depth in range(len(segments), 0, -1):
            model = host.get_submodule(".".join(segments[:depth]))
            if isinstance(model, PreTrainedModel):
                yield model
    yield host


@contextmanager
def _quiet(host: nn.Module) -> Generator[None]:
    device = host_device(host)
    flags = [(module, module.training) for module in host.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(suspended())
        if is_compiled(host):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training


def _inputs_for(model: nn.Module) -> dict[str, Any]:
    config, device = getattr(model, "config", None), host_device(model)
    if not isinstance(config, PreTrainedConfig):
        raise HookPointError(f"{type(model).__name__} has no transformers config to make inputs from")
    accepted = inspect.signature(model.forward).parameters
    name = getattr(model, "main_input_name", "input_ids")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs: dict[str, Any] = {name: _main_input(config, name).to(device)}
    if inputs[name].is_floating_point():
        inputs[name] = inputs[name].to(dtype)
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _token_ids(config, TOKENS).to(device)
    if name == "input_ids" and "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones_like(inputs[name])
    # CLIP-like pairs run both towers in one forward.
    for other in ("pixel_values",):
        needed = other in accepted and other != name and getattr(config, "vision_config", None) is not None
        if needed and getattr(config, "projection_dim", None) is not None:
            inputs[other] = _main_input(config.vision_config, other).to(device, dtype)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _main_input(config: PreTrainedConfig, name: str) -> Tensor:
    if name == "input_ids":
        return _token_ids(config, SOURCE_TOKENS if config.is_encoder_decoder else TOKENS)
    if name == "pixel_values":
        size = _number(config, "image_size", None)
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return _wave(1, _number(config, "num_channels", 3), height, width)
    if name == "input_features" and getattr(config, "max_source_positions", None) is not None:
        return _wave(1, _number(config, "num_mel_bins", None), 2 * _number(config, "max_source_positions", None))
    if name == "input_features":
        return _wave(1, 2 * SOURCE_TOKENS, _number(config, "feature_projection_input_dim", None))
    if name == "input_values" and getattr(config, "num_mel_bins", None) is not None:
        return _wave(1, _number(config, "max_length", None), _number(config, "num_mel_bins", None))
    if name == "input_values":
        return _wave(1, SAMPLES)
    raise HookPointError(f"no rule to make {name!r} from {type(config).__name__}")


def _number(config: PreTrainedConfig, key: str, default: Any) -> Any:
    value = getattr(config, key, default)
    if value is None:
        raise HookPointError(f"{type(config).__name__} does not say {key!r}")
    return value


def _token_ids(config: PreTrainedConfig, count: int) -> Tensor:
    """Different ordinary tokens, `[1, count]`: none that a config names as special or as a placeholder of images."""
    text = config.get_text_config()
    special: set[int] = set()
    for source in (config, text):
        for key, value in vars(source).items():
            if key.endswith(("_token_id", "_token_index", "_token_ids")):
                special.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    vocabulary = [i for i in range(min(text.vocab_size, 50_000)) if i not in special]
    step = max(1, len(vocabulary) // (count + 1))
    return torch.tensor([[vocabulary[(step * (i + 1)) % len(vocabulary)] for i in range(count)]])


def _wave(*shape: int) -> Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel()) * 0.37).reshape(shape)
