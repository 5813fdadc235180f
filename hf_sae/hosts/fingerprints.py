"""What identifies a host well enough to warn when an autoencoder meets another one."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import weakref
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import HookPointError
from .towers import towers_of, unwrap


_warned: weakref.WeakKeyDictionary[Any, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()


_LABELS = {
    "model_type": "model type",
    "hidden_size": "hidden size",
    "num_layers": "number of layers",
    "vocab_size": "vocabulary size",
    "vocabulary_sha256": "tokenizer vocabulary",
}


def fingerprint(host: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """What a checkpoint records of its host, ready for JSON.

    The text part of a multimodal model gives the same as the plain text model, and adapters and quantisation change
    nothing.

    Args:
        host (`nn.Module`): the model, wrapped or not.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): adds `vocabulary_sha256`, over all tokens and their ids.

    Raises:
        HookPointError: if the host has no transformers config.
    """
    model = unwrap(host)
    config = getattr(model, "config", None)
    if config is None:
        raise HookPointError(f"{type(model).__name__} has no config: give a transformers model.")
    text = config.get_text_config()
    towers = towers_of(model)
    layers = next((t.n_layers for t in towers if t.modality == "text"), towers[0].n_layers)
    found: dict[str, Any] = {
        "model_type": text.model_type,
        "hidden_size": getattr(text, "hidden_size", None),
        "num_layers": layers,
        "vocab_size": getattr(text, "vocab_size", None),
    }
    if tokenizer is not None:
        found["vocabulary_sha256"] = _vocabulary_hash(tokenizer)
    return found


def compare_fingerprints(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """One sentence for each key that both fingerprints have and that differs; empty where they agree."""
    differences = []
    for key, value in expected.items():
        if key in actual and value is not None and actual[key] is not None and actual[key] != value:
            label = _LABELS.get(key, key)
            was, now = (str(v)[:12] if key.endswith("sha256") else repr(v) for v in (value, actual[key]))
            differences.append(f"{label}: trained on {was}, this host has {now}")
    return differences


def warn_of_another_host(sae: Any, host: nn.Module, tokenizer: Any = None, stacklevel: int = 3) -> None:
    """Warns, once for each pair, where a host is not the one that an autoencoder was trained on.

    What the autoencoder recorded of its host is compared; an imported one often knows a name only.

    Args:
        sae ([`SAE`]): its config says what it was trained on.
        host (`nn.Module`): wrapped or not; one without a config is not known, and nothing is said.
        tokenizer (*optional*): to compare vocabularies too.
        stacklevel (`int`): whose line the warning names.
    """
    model = unwrap(host)
    if (
        not isinstance(sae, nn.Module)
        or getattr(model, "config", None) is None
        or model in _warned.setdefault(sae, weakref.WeakSet())
    ):
        return
    config: Any = sae.config
    recorded = (getattr(config, "provenance", None) or {}).get("host")
    try:
        found = compare_fingerprints(recorded, fingerprint(model, tokenizer)) if isinstance(recorded, dict) else []
    except HookPointError:
        return  # a host without blocks has no fingerprint
    if not isinstance(recorded, dict):
        found = other_name(getattr(config, "base_model", None), getattr(model.config, "_name_or_path", None))
    if found:
        _warned[sae].add(model)
        warnings.warn(
            f"this autoencoder was trained on another host than this one: {'; '.join(found)}. What is seen describes "
            "this pair, not the autoencoder.",
            stacklevel=stacklevel,
        )


def other_name(trained: Any, given: Any) -> list[str]:
    """A sentence where both are ids on the Hub and end differently; owners change, and aliases leave them out."""
    names = [str(name) for name in (trained, given) if name and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name))]
    if len(names) < 2 or any(Path(name).exists() for name in names):
        return []
    ends = {name.rpartition("/")[2].lower() for name in names}
    return [f"trained on {names[0]}, this host is {names[1]}"] if len(ends) > 1 else []


def _vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    by_id = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(by_id, ensure_ascii=False).encode()).hexdigest()
