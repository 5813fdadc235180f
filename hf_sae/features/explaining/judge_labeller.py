"""`JudgeLabeller`: a language model words the label and is asked, context by context, where it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .judges.protocol import ChoosingJudge, Judge, prompt_text
from .labels import Label
from .latent import Latent
from .prompts import (
    NO,
    VERSION,
    YES,
    detect_messages,
    label_messages,
    likelier_yes,
    read_label,
    read_yes_or_no,
)
from .windows import Windows


_LABEL_TOKENS, _ANSWER_TOKENS = 60, 4
_CHARACTERS_PER_TOKEN = (
    3.0  # of text with many marks; English has about 4, so that a cost is rather over- than underestimated
)


@dataclass(frozen=True)
class JudgeDetector:
    """Asks a judge whether a latent fires in a context, by its label."""

    judge: Judge
    text: str

    def fires(self, contexts: Windows) -> list[bool | None]:
        """`[n]`; `None` for an answer that is neither yes nor no."""
        asked = detect_messages(self.text, contexts)
        if isinstance(self.judge, ChoosingJudge):
            return [likelier_yes(one) for one in self.judge.choice_probs(asked, (YES, NO))]
        return [read_yes_or_no(answer) for answer in self.judge.generate(asked, _ANSWER_TOKENS)]


class JudgeLabeller:
    """Labels by a language model.

    Args:
        judge ([`Judge`]): the model.
        batch_size (`int`): latents whose labels are asked for at once.
        seed (`int`): of the judge.
    """

    method = "judge"
    prompt: str | None = VERSION

    def __init__(self, judge: Judge, batch_size: int = 16, seed: int = 0) -> None:
        self.judge, self.batch_size, self.seed = judge, batch_size, seed
        self.model: str | None = judge.name
        self.revision: str | None = judge.revision

    def label(self, latents: Sequence[Latent]) -> list[Label | None]:
        """A label for each; `None` where the judge gave none that can be read."""
        asked = [label_messages(latent.firing) for latent in latents if latent.seen.fires.any()]
        answers = iter(self.judge.generate(asked, _LABEL_TOKENS, seed=self.seed))
        texts = [read_label(next(answers)) if latent.seen.fires.any() else None for latent in latents]
        return [None if text is None else Label(text, JudgeDetector(self.judge, text)) for text in texts]

    def estimate(self, latents: Sequence[Latent]) -> Estimate:
        """What labelling and scoring these would take, before anything is asked."""
        placeholder = "x" * 60
        requests = characters = written = 0
        for latent in latents:
            questions: list[Any] = [label_messages(latent.firing)] if latent.seen.fires.any() else []
            written += _LABEL_TOKENS * len(questions)
            held = latent.held_out
            contexts = [*detect_messages(placeholder, held.firing), *detect_messages(placeholder, held.silent)]
            written += _ANSWER_TOKENS * len(contexts)
            requests += len(questions) + len(contexts)
            characters += sum(len(prompt_text(messages)) for messages in [*questions, *contexts])
        return Estimate(requests, round(characters / _CHARACTERS_PER_TOKEN), written)


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Args:
        requests (`int`): questions.
        tokens_in (`int`), tokens_out (`int`): about so many tokens are read, and at most so many written.
    """

    requests: int
    tokens_in: int
    tokens_out: int

    def times(self, factor: float) -> Estimate:
        """For more latents of the same kind."""
        return Estimate(*(round(value * factor) for value in (self.requests, self.tokens_in, self.tokens_out)))

    def cost(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6
