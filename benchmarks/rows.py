"""The rows of the comparison: an implementation, its settings, and the group it is compared within.

* `same`: one and the same mathematics: float32, Adam, a learning rate of the same number that rises over 2 % of the steps and
  falls to 0; what is left is each library's own (initialisation, clipping, projection).
* `best`: the best settings that were found and a user can have: bfloat16 products where the processor has instructions for them
  (without, they are many times slower than float32), torch's fused Adam, tuned rates.
* `default`: what a library does when nothing is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hf_sae.models.precision import bfloat16_pays

from .implementations import Implementation, Ours, PlainTorch, Task
from .peers import DictionaryLearning, SAELens, Sparsify


LIBRARIES = ("hf_sae", "saelens", "sparsify", "dictionary_learning", "torch")
PEERS = ("saelens", "sparsify", "dictionary_learning")
GROUPS = ("same", "best", "default")


@dataclass
class Row:
    """A row of the table: an implementation, its settings, the distribution whose version is printed."""

    build: Callable[[Task], Implementation]
    note: str
    options: dict[str, Any] = field(default_factory=dict)
    distribution: str = "torch"
    library: str = "torch"
    group: str = "same"
    tunable: bool = False

    def version(self) -> str:
        """`name version`, or "not installed"."""
        try:
            return f"{self.distribution} {version(self.distribution)}"
        except PackageNotFoundError:
            return "not installed"


FAST = bfloat16_pays("cuda" if torch.cuda.is_available() else "cpu")
AUTOCAST = "autocast" if FAST else "fp32"
SAME: dict[str, Any] = {"lr": 2e-3}
OURS_SAME: dict[str, Any] = {
    "learning_rate": 2e-3,
    "warmup_share": 0.02,
    "decay_share": 1.0,
    "adam_epsilon": 1e-8,
    "max_grad_norm": None,
    "aux_coefficient": 0,
}
# `docs/training.md` says them of short runs; of the peers, SAELens has a setting for the betas
RATE, BETAS = 8e-3, (0.8, 0.95)
OURS_BEST: dict[str, Any] = {
    "bf16": FAST,
    "learning_rate": RATE,
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "decay_share": 0.5,
}
OURS = f"betas {BETAS}, decay 50 %"


def _row(build: Callable[[Task], Implementation], library: str, group: str, note: str, **options: Any) -> Row:
    distribution = {
        "hf_sae": "hf_sae",
        "saelens": "sae-lens",
        "sparsify": "eai-sparsify",
        "dictionary_learning": "dictionary-learning",
    }.get(library, "torch")
    return Row(build, note, options, distribution, library, group, tunable=group == "best")


ROWS: dict[str, Row] = {
    "hf_sae-same": _row(Ours, "hf_sae", "same", "fp32, Adam 2e-3", **OURS_SAME),
    "saelens-same": _row(
        SAELens, "saelens", "same", "fp32, its Adam 2e-3", **SAME, warmup_steps="same", decay_share=1.0
    ),
    "sparsify-same": _row(
        Sparsify,
        "sparsify",
        "same",
        "fp32, its Adam 2e-3 (torch's loop)",
        **SAME,
        optimizer="adam",
        warmup_steps="same",
    ),
    "sparsify-same-fused": _row(
        Sparsify, "sparsify", "same", "the same, Adam fused", **SAME, optimizer="adam", warmup_steps="same", fused=True
    ),
    "dictionary_learning-same": _row(
        DictionaryLearning,
        "dictionary_learning",
        "same",
        "fp32, its Adam 2e-3",
        **SAME,
        warmup_steps="same",
        decay_share=1.0,
    ),
    "torch-same": _row(PlainTorch, "torch", "same", "fp32, dense autograd, Adam 2e-3", **SAME, linear=True),
    "hf_sae-best": _row(Ours, "hf_sae", "best", f"{'bf16 encoder product' if FAST else 'fp32'}, {OURS}", **OURS_BEST),
    "hf_sae-best-fp32": _row(Ours, "hf_sae", "best", f"fp32, {OURS}", **{**OURS_BEST, "bf16": False}),
    "saelens-best": _row(
        SAELens,
        "saelens",
        "best",
        f"{AUTOCAST}, Adam fused, betas {BETAS}, decay 30 %",
        lr=RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        decay_share=0.3,
        fused=True,
        autocast=FAST,
    ),
    "sparsify-best": _row(
        Sparsify,
        "sparsify",
        "best",
        f"{AUTOCAST}, Adam fused, short warm-up",
        optimizer="adam",
        lr=RATE,
        warmup_steps="same",
        fused=True,
        bf16=FAST,
    ),
    "sparsify-best-fp32": _row(
        Sparsify,
        "sparsify",
        "best",
        "fp32, Adam fused, short warm-up",
        optimizer="adam",
        lr=RATE,
        warmup_steps="same",
        fused=True,
    ),
    "dictionary_learning-best": _row(
        DictionaryLearning,
        "dictionary_learning",
        "best",
        f"{AUTOCAST}, Adam fused, decay 30 %",
        lr=RATE,
        warmup_steps="same",
        decay_share=0.3,
        fused=True,
        bf16=FAST,
    ),
    "torch-best": _row(
        PlainTorch, "torch", "best", f"{AUTOCAST}, dense, Adam fused", lr=RATE, linear=True, fused=True, bf16=FAST
    ),
    "hf_sae-default": _row(Ours, "hf_sae", "default", "defaults of train_sae", input_norm="scalar"),
    "saelens-default": _row(SAELens, "saelens", "default", "Adam 3e-4, constant"),
    "sparsify-default": _row(Sparsify, "sparsify", "default", "schedule-free SignSGD, no AuxK"),
    "dictionary_learning-default": _row(
        DictionaryLearning, "dictionary_learning", "default", "Adam by its rule, half the run is warm-up"
    ),
}


if not FAST:  # they are the best rows then
    ROWS = {name: row for name, row in ROWS.items() if not name.endswith("-fp32")}


def chosen(words: Iterable[str]) -> list[str]:
    """Names of rows for row names, libraries and groups, in the order of the table.

    Raises:
        KeyError: for a word that is none of them, with those that are.
    """
    wanted = set()
    for word in words:
        found = [name for name, row in ROWS.items() if word in (name, row.library, row.group)]
        if not found:
            raise KeyError(f"{word!r} is no row. Rows: {', '.join(ROWS)}. Or {', '.join((*LIBRARIES, *GROUPS))}.")
        wanted.update(found)
    return [name for name in ROWS if name in wanted]


def changed(row: Row, rate: float | None, betas: tuple[float, float] | None) -> dict[str, Any]:
    """The row's options with another learning rate and other betas of Adam, by hand where the library has no setting for them."""
    out = dict(row.options)
    if rate is not None:
        out["learning_rate" if row.library == "hf_sae" else "lr"] = rate
    if betas is not None and row.library in ("hf_sae", "saelens"):
        out |= {"adam_beta1": betas[0], "adam_beta2": betas[1]}
    elif betas is not None:
        out["betas"] = betas
    return out
