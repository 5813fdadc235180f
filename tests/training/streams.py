"""A small real run: text through a random host and the ring into two SAEs; started by the tests as a process."""

from __future__ import annotations

import logging
import sys
import time

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_sae.activations import ActivationStream
from hf_sae.models import JumpReLUConfig, JumpReLUSAE, TopKConfig, TopKSAE
from hf_sae.training import SAETrainer, SAETrainingArguments


class SlowTrainer(SAETrainer):
    """Leaves time between steps for a test to send its signal."""

    def training_step(self, batch):
        time.sleep(0.03)
        return super().training_step(batch)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<bos>", "<pad>", *[f"w{i}" for i in range(62)]]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>")


def tiny_host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def texts(n: int = 120) -> list[str]:
    generator = torch.Generator().manual_seed(7)
    return [
        " ".join(
            f"w{int(i)}"
            for i in torch.randint(62, (int(torch.randint(20, 90, (1,), generator=generator)),), generator=generator)
        )
        for _ in range(n)
    ]


def run(folder: str, resume: bool, parallelism: str = "data") -> None:
    """Trains a TopK SAE and a JumpReLU transcoder in one pass; of several processes each reads its share of the text."""
    process = Accelerator()
    points = ["resid_post.1", "resid_pre.1"]
    stream = ActivationStream(
        tiny_host(),
        tiny_tokenizer(),
        texts(),
        points,
        context_length=32,
        batch_size=4,
        ring_bytes=150_000,
        repeat=True,
        rank=process.process_index,
        world_size=process.num_processes,
    )
    torch.manual_seed(1 + resume)  # a resumed run restores its own random state
    saes = {
        "a": TopKSAE(TopKConfig(d_in=16, d_sae=64, k=4, hook_in="resid_post.1", input_norm="scalar")),
        "b": JumpReLUSAE(
            JumpReLUConfig(d_in=16, d_out=16, d_sae=48, target_l0=4, hook_in="resid_pre.1", hook_out="resid_post.1")
        ),
    }
    args = SAETrainingArguments(
        output_dir=folder,
        total_tokens=80 * 128,
        tokens_per_batch=128,
        save_steps=10,
        save_total_limit=3,
        parallelism=parallelism,
        disable_tqdm=True,
    )
    SlowTrainer(saes, args, stream).train(resume_from_checkpoint=resume or None)


if __name__ == "__main__":
    logging.basicConfig()
    torch.set_num_threads(1)
    run(sys.argv[1], "resume" in sys.argv, next((a for a in sys.argv[2:] if a != "resume"), "data"))
