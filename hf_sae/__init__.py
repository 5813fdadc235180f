"""Sparse autoencoders and transcoders as first-class Hugging Face models.

The names below are imported on first use: `import hf_sae` alone loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .activations import ActivationStream
    from .assets import default_host
    from .evaluation import evaluate
    from .features import top_features
    from .features.explaining import explain_features
    from .features.index import FeatureIndex
    from .hooks import HookPoint, capture, edit, read, splice
    from .hub import load_features, load_saes, push_features
    from .models import (
        AutoSAE,
        AutoTranscoder,
        JumpReLUConfig,
        JumpReLUSAE,
        StandardConfig,
        StandardSAE,
        TopKConfig,
        TopKSAE,
    )
    from .steering import steer
    from .training import SAETrainer, SAETrainingArguments, train_sae

__version__ = "0.1.0"

_MODULES = {
    "ActivationStream": "activations",
    "AutoSAE": "models",
    "AutoTranscoder": "models",
    "FeatureIndex": "features.index",
    "HookPoint": "hooks",
    "JumpReLUConfig": "models",
    "JumpReLUSAE": "models",
    "SAETrainer": "training",
    "SAETrainingArguments": "training",
    "StandardConfig": "models",
    "StandardSAE": "models",
    "TopKConfig": "models",
    "TopKSAE": "models",
    "capture": "hooks",
    "default_host": "assets",
    "edit": "hooks",
    "evaluate": "evaluation",
    "explain_features": "features.explaining",
    "load_features": "hub",
    "load_saes": "hub",
    "push_features": "hub",
    "read": "hooks",
    "splice": "hooks",
    "steer": "steering",
    "top_features": "features",
    "train_sae": "training",
}

# a type checker and `from hf_sae import *` read the literal; a test holds it against the table above
__all__ = [
    "ActivationStream",
    "AutoSAE",
    "AutoTranscoder",
    "FeatureIndex",
    "HookPoint",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "SAETrainer",
    "SAETrainingArguments",
    "StandardConfig",
    "StandardSAE",
    "TopKConfig",
    "TopKSAE",
    "capture",
    "default_host",
    "edit",
    "evaluate",
    "explain_features",
    "load_features",
    "load_saes",
    "push_features",
    "read",
    "splice",
    "steer",
    "top_features",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        import difflib

        nearest = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
