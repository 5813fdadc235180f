"""What people see of a request while it runs: one stream of tokens for each variant, with a gauge of how fluent it still is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .forward import Latents


FLUENT, DRIFTING = 1.0, 3.0  # nats per token above what the host expects of its own texts
REPEATING = 0.5  # share of a text's trigrams that were in it before


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Args:
        id (`int`), text (`str`): which.
        kl (`float`, *optional*): nats between the distribution it was taken from and that of the unsteered host after the same text.
        surprise (`float`, *optional*): nats, minus its log-probability under the unsteered host.
        expected (`float`, *optional*): nats, the entropy of the unsteered host there: the surprise of its own tokens on average.
        latents (`tuple`): the strongest at this token, as `(autoencoder, latent, activation)`; known one token later.
    """

    id: int
    text: str
    kl: float | None = None
    surprise: float | None = None
    expected: float | None = None
    latents: Latents = ()


@dataclass(frozen=True)
class Coherence:
    """How the unsteered host would have taken a text.

    Args:
        kl (`float`): mean nats per token.
        perplexity (`float`): of the text under the unsteered host.
        excess (`float`): nats per token by which it is more surprising than the host's own texts are on average.
        repetition (`float`): share of its trigrams that it had before. A loop surprises no host, so it needs a number of its own.
    """

    kl: float
    perplexity: float
    excess: float
    repetition: float

    @property
    def word(self) -> str:
        """`"broken"` or `"drifting"` by `excess`, else `"repeating"` by `repetition`, else `"fluent"`."""
        if self.excess >= FLUENT:
            return "drifting" if self.excess < DRIFTING else "broken"
        return "repeating" if self.repetition >= REPEATING else "fluent"


@dataclass(frozen=True)
class Stream:
    """One continuation so far.

    Args:
        name (`str`): of the variant.
        prompt (`str`): what it continues, as the host reads it.
        text (`str`): the continuation, special tokens left out.
        tokens (`tuple` of [`GeneratedToken`]): its tokens.
        state (`str`): `"waiting"`, `"running"`, `"done"`, `"stopped"` or `"failed"`.
        note (`str`): why it ended or failed.
    """

    name: str
    prompt: str = ""
    text: str = ""
    tokens: tuple[GeneratedToken, ...] = ()
    state: str = "waiting"
    note: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ("done", "stopped", "failed")

    @property
    def coherence(self) -> Coherence | None:
        """Means over the tokens; `None` where there are none, or the request asked for no gauge."""
        read = [t for t in self.tokens if t.kl is not None and t.surprise is not None and t.expected is not None]
        if not read:
            return None
        surprise = sum(t.surprise or 0.0 for t in read) / len(read)
        expected = sum(t.expected or 0.0 for t in read) / len(read)
        perplexity = math.exp(min(surprise, 700.0))
        kl = sum(t.kl or 0.0 for t in read) / len(read)
        return Coherence(kl, perplexity, surprise - expected, repetition([t.id for t in self.tokens]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        gauge = self.coherence
        return {
            "name": self.name,
            "text": self.text,
            "state": self.state,
            "note": self.note,
            "coherence": gauge
            and {"kl": gauge.kl, "perplexity": gauge.perplexity, "excess": gauge.excess, "word": gauge.word},
            "tokens": [
                {
                    "id": token.id,
                    "text": token.text,
                    "kl": token.kl,
                    "surprise": token.surprise,
                    "latents": [{"sae": name, "latent": j, "activation": value} for name, j, value in token.latents],
                }
                for token in self.tokens
            ],
        }


def repetition(ids: Sequence[int]) -> float:
    """The share of trigrams that occurred earlier in the text; 0 for a text of fewer than four tokens."""
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if len(trigrams) > 1 else 0.0


def diverges_at(stream: Stream, baseline: Stream) -> int | None:
    """The first token at which a stream is another than the baseline; `None` while it is not."""
    for place, (one, other) in enumerate(zip(stream.tokens, baseline.tokens, strict=False)):
        if one.id != other.id:
            return place
    if stream.ended and baseline.ended and len(stream.tokens) != len(baseline.tokens):
        return min(len(stream.tokens), len(baseline.tokens))
    return None


def all_ended(streams: Sequence[Stream]) -> bool:
    """Whether nothing more comes of any of them."""
    return all(stream.ended for stream in streams)
