"""A judge on this machine: a causal language model of transformers, with or without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ....errors import ConfigError
from .protocol import Batch, Message, prompt_text


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersJudge:
    """A language model that is loaded here.

    Args:
        model (`PreTrainedModel`): a causal language model.
        tokenizer: its tokenizer; without a chat template the messages are put together as plain text.
        name (`str`, *optional*): what it is called. Default: the Hub id that it was loaded from.
        batch_size (`int`): conversations that are read at once.

    Raises:
        ConfigError: if the tokenizer has neither a padding nor an end token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        batch_size: int = 8,
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.name: str = name or str(model.name_or_path)
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        if ends == (None, None):
            raise ConfigError(
                f"the tokenizer of {self.name!r} has neither a padding nor an end token: set one of them."
            )
        self._pad = int(next(token for token in ends if token is not None))
        self._tokens = {"requests": 0, "tokens_in": 0, "tokens_out": 0}

    @classmethod
    def load(cls, name: str, **options: Any) -> Self:
        """By Hub id or folder; `options` are for `from_pretrained` of the model.

        Raises:
            OSError: if there is no such model, or it is gated, or the Hub cannot be reached.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ....access import explained

        with explained(name):
            tokenizer: Any = AutoTokenizer.from_pretrained(name)
            return cls(AutoModelForCausalLM.from_pretrained(name, **options), tokenizer, name)

    def usage(self) -> dict[str, Any]:
        """Conversations and tokens so far."""
        return dict(self._tokens)

    def generate(
        self, messages_batch: Batch, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | None]:
        """An answer to each conversation; `None` to one that is longer than the model reads."""
        prompts = [self._prompt(messages) for messages in messages_batch]
        out: list[str | None] = [None] * len(prompts)
        fitting = [place for place, ids in enumerate(prompts) if self._fits(len(ids) + max_tokens)]
        for start in range(0, len(fitting), self.batch_size):
            places = fitting[start : start + self.batch_size]
            answers = self._answers([prompts[place] for place in places], max_tokens, temperature, seed)
            for place, answer in zip(places, answers, strict=True):
                out[place] = answer
        return out

    def choice_probs(self, messages_batch: Batch, choices: Sequence[str]) -> list[list[float] | None]:
        """Probability of each choice among the choices, from the likelihood of all of its tokens.

        A choice of one token costs nothing beyond reading the conversation once.

        Raises:
            ConfigError: for fewer than two choices, and an empty one.
        """
        tokens = [self._encode(choice) for choice in choices]
        if len(tokens) < 2 or not all(tokens):
            raise ConfigError(f"choices={list(choices)}: give at least two, and none of them empty.")
        prompts = [self._prompt(messages) for messages in messages_batch]
        out: list[list[float] | None] = [None] * len(prompts)
        longest = max(map(len, tokens))
        fitting = [place for place, ids in enumerate(prompts) if self._fits(len(ids) + longest)]
        for start in range(0, len(fitting), self.batch_size):
            places = fitting[start : start + self.batch_size]
            likelihoods = self._likelihoods([prompts[place] for place in places], tokens)
            for place, row in zip(places, likelihoods.softmax(1).tolist(), strict=True):
                out[place] = row
        return out

    @torch.inference_mode()
    def _likelihoods(self, prompts: list[list[int]], choices: list[list[int]]) -> Tensor:
        """`[prompts, choices]`: log-likelihood of each choice after each prompt, the sum over its tokens."""
        out = torch.zeros(len(prompts), len(choices), dtype=torch.float64)
        heads = {tuple(choice[:-1]) for choice in choices}
        for head in sorted(heads):
            logits = self._logits([[*prompt, *head] for prompt in prompts])
            for row, prompt in enumerate(prompts):
                # what stands to the right of a token, padding included, does not change what is predicted there
                after = logits[row, len(prompt) - 1 : len(prompt) + len(head)].double().log_softmax(1).cpu()
                for column, choice in enumerate(choices):
                    if tuple(choice[:-1]) == head:
                        out[row, column] = after[torch.arange(len(choice)), torch.tensor(choice)].sum()
        return out

    def _logits(self, rows: list[list[int]]) -> Tensor:
        ids, mask = self._padded(rows, left=False)
        self._count(mask)
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    @torch.inference_mode()
    def _answers(self, prompts: list[list[int]], max_tokens: int, temperature: float, seed: int) -> list[str]:
        ids, mask = self._padded(prompts, left=True)
        self._count(mask)
        drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            written = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, pad_token_id=self._pad, **drawn
            )
        new = written[:, ids.shape[1] :]
        self._tokens["tokens_out"] += int((new != self._pad).sum())
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _padded(self, rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            place = slice(width - len(tokens), width) if left else slice(len(tokens))
            ids[row, place], mask[row, place] = torch.tensor(tokens), 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        if not self.tokenizer.chat_template:
            return list(self.tokenizer(prompt_text(messages), verbose=False)["input_ids"])
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return self._encode(str(text))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _fits(self, length: int) -> bool:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit is None or length <= limit

    def _count(self, mask: Tensor) -> None:
        self._tokens["requests"] += len(mask)
        self._tokens["tokens_in"] += int(mask.sum())
