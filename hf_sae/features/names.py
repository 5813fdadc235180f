"""A label that needs no language model: what the peaks of a latent have in common, with its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..terminal import visible
from .examples import Example, LatentExamples


_CONSISTENT = 0.5  # a rule that holds for fewer of the examples is no name


def describe_latent(examples: LatentExamples) -> str:
    """The most common peak token of a latent, or what stands before its peaks, with the share of examples.

    It states counts of the examples it was given and nothing about other text. Of a latent that fires with both signs, each end
    is described, the stronger one first.

    Args:
        examples ([`LatentExamples`]): the strongest contexts of one latent.
    """
    if not examples.examples:
        return f"never fired in {examples.tokens:,} tokens"
    return "; other sign: ".join(_describe_end(found) for found in examples.ends())


def _describe_end(found: list[Example]) -> str:
    at, here = _most_common(found, lambda example: example.tokens[example.peak])
    before, there = _most_common(found, lambda example: example.tokens[example.peak - 1] if example.peak else None)
    of = f"of {len(found)} peak{'s' * (len(found) > 1)}"
    if here >= max(_CONSISTENT, there):
        return f"'{visible(at)}' {here:.0%} {of}"
    if there >= _CONSISTENT:
        return f"after '{visible(before)}' {there:.0%} {of}"
    return f"mixed: '{visible(at)}' {here:.0%} {of}"


def _most_common(examples: list[Example], token_of: Callable[[Example], str | None]) -> tuple[str, float]:
    """The token and its share of all examples; upper case and spaces around it make no difference."""
    tokens = [token for token in map(token_of, examples) if token is not None]
    if not tokens:
        return "", 0.0
    counts = Counter(token.strip().lower() or token for token in tokens)
    key, count = counts.most_common(1)[0]
    shown = Counter(token for token in tokens if (token.strip().lower() or token) == key).most_common(1)[0][0]
    return shown.strip() or shown, count / len(examples)
