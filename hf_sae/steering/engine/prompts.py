"""Prompts as token ids, with the tokens that the chat template marks as the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from .request import Prompt


@dataclass(frozen=True)
class Tokens:
    """Ids of a prompt, `[n]`, and which of them the assistant said, `[n]`."""

    ids: tuple[int, ...]
    assistant: tuple[bool, ...]


def tokenize(tokenizer: Any, prompt: Prompt, instruction: str = "") -> Tokens:
    """A prompt as the host is to read it; the template of a chat ends where the assistant's reply begins.

    Args:
        tokenizer: of the host.
        prompt (`str` or `list`): text or messages.
        instruction (`str`): a line before the text, or a system message.

    Raises:
        DataError: for an empty prompt, or messages that the host has no template for.
    """
    if isinstance(prompt, str):
        return _plain(tokenizer, f"{instruction}\n{prompt}" if instruction else prompt)
    return _chat(tokenizer, prompt, instruction)


def _plain(tokenizer: Any, text: str) -> Tokens:
    ids = tokenizer(text, verbose=False)["input_ids"]
    # a text that opens with the template of a chat brings its own BOS
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not text or not ids:
        raise DataError("the prompt is empty. Give at least one word.")
    return Tokens(tuple(ids), (False,) * len(ids))


def _chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], instruction: str) -> Tokens:
    several = [_message(each) for each in messages]
    if not several:
        raise DataError("the chat has no messages. Give at least {'role': 'user', 'content': …}.")
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError("this host has no chat template. Give the prompt as a text instead of messages.")
    if instruction and several[0]["role"] == "system":
        several[0] = {"role": "system", "content": f"{several[0]['content']}\n{instruction}"}
    elif instruction:
        several.insert(0, {"role": "system", "content": instruction})
    from jinja2 import TemplateError

    try:
        # templates without generation marks give a mask of zeros, after a warning
        found = tokenizer.apply_chat_template(
            several, add_generation_prompt=True, return_dict=True, return_assistant_tokens_mask=_marks(tokenizer)
        )
    except TemplateError as error:
        raise DataError(f"the chat template of the host refuses these messages: {error}.") from error
    ids = found["input_ids"]
    mask = found.get("assistant_masks") or [0] * len(ids)
    return Tokens(tuple(ids), tuple(bool(each) for each in mask))


def _marks(tokenizer: Any) -> bool:
    template = tokenizer.chat_template
    several = template.values() if isinstance(template, Mapping) else [template]
    return any("generation" in each and "endgeneration" in each for each in several)


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise DataError(
            f"{message!r} is no message. Give {{'role': 'user' or 'assistant' or 'system', 'content': a text}}."
        )
    return {"role": message["role"], "content": message["content"]}
