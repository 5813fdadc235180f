"""Train the default host: a small Llama-architecture LM on the source code of Python's standard library.

    python -m hf_sae.assets.train_default_host --work-dir runs/default_host

Seeded and resumable: batch `i` depends on the seed and `i` alone, so a run that was stopped goes on from its last
checkpoint with the same data. The learning rate is constant after warm-up and falls linearly to zero over the last
`--decay-steps`: starting again with a smaller `--steps` ends a run early, properly cooled down. Hidden matrices are
trained with Muon, embeddings and norms with AdamW.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_sae.corpus import stdlib_files


VOCABULARY, CONTEXT = 4096, 256
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every document starts with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT
    )


def tokens_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All documents as one array of token ids, each one `BOS … EOS`."""
    eos = tokenizer.eos_token_id
    ids = [i for text in tokenizer.backend_tokenizer.encode_batch(texts) for i in (*text.ids, eos)]
    return np.asarray(ids, dtype=np.int64)


def build_model() -> LlamaForCausalLM:
    """2.6 M parameters: 4 layers of width 192."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def batch_at(tokens: np.ndarray, step: int, batch_size: int, seed: int) -> torch.Tensor:
    """`[batch_size, CONTEXT + 1]` windows; every epoch has its own offset and order."""
    rows = (len(tokens) - CONTEXT - 1) // CONTEXT - 1
    first = step * batch_size
    windows = []
    for row in range(first, first + batch_size):
        epoch, index = divmod(row, rows)
        order = np.random.default_rng([seed, epoch])
        offset = int(order.integers(CONTEXT))
        start = offset + int(order.permutation(rows)[index]) * CONTEXT
        windows.append(tokens[start : start + CONTEXT + 1])
    return torch.from_numpy(np.stack(windows))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: np.ndarray, limit: int = 400_000) -> float:
    """Mean cross-entropy in nats per token over non-overlapping windows."""
    total, count = 0.0, 0
    for start in range(0, min(len(tokens), limit) - CONTEXT - 1, CONTEXT * 16):
        chunk = tokens[start : start + CONTEXT * 16]
        ids = torch.from_numpy(chunk[: len(chunk) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
        logits = model(input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        total, count = total + losses.sum().item(), count + losses.numel()
    return total / count


def ngram_baselines(train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Unigram, and bigram interpolated with the unigram at the weight that suits the held-out text best."""
    unigram = np.bincount(train, minlength=VOCABULARY) + 1.0
    unigram /= unigram.sum()
    pairs = np.zeros((VOCABULARY, VOCABULARY), dtype=np.float32)
    np.add.at(pairs, (train[:-1], train[1:]), 1.0)
    rows = np.maximum(pairs.sum(1), 1.0)
    before, after = held_out[:-1], held_out[1:]
    bigram = pairs[before, after] / rows[before]
    mixed = min(float(-np.log(w * bigram + (1 - w) * unigram[after]).mean()) for w in np.linspace(0.5, 0.99, 50))
    return {"unigram": float(-np.log(unigram[after]).mean()), "bigram": mixed}


def optimizers_of(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, fused AdamW for the rest."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def learning_rate_at(step: int, args: argparse.Namespace) -> float:
    """Warm-up, constant, linear decay to 2 % over the last `decay_steps`."""
    warm = min(1.0, (step + 1) / args.warmup_steps)
    cool = min(1.0, (args.steps - step) / args.decay_steps)
    return args.learning_rate * warm * max(cool, 0.02)


def save_checkpoint(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """One safetensors file, replaced in one move."""
    tensors = {f"model.{n}": p.detach().clone() for n, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{index}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
    save_file(tensors, folder / "checkpoint.tmp", metadata={"step": str(step)})
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.safetensors")
    (folder / "step.txt").write_text(str(step))


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restores model and optimisers; returns the step to go on from."""
    if not (folder / "checkpoint.safetensors").exists():
        return 0
    tensors = load_file(folder / "checkpoint.safetensors")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, index, name = key.split(".", 3)
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int((folder / "step.txt").read_text())


def train(args: argparse.Namespace) -> None:
    """The whole run; writes `<work-dir>/final` with the model, the tokenizer and `losses.txt`."""
    torch.manual_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    texts = {s: [t for _, t in stdlib_files(s, include_tests=s == "train")] for s in ("train", "validation", "test")}
    tokenizer = train_tokenizer(texts["train"])
    tokens = {split: tokens_of(tokenizer, documents) for split, documents in texts.items()}
    model = build_model()
    optimizers = optimizers_of(model, args.learning_rate)
    start = load_checkpoint(args.work_dir, model, optimizers)
    print(
        {s: len(t) for s, t in tokens.items()},
        f"{sum(p.numel() for p in model.parameters()):,} parameters",
        flush=True,
    )
    began = time.time()
    for step in range(start, args.steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate_at(step, args)
        ids = batch_at(tokens["train"], step, args.batch_size, args.seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            rate = (step - start + 1) * args.batch_size * CONTEXT / (time.time() - began)
            print(f"step {step} loss {loss.item():.3f} {rate:,.0f} tokens/s", flush=True)
        if (step + 1) % args.save_steps == 0 or step + 1 == args.steps:
            save_checkpoint(args.work_dir, model, optimizers, step + 1)
            print(f"step {step + 1} validation {held_out_loss(model, tokens['validation'], 100_000):.4f}", flush=True)
    export(args, model, tokenizer, tokens)


def export(
    args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tokens: dict
) -> None:
    """Rounds to bfloat16, measures what is written, writes it."""
    rounded = model.to(torch.bfloat16)
    rounded.save_pretrained(args.work_dir / "final")
    tokenizer.save_pretrained(args.work_dir / "final")
    lines = [f"steps {args.steps}", f"tokens seen {args.steps * args.batch_size * CONTEXT}"]
    for split in ("validation", "test"):
        loss = held_out_loss(rounded.float(), tokens[split])
        baselines = ngram_baselines(tokens["train"], tokens[split])
        characters = sum(len(t) for _, t in stdlib_files(split))
        lines.append(
            f"{split}: {len(tokens[split])} tokens, {characters / len(tokens[split]):.3f} characters per token, "
            f"loss {loss:.4f} nats, perplexity {math.exp(loss):.2f}, "
            f"unigram {baselines['unigram']:.4f}, bigram {baselines['bigram']:.4f}"
        )
    (args.work_dir / "final" / "losses.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--decay-steps", type=int, default=1200)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
