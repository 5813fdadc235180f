"""With a live host: tokens per second and seconds to a target FVU, the language model's forward passes included.

The host is the small language model that ships in the package, the text its held-out corpus; no network. What runs:

* hf_sae: `ActivationStream` and `SAETrainer` on the same rows of token ids, tokenised before the clock begins as for the others.
* sparsify: its own `Trainer.fit`, which trains inside a forward hook on the tokens of each host batch.
* saelens: its runner takes TransformerLens models, which need a download; here its `mixing_buffer` is fed by a plain forward
  hook that stops the host behind the layer, and its `SAETrainer.step` trains.
* dictionary_learning: its buffer takes nnsight models; here its refresh is fed by the same hook, its sampling and
  `TopKTrainer.update` are its own.

python -m benchmarks.end_to_end
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .buffers import dictionary_learning, ours, saelens
from .implementations import Task
from .quality import Weights, judge
from .report import align, lengths_note, machine, markdown_table, seconds_cell, time_to
from .rows import ROWS
from .schedules import SHARES, soonest
from .worker import checkpoints


ROWS_WITH_HOST = ("hf_sae", "saelens", "sparsify", "dictionary_learning")
LAYER, LENGTH, HOST_ROWS = 1, 128, 16
COLUMNS = ("library", "tokens/s with host", "FVU", "seconds to target")


class StopError(Exception):
    """Raised by a hook behind the last layer that is needed."""


class Clock:
    """Seconds of training, with figures taken in between that do not count."""

    def __init__(self, task: Task, held_out: Tensor) -> None:
        self.task, self.held_out, self.curve = task, held_out, []
        self.due, self.steps, self.seconds = checkpoints(task.steps, 0), 0, 0.0
        self.began = time.perf_counter()

    def tick(self, weights: Callable[[], Weights]) -> None:
        """Counts a step."""
        self.steps += 1
        if self.steps in self.due:
            self.seconds += time.perf_counter() - self.began
            quality = judge(weights(), self.held_out, self.task.k)
            self.curve.append({"step": self.steps, "seconds": self.seconds, **asdict(quality)})
            self.began = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """The curve, and tokens per second over the whole run."""
        return {"curve": self.curve, "tokens_per_second": self.steps * self.task.batch / self.seconds}


def token_rows(split: str, n_tokens: int) -> Tensor:
    """`[rows, LENGTH]` ids of the corpus."""
    from hf_sae import default_host
    from hf_sae.corpus import stdlib_corpus
    from hf_sae.data import TokenDataset

    data = TokenDataset(stdlib_corpus(split), default_host()[1], context_length=LENGTH, batch_size=64, repeat=True)
    parts, count = [], 0
    for batch in data:
        parts.append(batch.input_ids)
        count += batch.input_ids.numel()
        if count >= n_tokens:
            break
    rows = torch.cat(parts)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


@torch.no_grad()
def host_outputs(model: nn.Module, rows: Tensor) -> Iterator[Tensor]:
    """Endless `[HOST_ROWS * LENGTH, d]` behind layer `LAYER`; the host runs no further."""
    kept: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).flatten(0, -2))
        raise StopError

    for ids in itertools.cycle(rows.split(HOST_ROWS)):
        handle = model.get_submodule(f"layers.{LAYER}").register_forward_hook(hook)
        try:
            with torch.no_grad():
                model(ids, use_cache=False)
        except StopError:
            pass
        finally:
            handle.remove()
        yield kept.pop()


def run_ours(task: Task, clock: Clock, rows: Tensor, capacity: int) -> None:
    """The stream with its own reading and shuffling of the rows."""
    from datasets import Dataset

    from hf_sae import ActivationStream, default_host

    host, tokenizer = default_host()
    data = Dataset.from_dict({"input_ids": rows.tolist()})
    implementation = ROWS["hf_sae-best"].build(task)
    point = f"resid_post.{LAYER}"
    width = host.config.hidden_size
    clock.began = time.perf_counter()
    stream = ActivationStream(
        host,
        tokenizer,
        data,
        [point],
        context_length=LENGTH,
        batch_size=HOST_ROWS,
        ring_bytes=capacity * (4 * width + 8) * 16 // 15,
        repeat=True,
    )
    for batch in stream.batches(task.batch, task.steps * task.batch):
        implementation.step(batch[point])
        clock.tick(implementation.weights)


def run_fed(library: str, task: Task, clock: Clock, rows: Tensor, capacity: int) -> None:
    """A peer's step behind its own buffer, around a plain forward hook."""
    from hf_sae import default_host

    model = default_host()[0].base_model
    implementation = ROWS[f"{library}-best"].build(task)
    buffer = {"saelens": saelens, "dictionary_learning": dictionary_learning, "hf_sae": ours}[library]
    clock.began = time.perf_counter()
    batches = buffer(host_outputs(model, rows), capacity, task.batch)
    for x in itertools.islice(batches, task.steps):
        implementation.step(x)
        clock.tick(implementation.weights)


def run_sparsify(task: Task, clock: Clock, rows: Tensor, capacity: int) -> None:
    """Its own trainer on whole sequences, Adam at the rate of its best row."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    from hf_sae import default_host

    per_step = task.batch // LENGTH
    rows = rows.repeat(-(-task.steps * per_step // len(rows)), 1)[: task.steps * per_step]
    data = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    options = ROWS["sparsify-best"].options
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=task.d_sae, k=task.k),
            batch_size=per_step,
            optimizer="adam",
            lr=options["lr"],
            lr_warmup_steps=task.warmup,
            hookpoints=[f"layers.{LAYER}"],
            log_to_wandb=False,
            save_every=10**9,
            save_dir=folder,
        )
        trainer = Trainer(config, data, default_host()[0].base_model)
        sae, optimizer = next(iter(trainer.saes.values())), trainer.optimizers[0]
        step = optimizer.step

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            clock.tick(lambda: Weights(sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec))
            return result

        optimizer.step = counted
        clock.began = time.perf_counter()
        trainer.fit()


def run(library: str, task: Task, held_out: Tensor, rows: Tensor, capacity: int) -> dict[str, Any]:
    """One library, or that it is not installed."""
    task = Task(task.d, task.d_sae, task.k, task.batch, task.steps, options=ROWS[f"{library}-best"].options)
    clock = Clock(task, held_out)
    try:
        if library == "hf_sae":
            run_ours(task, clock, rows, capacity)
        elif library == "sparsify":
            run_sparsify(task, clock, rows, capacity)
        else:
            run_fed(library, task, clock, rows, capacity)
    except ImportError as error:
        return {"missing": str(error)}
    return clock.result()


def cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for each library."""
    out = []
    for library, r in results.items():
        if "curve" not in r:
            out.append((library, "not installed", "", ""))
            continue
        out.append((library, f"{r['tokens_per_second']:,.0f}", f"{r['curve'][-1]['fvu']:.4f}", seconds_cell(r)))
    return out


def main(argv: list[str] | None = None) -> None:
    """Runs the libraries one after the other and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=ROWS_WITH_HOST, default=list(ROWS_WITH_HOST))
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lengths", nargs="*", type=float, default=list(SHARES), help="as in train_step")
    parser.add_argument("--buffer-tokens", type=int, default=65_536)
    parser.add_argument("--held-out", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    from hf_sae import default_host

    model = default_host()[0].base_model
    outputs = host_outputs(model, token_rows("test", args.held_out))
    held_out = torch.cat(list(itertools.islice(outputs, -(-args.held_out // (HOST_ROWS * LENGTH)))))
    rows = token_rows("train", args.steps * args.batch)
    task = Task(held_out.shape[1], args.d_sae, args.k, args.batch, args.steps)
    results = {name: run(name, task, held_out, rows, args.buffer_tokens) for name in args.libraries}
    target = time_to({f"{name}-best": result for name, result in results.items()})
    for name, result in results.items():
        soonest(
            result,
            target or 0.0,
            task.steps,
            args.lengths,
            lambda steps, name=name: run(name, replace(task, steps=steps), held_out, rows, args.buffer_tokens),
        )
    table = cells(results)
    report = {"machine": machine(args), "target_fvu": target, "rows": results}
    print(json.dumps(report, indent=1) if args.json else align([COLUMNS, *table]))
    if args.results:
        facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        sizes = f"d={task.d}, d_sae={task.d_sae}, k={task.k}, {task.batch} tokens per step, {task.steps} steps"
        lines = ["# End to end, with the host", "", f"Machine: {facts}. {sizes}."]
        lines += [f"Target: FVU {target or float('nan'):.4f}, the worst final one of a peer.", ""]
        lines += [lengths_note(args.steps, args.lengths), ""] if args.lengths else []
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text("\n".join(lines + markdown_table(COLUMNS, table, left=1)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
