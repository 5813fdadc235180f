"""One SAE on the same conversations, fed in two ways: packed into full rows, or each in a row of its own (FAST).

python -m benchmarks.feeding

Li et al. 2025, "Training superior sparse autoencoders for instruct models" (arXiv 2506.07691). Both SAEs train on as many tokens of the
same host; both are judged on held-out conversations, each in a row of its own, as a user runs them: squared error per dimension,
averaged over the tokens of a conversation and then over conversations, for all tokens and for the turn tokens alone. The paper's
headline figures are log2 of such errors, so log2 stands beside.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_sae import ActivationStream, SAETrainer, SAETrainingArguments
from hf_sae.activations.reading import HostReader
from hf_sae.data import TokenDataset
from hf_sae.models import SAE, AutoSAE, registered

from .chats import Chat, chat_host, chats, special_ids
from .report import align, machine, markdown_table


FEEDS = {"packed": {"packed": True}, "FAST": {"packed": False, "truncation": True}}
COLUMNS = ("feeding", "seed", "MSE", "log2", "MSE, turn tokens", "log2", "L0", "seconds")
Errors = tuple[float, float]  # over all tokens, over turn tokens


def train(feed: str, seed: int, host: Any, tokenizer: Any, records: list[Chat], args: argparse.Namespace) -> SAE:
    """An SAE on `args.tokens` tokens of the conversations under a feed."""
    config_class, _ = registered()[f"hf_sae_{args.arch}"]
    own = {name: getattr(args, name) for name in ("k",) if hasattr(config_class, name)}
    width = host.config.hidden_size
    config = config_class(d_in=width, d_sae=args.expansion * width, hook_in=args.hook, input_norm="scalar", **own)
    torch.manual_seed(seed)
    sae = AutoSAE.from_config(config)
    shape = {"context_length": args.context_length, "batch_size": 16, "ring_bytes": args.ring_mib * 2**20}
    stream = ActivationStream(host, tokenizer, records, sae.batch_keys, seed=seed, repeat=True, **shape, **FEEDS[feed])
    with tempfile.TemporaryDirectory() as folder:
        plan = {"total_tokens": args.tokens, "tokens_per_batch": args.batch, "seed": seed, "disable_tqdm": True}
        SAETrainer(sae, SAETrainingArguments(output_dir=folder, **plan), stream).train()
    return sae.eval()


@torch.no_grad()
def judge(sae: SAE, host: Any, tokenizer: Any, records: list[Chat], length: int) -> tuple[Errors, float]:
    """Errors on conversations, each in a row of its own, and the latents per token."""
    reader, special = HostReader(host, [sae.config.hook_in], None), torch.tensor(special_ids(tokenizer))
    parts, active, count = [], 0, 0
    for batch in TokenDataset(records, tokenizer, context_length=length, batch_size=16, truncation=True):
        kept = batch.keep.flatten().nonzero().squeeze(1)
        rows = reader(batch, kept)
        x = rows[str(sae.config.hook_in)]
        output = sae(x)
        active, count = active + int(output.code.counts().sum()), count + len(x)
        squares = (x - output.reconstruction).square().mean(-1)
        parts.append((squares, rows.document_ids, torch.isin(rows.token_ids, special)))
    squares, documents, turns = (torch.cat(column) for column in zip(*parts, strict=True))
    return (per_dialogue(squares, documents), per_dialogue(squares[turns], documents[turns])), active / count


def per_dialogue(values: Tensor, documents: Tensor) -> float:
    """The mean over documents of the mean over each one's tokens, `[tokens]` both."""
    _, index = documents.unique(return_inverse=True)
    counts = torch.bincount(index)
    return float((torch.bincount(index, weights=values.double()) / counts).mean())


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Every feed with every seed, on one host."""
    records, held_out = chats("train"), [*chats("validation"), *chats("test")][: args.held_out]
    host, tokenizer, losses = chat_host(args.host_steps, records, length=args.context_length)
    rows = []
    for seed in range(args.seeds):
        for feed in FEEDS:
            began = time.monotonic()
            sae = train(feed, seed, host, tokenizer, records, args)
            seconds = time.monotonic() - began
            (mse, turns), l0 = judge(sae, host, tokenizer, held_out, args.context_length)
            rows.append({"feeding": feed, "seed": seed, "mse": mse, "turns": turns, "l0": l0, "seconds": seconds})
    facts = {"chats": len(records), "held_out": len(held_out), "host_loss": losses}
    return {"rows": rows, **facts, "means": {feed: _means(rows, feed) for feed in FEEDS}}


def _means(rows: Iterable[dict[str, Any]], feed: str) -> dict[str, float]:
    own = [row for row in rows if row["feeding"] == feed]
    return {name: sum(row[name] for row in own) / len(own) for name in ("mse", "turns", "l0", "seconds")}


def cells(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for each run, and one for each feed's mean."""
    means = [{"feeding": feed, "seed": "mean", **values} for feed, values in report["means"].items()]
    return [
        (
            row["feeding"],
            str(row["seed"]),
            f"{row['mse']:.4f}",
            f"{math.log2(row['mse']):.3f}",
            f"{row['turns']:.4f}",
            f"{math.log2(row['turns']):.3f}",
            f"{row['l0']:.1f}",
            f"{row['seconds']:.0f}",
        )
        for row in [*report["rows"], *means]
    ]


def verdict(report: dict[str, Any]) -> str:
    """In how many of the seeds FAST has the smaller error."""
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for row in report["rows"]:
        by_seed.setdefault(row["seed"], {})[row["feeding"]] = row
    wins = {name: sum(r["FAST"][name] < r["packed"][name] for r in by_seed.values()) for name in ("mse", "turns")}
    ratio = {name: report["means"]["FAST"][name] / report["means"]["packed"][name] for name in ("mse", "turns")}
    return (
        f"FAST over packed: {ratio['mse']:.3f} of the error over all tokens (smaller in {wins['mse']} of {len(by_seed)} seeds), "
        f"{ratio['turns']:.3f} over turn tokens (smaller in {wins['turns']} of {len(by_seed)})."
    )


def page(report: dict[str, Any], args: argparse.Namespace) -> str:
    """The report as Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in machine(args).items())
    losses = " to ".join(f"{loss:.2f}" for loss in report["host_loss"]) or "untrained"
    lines = [
        "# Feeding conversations: packed or each in a row of its own",
        "",
        f"Machine: {facts}. `{args.arch}` at {args.hook}, {args.expansion} latents per dimension, {args.tokens:,} tokens in batches",
        f"of {args.batch}, rows of {args.context_length}. {report['chats']:,} conversations built from the docstrings and functions of",
        f"Python's standard library; judged on {report['held_out']} of held-out files.",
        "",
        "The host is the small model that ships with the package. It knows no conversations, so it got three turn tokens with random",
        f"embeddings and {args.host_steps} steps on the training conversations, each in a row of its own (loss {losses} nats per token).",
        "What holds here need not hold for an instruction-tuned model. MSE is per dimension, averaged per token, then per conversation;",
        "BOS is left out. The published headline figures are log2 of MSE.",
        "",
        *markdown_table(COLUMNS, cells(report)),
        "",
        verdict(report),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="topk")
    parser.add_argument("--hook", default="resid_post.2")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--ring-mib", type=int, default=32)
    parser.add_argument("--host-steps", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    report = compare(args)
    print(json.dumps(report, indent=1) if args.json else f"{align([COLUMNS, *cells(report)])}\n{verdict(report)}")
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(page(report, args), encoding="utf-8")


if __name__ == "__main__":
    main()
