"""Writes activations of the language model that ships in the package: real text, split by file into train and test."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from hf_sae import ActivationStream, default_host
from hf_sae.corpus import stdlib_corpus


def collect(hook: str, split: str, n_tokens: int, context_length: int, seed: int = 0) -> Tensor:
    """`[n_tokens, d]` in float16: shuffled activations of the standard library's source code."""
    host, tokenizer = default_host()
    stream = ActivationStream(
        host, tokenizer, stdlib_corpus(split), [hook], context_length=context_length, seed=seed, repeat=True
    )
    parts, count = [], 0
    with tqdm(total=n_tokens, desc=f"{hook}, {split}", unit=" tokens", unit_scale=True, delay=2, leave=False) as bar:
        for batch in stream.batches(4096):
            parts.append(batch[hook].half())
            count += len(parts[-1])
            bar.update(len(parts[-1]))
            if count >= n_tokens:
                return torch.cat(parts)[:n_tokens].contiguous()
    raise SystemExit(f"the corpus ended after {count} of {n_tokens} tokens: ask for fewer.")


def main(argv: list[str] | None = None) -> None:
    """Writes a safetensors file with `train` and `held_out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--hook", default="resid_post.1")
    parser.add_argument("--train-tokens", type=int, default=300 * 2048)
    parser.add_argument("--held-out-tokens", type=int, default=16384)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    sizes = {"train": ("train", args.train_tokens), "held_out": ("test", args.held_out_tokens)}
    tensors = {name: collect(args.hook, split, n, args.context_length) for name, (split, n) in sizes.items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.output, metadata={"hook": args.hook, "host": "default_host"})
    print(f"{args.output}: {', '.join(f'{name} {list(t.shape)}' for name, t in tensors.items())}")
    print(f"Next: python -m benchmarks.train_step --preset small --cache {args.output}")


if __name__ == "__main__":
    main()
