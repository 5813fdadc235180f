"""AuxK: a fifth of the encoder rows begin so short that they never fire; which library brings them back?

python -m benchmarks.revival
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .activations import Planted
from .implementations import Implementation, Ours, Task
from .peers import DictionaryLearning, Sparsify
from .quality import judge
from .report import align, machine, markdown_table


COLUMNS = ("library", "planted dead", "fire in the end", "revived", "revived without AuxK", "FVU")
SHRINK = 1e-3  # of the length of a dead latent's encoder row: positive at times, and never among the largest


def _ours(task: Task, aux: float, dead_after: int) -> Implementation:
    options = {"aux_coefficient": aux, "dead_after_tokens": dead_after, "learning_rate": 2e-3, "max_grad_norm": None}
    return Ours(replace(task, options=options))


def _sparsify(task: Task, aux: float, dead_after: int) -> Implementation:
    options = {"auxk_alpha": aux, "dead_after": dead_after, "optimizer": "adam", "lr": 2e-3, "warmup_steps": "same"}
    return Sparsify(replace(task, options=options))


def _dictionary_learning(task: Task, aux: float, dead_after: int) -> Implementation:
    options = {"auxk_alpha": aux, "dead_after": dead_after, "lr": 2e-3, "warmup_steps": "same"}
    return DictionaryLearning(replace(task, options=options))


BUILDERS = {"hf_sae": _ours, "sparsify": _sparsify, "dictionary_learning": _dictionary_learning}


@torch.no_grad()
def firing(implementation: Implementation, x: Tensor, k: int) -> Tensor:
    """`[d_sae]`: whether a latent fires on any of `x` `[tokens, d]`."""
    w = implementation.weights()
    fired = torch.zeros(w.encoder.shape[0], dtype=torch.bool, device=x.device)
    for rows in x.split(2048):
        values, indices = torch.relu((rows - w.b_dec) @ w.encoder.T + w.b_enc).topk(k, dim=-1)
        fired[indices[values > 0]] = True
    return fired


def revive(
    library: str, task: Task, aux: float, train: Tensor, held_out: Tensor, share: float = 0.2
) -> dict[str, Any]:
    """Trains with planted dead rows; what share of them fires on held-out activations in the end."""
    dead_after = 8 * task.batch
    implementation = BUILDERS[library](task, aux, dead_after)
    implementation.module.to(train.device)
    if isinstance(implementation, Sparsify):
        implementation.since_fired = implementation.since_fired.to(train.device)
    batches = itertools.islice(itertools.cycle(train.split(task.batch)), task.steps)
    implementation.step(next(batches))  # initialisation from data comes first
    n_dead = int(share * task.d_sae)
    encoder = implementation.module.encoder  # of all three an nn.Linear
    with torch.no_grad():
        encoder.weight[:n_dead] *= SHRINK
        encoder.bias[:n_dead] = 0
    planted = int((~firing(implementation, held_out, task.k)[:n_dead]).sum())
    for x in batches:
        implementation.step(x)
    alive = int(firing(implementation, held_out, task.k)[:n_dead].sum())
    quality = judge(implementation.weights(), held_out, task.k)
    return {"planted": planted, "alive": alive, "revived": alive / n_dead, "fvu": quality.fvu}


def compare(
    libraries: list[str], task: Task, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, dict[str, Any]]:
    """Every library with its AuxK and without."""
    source, results = Planted(d=task.d, n_features=2 * task.d_sae, seed=seed), {}
    train, held_out = (
        (source.sample(n, i) * task.d**0.5).to(device) for i, n in enumerate((32 * task.batch, 4096), 1)
    )
    for library in libraries:
        try:
            found = revive(library, task, 1 / 32, train, held_out)
            found["without"] = revive(library, task, 0.0, train, held_out)["revived"]
            results[library] = found
        except ImportError as error:
            results[library] = {"missing": str(error)}
    return results


def cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for each library."""
    out = []
    for library, r in results.items():
        if "missing" in r:
            out.append((library, "not installed", "", "", "", ""))
            continue
        shares = (f"{r['revived']:.1%}", f"{r['without']:.1%}", f"{r['fvu']:.4f}")
        out.append((library, str(r["planted"]), str(r["alive"]), *shares))
    return out


def main(argv: list[str] | None = None) -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=list(BUILDERS), default=list(BUILDERS))
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = compare(args.libraries, Task(args.d, args.d_sae, args.k, args.batch, args.steps))
    rows = cells(results)
    print(json.dumps(results, indent=1) if args.json else align([COLUMNS, *rows]))
    if args.results:
        facts = ", ".join(f"{key} {value}" for key, value in machine(args).items())
        sizes = f"d={args.d}, d_sae={args.d_sae}, k={args.k}, {args.batch} tokens per step, {args.steps} steps"
        lines = ["# Revival of planted dead latents", "", f"Machine: {facts}. {sizes}, planted activations.", ""]
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text("\n".join(lines + markdown_table(COLUMNS, rows, left=1)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
