"""What a run leaves beside the weights, so that its card can say what happened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..hub.cards import EXAMPLES, LOG, RESULTS, finite_rows
from ..models.checkpoint import atomic_folder
from ..versions import versions
from .arguments import SAETrainingArguments


MOST_ROWS = 500
_KEPT = ("total_tokens", "tokens_per_batch", "adam_beta1", "adam_beta2", "bf16", "seed", "max_grad_norm")


def describe_run(args: SAETrainingArguments, d_sae: int, accelerator: Accelerator) -> dict[str, Any]:
    """What `config.provenance["training"]` records: hyperparameters, hardware and versions."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {
        **{key: getattr(args, key) for key in _KEPT},
        "learning_rate": args.peak_learning_rate(d_sae),
        "device": name,
        "processes": accelerator.num_processes,
        "versions": ", ".join(f"{library} {version}" for library, version in versions().items()),
    }


def history_of(log_history: Sequence[Mapping[str, float]], name: str | None = None) -> list[dict[str, float]]:
    """The figures of one autoencoder of a run, at most [`MOST_ROWS`] rows and the last; a number that is not finite is left out.

    Args:
        log_history (`list` of `dict`): `SAETrainer.log_history`.
        name (`str`, *optional*): of the autoencoder in a run with many.
    """
    prefix = "" if name is None else f"{name}/"
    rows = [
        {
            key.removeprefix(prefix): float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in row.items()
            if key in ("step", "tokens") or key.startswith(prefix)
        }
        for row in finite_rows(log_history)
    ]
    return [*rows[: -1 : math.ceil(len(rows) / MOST_ROWS)], *rows[-1:]] if rows else []


def write_log(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes the figures of a run beside its weights; what was measured on weights that stood there before goes."""
    with atomic_folder(folder) as temporary:
        (temporary / LOG).write_text(json.dumps(list(history), indent=1) + "\n", encoding="utf-8")
    for name in (RESULTS, EXAMPLES):
        (folder / name).unlink(missing_ok=True)
