"""Which tokens of a conversation belong to whom, from the chat template alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError


_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = dict[str, Any]


def conversation(value: Sequence[Mapping[str, Any]], number: int) -> list[Message]:
    """A conversation as a list of `{"role", "content"}` messages; ShareGPT's `{"from", "value"}` is translated.

    Args:
        value: the messages as the dataset has them.
        number (`int`): of the record, for the error.

    Raises:
        DataError: if a message has neither form or an unknown speaker.
    """
    messages = []
    for turn in value:
        # datasets gives every message the keys of all others; an absent one is None and no template expects that
        turn = {key: entry for key, entry in turn.items() if entry is not None}
        if "role" in turn:
            messages.append({"content": "", **turn})
        elif turn.get("from") in _SHAREGPT:
            messages.append({"role": _SHAREGPT[turn["from"]], "content": turn.get("value", "")})
        else:
            raise DataError(
                f"record {number} has a message with the keys {sorted(turn)} and the speaker {turn.get('from')!r}. Messages "
                f'are {{"role": …, "content": …}} or {{"from": …, "value": …}} with one of {sorted(_SHAREGPT)}.'
            )
    return messages


def tokenise_conversation(
    tokenizer: Any, messages: list[Message], number: int, role: str | None = None
) -> tuple[list[int], list[bool] | None]:
    """Ids of a conversation under the tokenizer's chat template, and which of them `role` wrote.

    What a role wrote is the content of its messages and what closes them (`<|im_end|>`), without what opens them. For
    the assistant the template's own `{% generation %}` marks are used where it has them. Otherwise a message starts
    where the text changes with its content, and ends where the conversation cut after it ends.

    Args:
        tokenizer: with a chat template.
        messages: see [`conversation`].
        number (`int`): of the record, for the error.
        role (`str`, *optional*): `"assistant"` or `"user"`; without it there is no mask.

    Raises:
        DataError: if there is no template, it refuses the conversation, or it rewrites earlier messages so that the
            mask cannot be found.
    """
    template = _template(tokenizer)
    if role == "assistant" and _GENERATION.search(template) and tokenizer.is_fast:
        marked = _apply(
            tokenizer, messages, number, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        # transformers loses marks that start with white space where the tokenizer drops it: then the text decides
        if any(marked["assistant_masks"]):
            return list(marked["input_ids"]), [bool(bit) for bit in marked["assistant_masks"]]
    text = _apply(tokenizer, messages, number, tokenize=False)
    ids = _encode(tokenizer, text)
    if role is None:
        return ids, None
    mask = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] == role:
            start, end = (
                _boundary(tokenizer, ids, text[:cut]) for cut in _span(tokenizer, messages, index, text, number)
            )
            mask[start:end] = [True] * (end - start)
    return ids, mask


def _template(tokenizer: Any) -> str:
    try:
        return tokenizer.get_chat_template()
    except (AttributeError, ValueError) as error:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise DataError(
            f"the tokenizer {name!r} has no chat template, and the dataset is made of conversations. Use the "
            "tokenizer of a chat model, set tokenizer.chat_template, or choose a text column with column=."
        ) from error


def _apply(tokenizer: Any, messages: list[Message], number: int, **options: Any) -> Any:
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=False, **options)
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise DataError(
            f"the chat template refuses the conversation in record {number} (roles {roles}): {error}. "
            "Filter such records out of the dataset, or set another tokenizer.chat_template."
        ) from error


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _boundary(tokenizer: Any, ids: list[int], text: str) -> int:
    """Number of tokens of `ids` that lie wholly within the leading `text`."""
    return _common(ids, _encode(tokenizer, text))


def _common(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Length of the common beginning, by bisection: comparing slices is much faster than comparing elements."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _span(tokenizer: Any, messages: list[Message], index: int, text: str, number: int) -> tuple[int, int]:
    """Characters of `text` between which message `index` stands."""
    cut = _apply(tokenizer, messages[: index + 1], number, tokenize=False)
    other = {**messages[index], "content": _probe(messages[index]["content"])}
    start = _common(cut, _apply(tokenizer, [*messages[:index], other], number, tokenize=False))
    specials = [token for token in tokenizer.all_special_tokens if token]
    while not text.startswith(cut):  # some templates close only the last message
        closing = next((token for token in specials if cut.endswith(token)), None)
        shorter = cut.removesuffix(closing) if closing else cut.rstrip()
        if shorter == cut or len(shorter) < start:
            raise DataError(
                f"the chat template writes message {index} of record {number} differently when more messages follow, so "
                "its tokens cannot be told apart. Use a template with {% generation %} marks or positions='all'."
            )
        cut = shorter
    return start, len(cut)


def _probe(content: Any) -> Any:
    """Content that differs from `content` in the first character that a template prints."""
    if isinstance(content, str):
        return "1" if content.lstrip()[:1] == "0" else "0"
    parts = [part.get("text", "") for part in content if part.get("type") == "text"]
    return [{"type": "text", "text": _probe("".join(parts))}]
