"""What identifies a host well enough to warn when an autoencoder meets another one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import HookPointError
from .towers import towers_of, unwrap


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


def _vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    by_id = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(by_id, ensure_ascii=False).encode()).hexdigest()
