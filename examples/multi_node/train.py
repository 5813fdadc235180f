"""Train one SAE on as many machines as the launcher starts; the same file runs on one.

Every process reads its share of the text and runs its own copy of the host; the dictionary's latents are shared out among
the processes. `output_dir` has to be a folder that all machines see.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_sae import ActivationStream, SAETrainer, SAETrainingArguments, TopKConfig, TopKSAE


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="google/gemma-2-2b")
    parser.add_argument("--dataset", default="HuggingFaceFW/fineweb")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--d-sae", type=int, default=131_072)
    parser.add_argument("--total-tokens", type=int, default=1_000_000_000)
    parser.add_argument("--tokens-per-batch", type=int, default=16_384)
    parser.add_argument("--parallelism", default="latents", help="data, latents or saes")
    parser.add_argument("--output-dir", default="sae")
    parser.add_argument("--resume", action="store_true", help="from the newest checkpoint of the output folder")
    options = parser.parse_args()

    process = Accelerator()
    host = AutoModelForCausalLM.from_pretrained(options.host, dtype=torch.bfloat16).to(process.device)
    tokenizer = AutoTokenizer.from_pretrained(options.host)
    point = f"resid_post.{options.layer}"
    stream = ActivationStream(
        host,
        tokenizer,
        options.dataset,
        point,
        context_length=1024,
        ring_bytes=4 * 2**30,
        repeat=True,
        rank=process.process_index,
        world_size=process.num_processes,
    )
    torch.manual_seed(0)
    width = stream.widths[point]
    sae = TopKSAE(TopKConfig(d_in=width, d_sae=options.d_sae, k=64, hook_in=point, input_norm="scalar"))
    args = SAETrainingArguments(
        output_dir=options.output_dir,
        total_tokens=options.total_tokens,
        tokens_per_batch=options.tokens_per_batch,
        parallelism=options.parallelism,
        bf16=True,
        save_steps=1000,
        save_total_limit=2,
    )
    SAETrainer(sae, args, stream).train(resume_from_checkpoint=options.resume or None)


if __name__ == "__main__":
    main()
