"""Layers that do what their class says and nothing more, whose weights may be used row by row."""

from typing import Any

from torch import nn


def is_plain(layer: Any) -> bool:
    """Whether a layer is an `nn.Linear` and nothing else, of whose rows some may be used."""
    # LoRA, quantised and offloaded layers, and layers with hooks, must be called as modules
    return type(layer) is nn.Linear and not has_hooks(layer)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return bool(hooks) or "forward" in vars(module)
