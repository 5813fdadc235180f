"""Conversations about Python's standard library, and a language model that has seen some: what feeding is compared on."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any

import torch

from hf_sae import default_host
from hf_sae.corpus import Split, stdlib_files
from hf_sae.data import TokenDataset


USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|>{% else %}<|assistant|>{% endif %}\n{{ m.content }}<|end|>\n{% endfor %}"
)
SHORTEST, LONGEST = 20, 1200  # characters of an answer

Chat = dict[str, list[dict[str, str]]]


def chats(split: Split) -> list[Chat]:
    """Two questions about each documented function of a split's files: what it does, and how it is written."""
    return [chat for _, source in stdlib_files(split) for chat in _of_source(source)]


def _of_source(source: str) -> Iterator[Chat]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # examples of bad syntax
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        said = ast.get_docstring(node)
        code = "\n".join(lines[node.body[1].lineno - 1 : node.end_lineno])
        if said is None or not (SHORTEST <= len(said) <= LONGEST and SHORTEST <= len(code) <= LONGEST):
            continue
        turns = (f"What does `{node.name}` do?", said, f"How is `{node.name}` written?", code)
        roles = ("user", "assistant") * 2
        yield {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]}


def chat_host(steps: int, records: list[Chat], seed: int = 0, length: int = 256) -> tuple[Any, Any, list[float]]:
    """The default host with turn tokens, whose rows are random at first, trained briefly on conversations, each in a row of its own.

    Returns:
        The host, its tokenizer, and the mean loss of the first and of the last tenth of the steps, in nats per token.
    """
    host, tokenizer = default_host()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, END]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    host.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    options = {"context_length": length, "batch_size": 8, "truncation": True, "repeat": True, "seed": seed}
    batches = iter(TokenDataset(records, tokenizer, **options))
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        batch = next(batches)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = host.train()(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    tenth = max(len(losses) // 10, 1)
    ends = [sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]) if part]
    return host.eval().requires_grad_(False), tokenizer, ends


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the turn tokens, which the chat template writes."""
    return tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
