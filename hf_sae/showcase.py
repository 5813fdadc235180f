"""Which features to show and which to steer: rules that look at counts and measured effects, never at a label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .errors import DataError
from .features import LatentExamples, TopContexts, describe_latent
from .steering import OfMax, add, steer
from .terminal import Strip, visible


if TYPE_CHECKING:
    from .models import SAE

FEWEST_EXAMPLES, FEWEST_DOCUMENTS = 5, 3
_SPACES = re.compile(" {3,}")
_WORD = re.compile(r"\s?[A-Za-z_]{3,}")


def choose_features(contexts: TopContexts, least_density: float, most_density: float, n: int) -> list[LatentExamples]:
    """The features whose strongest contexts agree most on the token they peak at, no two at the same token.

    Ranked by the share of contexts with the commonest peak token, then by density. The contexts have to come from several
    documents: what one file repeats is no evidence.

    Args:
        contexts ([`TopContexts`]): of all latents that fired.
        least_density (`float`), most_density (`float`): share of tokens on which a shown feature fires.
        n (`int`): how many.
    """
    ranked: list[tuple[float, float, int, str]] = []
    for latent, found in contexts.items():
        if len(found.examples) < FEWEST_EXAMPLES or not least_density <= found.density <= most_density:
            continue
        if len({example.document for example in found.examples}) < FEWEST_DOCUMENTS:
            continue
        peaks = [example.tokens[example.peak].strip().lower() for example in found.examples]
        token = max(sorted(set(peaks)), key=peaks.count)
        if token:
            ranked.append((-peaks.count(token) / len(peaks), -found.density, latent, token))
    chosen: dict[str, int] = {}
    for _, _, latent, token in sorted(ranked):
        chosen.setdefault(token, latent)
    return [contexts[latent] for latent in list(chosen.values())[:n]]


@dataclass(frozen=True)
class Effect:
    """What turning a feature up does to the next token.

    Args:
        latent (`int`): the feature.
        token (`str`): the word whose probability rises most.
        before (`float`), after (`float`): its mean probability over the positions of a text.
    """

    latent: int
    token: str
    before: float
    after: float


@torch.no_grad()
def largest_effect(
    sae: SAE, host: Any, tokenizer: Any, latents: Sequence[int], text: str, strength: float
) -> Effect | None:
    """The feature that, turned up, raises the probability of a word most, over all positions of a text.

    Args:
        sae ([`SAE`]): with feature statistics.
        host (`PreTrainedModel`): a causal language model.
        tokenizer: of the host.
        latents (`list` of `int`): features to try; each is one row of one batch.
        text (`str`): what is read meanwhile.
        strength (`float`): in maxima of each feature.

    Returns:
        [`Effect`], or `None` where no feature raises any word.

    Raises:
        DataError: for a text without tokens.
    """
    ids = tokenizer(text, return_tensors="pt")["input_ids"].to(host.device)
    if ids.shape[1] < 2:
        raise DataError("a text of two tokens or more is needed to measure an effect on.")
    if not latents:
        return None
    words = torch.tensor([i for i in range(len(tokenizer)) if _WORD.fullmatch(tokenizer.decode([i]))])
    before = host(input_ids=ids).logits[:, 1:].float().softmax(-1).mean(1)[:, words]
    with steer(host, sae, rows=[add({latent: OfMax(strength)}) for latent in latents]):
        logits = host(input_ids=ids.expand(len(latents), -1)).logits
    after = logits[:, 1:].float().softmax(-1).mean(1)[:, words]
    row, column = divmod(int((after - before).argmax()), len(words))
    if after[row, column] <= before[0, column]:
        return None
    token = tokenizer.decode([int(words[column])])
    return Effect(latents[row], token, before[0, column].item(), after[row, column].item())


def feature_lines(found: LatentExamples, n_contexts: int, width: int) -> str:
    """A feature in a terminal: what its peaks share, how often and how strongly it fires, contexts below."""
    rate = f"1 in {round(1 / found.density):,} tokens"
    head = f"{found.latent:>5}  {describe_latent(found)} · {rate} · max {found.maximum:.3g}"
    lines = []
    for e in found.examples[:n_contexts]:
        tokens = [_SPACES.sub("  ", token) for token in e.tokens]  # indentation says little and takes the whole line
        strip = Strip(tokens, e.activations, found.maximum, peak=e.peak, window=6, special=e.special, width=width - 7)
        lines += [f"{'':7}{line}" for line in str(strip).splitlines()]
    return "\n".join([head, *lines])


def steering_lines(prompt: str, effect: Effect | None, strength: float, texts: dict[str, str]) -> str:
    """The steered continuation beside the unsteered one, and what was turned up."""
    blocks = []
    for name, text in texts.items():
        lines = (prompt + text).expandtabs(4).split("\n")
        blocks.append("\n".join([name.capitalize(), *(f"  {visible(line)}" for line in lines)]))
    if effect is not None:
        blocks.insert(
            0,
            f"Feature {effect.latent} at {strength:g} x its maximum: '{visible(effect.token)}' rises from "
            f"{effect.before:.1%} to {effect.after:.1%} of the next tokens.",
        )
    return "\n\n".join(blocks)
