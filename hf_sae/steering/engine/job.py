"""`Job`: the engine's end of a request: its rows, what is chosen next, and what is told to the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...features.tokens import token_texts
from .forward import Latents
from .prompts import tokenize
from .request import SteeringRequest
from .rows import Row
from .run import SteeringRun
from .sampler import Sampler
from .streams import GeneratedToken, Stream


@dataclass(eq=False)
class Branch:
    """One variant: the row that is edited, and the row that reads the same tokens as the host by itself would."""

    index: int
    row: Row
    shadow: Row | None
    last_words: bool = False  # all tokens are chosen; the last one is still to be read, for its trace

    @property
    def rows(self) -> list[Row]:
        """The rows that it needs in the batch."""
        return [self.row] if self.shadow is None else [self.row, self.shadow]


class Job:
    """A request in the engine's thread.

    Args:
        request ([`SteeringRequest`]): what was asked.
        run ([`SteeringRun`]): the caller's end.
        tokenizer: of the host.
        ends (`Set[int]`): ids that end a text.

    Raises:
        DataError: for an empty prompt, or messages that the host has no template for.
    """

    def __init__(self, request: SteeringRequest, tokenizer: Any, ends: Set[int]) -> None:
        self.request, self.tokenizer, self.ends = request, tokenizer, ends
        self.sampler = Sampler(request.sampling)
        self.branches = self._branches()
        self.run = SteeringRun(
            [
                Stream(variant.name, _shown(tokenizer, branch.row.prompt.ids))
                for variant, branch in zip(request.variants, self.branches, strict=True)
            ]
        )

    def _branches(self) -> list[Branch]:
        plain = tokenize(self.tokenizer, self.request.prompt)
        branches = []
        for index, variant in enumerate(self.request.variants):
            told = tokenize(self.tokenizer, self.request.prompt, variant.instruction) if variant.instruction else plain
            row = Row(told, trace=self.request.trace)
            if variant.plan:
                row.plan = variant.plan
            differs = bool(variant.plan) or told is not plain
            branches.append(Branch(index, row, Row(plain) if differs and self.request.gauge else None))
        return branches

    @property
    def rows(self) -> list[Row]:
        """The rows of all branches that go on."""
        return [row for branch in self.branches for row in branch.rows]

    @property
    def longest(self) -> int:
        """Tokens of its longest prompt."""
        return max(len(row.prompt.ids) for row in self.rows)

    def drop(self, branch: Branch, error: BaseException) -> None:
        """Ends a branch that failed."""
        self.branches.remove(branch)
        self.run.fail(error, branch.index)

    def take(self, heard: Mapping[Row, tuple[Tensor, Latents]]) -> None:
        """Chooses the next token of every branch from what the host said after its rows."""
        for branch in list(self.branches):
            self._trace(branch, heard[branch.row][1])
        going = [branch for branch in self.branches if not branch.last_words]
        self.branches = list(going)
        if not going:
            return
        logits = torch.stack([heard[branch.row][0] for branch in going])
        alone = torch.stack([heard[branch.shadow or branch.row][0] for branch in going])
        gauges = _gauges(logits, alone) if self.request.gauge else None
        for place, (branch, index) in enumerate(zip(going, self.sampler.choose(logits), strict=True)):
            if index in self.ends:
                self._finish(branch, "the text ended")
                continue
            read = (None, None, None) if gauges is None else gauges.of(place, index)
            self._append(branch, index, *read)

    def _append(
        self, branch: Branch, index: int, kl: float | None, surprise: float | None, expected: float | None
    ) -> None:
        for row in branch.rows:
            row.generated.append(index)
        token = GeneratedToken(index, token_texts(self.tokenizer, [index])[0], kl, surprise, expected)
        text = self.tokenizer.decode(branch.row.generated, skip_special_tokens=True)

        def grown(stream: Stream) -> Stream:
            return replace(stream, text=text, tokens=(*stream.tokens, token), state="running")

        self.run.write(grown, branch.index)
        if len(branch.row.generated) >= self.request.max_new_tokens:
            if self.request.trace:
                branch.last_words = True
            else:
                self._finish(branch, "as long as asked")

    def _trace(self, branch: Branch, latents: Latents) -> None:
        if branch.row.generated and self.request.trace:

            def traced(stream: Stream) -> Stream:
                last = replace(stream.tokens[-1], latents=latents)
                return replace(stream, tokens=(*stream.tokens[:-1], last))

            self.run.write(traced, branch.index)
        if branch.last_words:
            self._finish(branch, "as long as asked")

    def _finish(self, branch: Branch, note: str) -> None:
        if branch in self.branches:
            self.branches.remove(branch)
        self.run.write(lambda stream: replace(stream, state="done", note=note), branch.index)


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    """A prompt as text: what the template of a chat adds is part of it, BOS is not."""
    start = int(len(ids) > 1 and ids[0] == tokenizer.bos_token_id)
    return tokenizer.decode(list(ids[start:]))


@dataclass(frozen=True)
class _Gauges:
    """Nats for each row: KL `[n]`, entropy of the unsteered host `[n]`, and its log-probabilities `[n, vocabulary]`."""

    kl: list[float]
    entropy: list[float]
    log_q: Tensor

    def of(self, place: int, index: int) -> tuple[float, float, float]:
        return self.kl[place], -float(self.log_q[place, index]), self.entropy[place]


def _gauges(logits: Tensor, alone: Tensor) -> _Gauges:
    log_p, log_q = logits.float().log_softmax(-1), alone.float().log_softmax(-1)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1).clamp_min(0)  # some hosts rule tokens out with -inf
    entropy = torch.special.entr(log_q.exp()).sum(-1)
    return _Gauges(kl.tolist(), entropy.tolist(), log_q)
