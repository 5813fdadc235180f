"""Writes activations of the language model that ships in the package: real text, split by file into train and test."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from hf_sae import ActivationStream, default_host
from hf_sae.corpus import stdlib_corpus


def collect(
    hook: str,
    split: str,
    n_tokens: int,
    context_length: int,
    seed: int = 0,
    needs: Sequence[str] = (),
    also: Sequence[str] = (),
) -> dict[str, Tensor]:
    """`[n_tokens, d]` in float16: shuffled activations of the standard library's source code, under `""`.

    What architectures need of each token besides (such as the gradient) is under `"/<name>"`, in bfloat16, since it may be tiny.
    Further places are under `"@<place>"`: row i is the same token everywhere.
    """
    host, tokenizer = default_host()
    keys = {"": hook} | {f"/{name}": f"{hook}/{name}" for name in needs}
    keys |= {f"@{place}": place for place in also if place != hook}
    stream = ActivationStream(
        host,
        tokenizer,
        stdlib_corpus(split),
        list(keys.values()),
        context_length=context_length,
        seed=seed,
        repeat=True,
    )
    parts: dict[str, list[Tensor]] = {key: [] for key in keys}
    count = 0
    with tqdm(total=n_tokens, desc=f"{hook}, {split}", unit=" tokens", unit_scale=True, delay=2, leave=False) as bar:
        for batch in stream.batches(4096):
            for key, point in keys.items():
                parts[key].append(batch[point].bfloat16() if key.startswith("/") else batch[point].half())
            count += len(batch[hook])
            bar.update(len(batch[hook]))
            if count >= n_tokens:
                return {key: torch.cat(rows)[:n_tokens].contiguous() for key, rows in parts.items()}
    raise SystemExit(f"the corpus ended after {count} of {n_tokens} tokens: ask for fewer.")


def main(argv: list[str] | None = None) -> None:
    """Writes a safetensors file with `train` and `held_out`, and with what is asked for besides (`train/gradient`, `train@mlp_in.0`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--hook", default="resid_post.1")
    parser.add_argument("--train-tokens", type=int, default=300 * 2048)
    parser.add_argument("--held-out-tokens", type=int, default=16384)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--needs", nargs="*", default=[], help="what some architectures need besides, such as gradient"
    )
    parser.add_argument(
        "--also",
        nargs="*",
        default=[],
        metavar="PLACE",
        help="further places of the same tokens, for architectures that read or write several",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    sizes = {"train": ("train", args.train_tokens), "held_out": ("test", args.held_out_tokens)}
    tensors = {}
    for name, (split, n) in sizes.items():
        found = collect(args.hook, split, n, args.context_length, needs=args.needs, also=args.also)
        tensors |= {name + key: rows for key, rows in found.items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.output, metadata={"hook": args.hook, "host": "default_host"})
    print(f"{args.output}: {', '.join(f'{name} {list(t.shape)}' for name, t in tensors.items())}")
    print(f"Next: python -m benchmarks.train_step --preset small --cache {args.output}")
    print(f"      python -m benchmarks.frontier {args.output} trains every architecture on it.")


if __name__ == "__main__":
    main()
