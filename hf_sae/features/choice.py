"""Which features to show: a rule that looks at counts, never at a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .examples import LatentExamples


FEWEST_EXAMPLES, FEWEST_DOCUMENTS = 5, 3
POOL = 8  # features considered for each one shown


@dataclass(frozen=True)
class Consistent:
    """A feature and what its strongest contexts agree on.

    Args:
        examples ([`LatentExamples`]): the feature.
        token (`str`): the commonest token at the peak, or right before it; lower case, without spaces around it.
        before (`bool`): whether it is the token before the peak.
        share (`float`): of the contexts that have it there.
    """

    examples: LatentExamples
    token: str
    before: bool
    share: float


def consistent_features(
    contexts: Mapping[int, LatentExamples], least_density: float, most_density: float
) -> list[Consistent]:
    """The features that fire neither too rarely nor too often, those whose contexts agree most first.

    The contexts have to come from several documents: what one file repeats is no evidence.

    Args:
        contexts (`Mapping`): of all latents that fired, such as [`TopContexts`].
        least_density (`float`), most_density (`float`): share of tokens on which the feature fires.
    """
    found: list[Consistent] = []
    for examples in contexts.values():
        several = len({example.document for example in examples.examples}) >= FEWEST_DOCUMENTS
        if several and len(examples.examples) >= FEWEST_EXAMPLES and least_density <= examples.density <= most_density:
            at, before = (_commonest(examples, shift) for shift in (0, 1))
            token, share = max(at, before, key=lambda pair: pair[1])
            found.append(Consistent(examples, token, before[1] > at[1], share))
    return sorted((c for c in found if c.token), key=lambda c: (-c.share, c.examples.latent))


def _commonest(found: LatentExamples, shift: int) -> tuple[str, float]:
    stronger = found.ends()[0]  # what a latent says at its other end, if it has one, is another matter
    tokens = [e.tokens[e.peak - shift].strip().lower() if e.peak >= shift else "" for e in stronger]
    token = max(sorted(set(tokens)), key=tokens.count)
    return token, tokens.count(token) / len(tokens)


def choose_features(ranked: Sequence[Consistent], n: int) -> list[LatentExamples]:
    """`n` of the most consistent features, no two with the same token, from frequent to rare.

    Args:
        ranked (`list` of [`Consistent`]): most consistent first.
        n (`int`): how many; they are spread evenly over the `8 * n` best by how often they fire.
    """
    best: dict[tuple[str, bool], LatentExamples] = {}
    for candidate in ranked:
        best.setdefault((candidate.token, candidate.before), candidate.examples)
    pool = sorted(list(best.values())[: POOL * n], key=lambda found: (-found.density, found.latent))
    if len(pool) <= n:
        return pool
    return [pool[round(i * (len(pool) - 1) / max(n - 1, 1))] for i in range(n)]
