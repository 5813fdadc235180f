"""What a judge is: something that answers messages, and, where it can, says how likely some answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Batch = Sequence[Sequence[Message]]


class Judge(Protocol):
    """Answers messages.

    `name` and `revision` say which model it is, as a dataset records it.
    """

    name: str
    revision: str | None

    def generate(
        self, messages_batch: Batch, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | None]:
        """An answer to each conversation; `None` where there is none.

        Args:
            messages_batch (`list` of `list` of messages): the conversations.
            max_tokens (`int`): length of an answer, at most.
            temperature (`float`): 0 is the likeliest answer.
            seed (`int`): of what is drawn.
        """

    def usage(self) -> dict[str, Any]:
        """What was used so far: requests, tokens, and so on."""


@runtime_checkable
class ChoosingJudge(Protocol):
    """A judge that can also compare given answers, without writing one."""

    def choice_probs(self, messages_batch: Batch, choices: Sequence[str]) -> list[list[float] | None]:
        """Probability of each choice as the beginning of the answer, among the choices; `None` where it cannot be said."""


def prompt_text(messages: Sequence[Message]) -> str:
    """A conversation as running text, for models without a chat template."""
    return "\n\n".join(message["content"] for message in messages) + "\n"
