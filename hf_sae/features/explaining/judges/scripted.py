"""A judge that answers by a function: for tests, for rules in code, and to replay answers that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from .protocol import Batch, Message, prompt_text


class ScriptedJudge:
    """Answers by a function of the conversation.

    Args:
        reply (`Callable`): from the messages to the answer, or `None` for no answer.
        name (`str`): what it is called.

    Attributes:
        asked (`list`): the conversations so far.
    """

    revision: str | None = None

    def __init__(self, reply: Callable[[Sequence[Message]], str | None], name: str = "scripted") -> None:
        self.reply, self.name = reply, name
        self.asked: list[Sequence[Message]] = []

    @classmethod
    def replay(cls, answers: Mapping[str, str], name: str = "scripted") -> Self:
        """From answers by the text of the conversation ([`prompt_text`]); to another one there is no answer."""
        return cls(lambda messages: answers.get(prompt_text(messages)), name)

    def generate(
        self, messages_batch: Batch, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | None]:
        """The function's answers; `max_tokens`, `temperature` and `seed` make no difference."""
        self.asked += messages_batch
        return [self.reply(messages) for messages in messages_batch]

    def usage(self) -> dict[str, Any]:
        """How often it was asked."""
        return {"requests": len(self.asked)}
