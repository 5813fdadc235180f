"""Which feature to steer with, by measured effects, and how features look in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError
from ..features import LatentExamples, describe_latent
from ..steering import OfMax, add, steer
from ..terminal import Strip, visible


if TYPE_CHECKING:
    from ..models import SAE

ROWS = 32  # steered at once
_SPACES = re.compile(" {3,}")
_WORD = re.compile(r"\s?[A-Za-z]{3,}")


@dataclass(frozen=True)
class Effect:
    """What turning a feature up does to the next token.

    Args:
        examples ([`LatentExamples`]): the feature.
        strength (`float`): what was added, in maxima of the feature.
        token (`str`): the word whose probability rises most.
        before (`float`), after (`float`): its mean probability over the positions of a text.
        kl (`float`): mean KL divergence of the next-token distributions from the unsteered ones, in nats.
    """

    examples: LatentExamples
    strength: float
    token: str
    before: float
    after: float
    kl: float


@torch.no_grad()
def largest_effect(
    sae: SAE,
    host: Any,
    tokenizer: Any,
    candidates: Sequence[LatentExamples],
    text: str,
    strengths: Sequence[float],
    most_kl: float,
) -> Effect | None:
    """The feature that raises the probability of a word most while the host stays close to itself.

    Args:
        sae ([`SAE`]): with feature statistics.
        host (`PreTrainedModel`): a causal language model.
        tokenizer: of the host.
        candidates (`list` of [`LatentExamples`]): features to try; each is one row of a batch.
        text (`str`): what is read meanwhile; effects are means over its positions.
        strengths (`list` of `float`): what to add, in maxima of each feature.
        most_kl (`float`): effects with a larger mean KL divergence are left out, in nats.

    Returns:
        [`Effect`], or `None` where no feature raises any word under that bound.

    Raises:
        DataError: for a text without tokens.
    """
    ids = tokenizer(text, return_tensors="pt")["input_ids"].to(host.device)
    if ids.shape[1] < 2:
        raise DataError("a text of two tokens or more is needed to measure an effect on.")
    words = torch.tensor([i for i in range(len(tokenizer)) if _WORD.fullmatch(tokenizer.decode([i]))])
    clean = host(input_ids=ids).logits[:, 1:].float().log_softmax(-1)
    before, best = clean.exp().mean(1)[0, words], None
    for strength in strengths:
        for start in range(0, len(candidates), ROWS):
            rows = candidates[start : start + ROWS]
            with steer(host, sae, rows=[add({found.latent: OfMax(strength)}) for found in rows]):
                steered = host(input_ids=ids.expand(len(rows), -1)).logits[:, 1:].float().log_softmax(-1)
            kl = (clean.exp() * (clean - steered)).sum(-1).mean(1)
            rise, word = (steered.exp().mean(1)[:, words] - before).masked_fill(kl[:, None] > most_kl, 0).max(1)
            row = int(rise.argmax())
            if rise[row] > (0 if best is None else best.after - best.before):
                index = int(word[row])
                was = before[index].item()
                token = tokenizer.decode([int(words[index])])
                best = Effect(rows[row], strength, token, was, was + rise[row].item(), kl[row].item())
    return best


def feature_lines(found: LatentExamples, n_contexts: int, width: int) -> str:
    """A feature in a terminal: what its peaks share, how often and how strongly it fires, contexts below."""
    rate = f"1 in {round(1 / found.density):,} tokens"
    head = f"{found.latent:>5}  {describe_latent(found)} · {rate} · max {found.maximum:.3g}"
    lines = []
    for e in found.strongest(n_contexts):
        tokens = [_SPACES.sub("  ", token) for token in e.tokens]  # indentation says little and takes the whole line
        strip = Strip(tokens, e.activations, found.maximum, peak=e.peak, window=6, special=e.special, width=width - 7)
        lines += [f"{'':7}{line}" for line in str(strip).splitlines()]
    return "\n".join([head, *lines])


def steering_lines(prompt: str, effect: Effect | None, texts: dict[str, str]) -> str:
    """The steered continuation beside the unsteered one, and what was turned up."""
    blocks = []
    for name, text in texts.items():
        lines = (prompt + text).expandtabs(4).split("\n")
        blocks.append("\n".join([name.capitalize(), *(f"  {visible(line)}" for line in lines)]))
    if effect is not None:
        what = f"Feature {effect.examples.latent} ({describe_latent(effect.examples)}) at {effect.strength:g} x its maximum:"
        how = f"'{visible(effect.token)}' rises from {effect.before:.1%} to {effect.after:.1%} of the next tokens."
        blocks.insert(0, f"{what}\n{how}")
    return "\n\n".join(blocks)
