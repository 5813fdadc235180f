"""The features that a card shows, found on text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..features import LatentExamples, describe_latent, top_contexts
from ..features.choice import choose_features, consistent_features
from .cards import Context, FeatureExample


if TYPE_CHECKING:
    from ..models import SAE

DENSITIES = (1e-4, 2e-2)  # a feature that fires on a smaller or larger share of the tokens is not shown
N_FEATURES, N_CONTEXTS = 6, 2


def example_features(
    sae: SAE,
    host: Any,
    tokenizer: Any,
    dataset: Any,
    *,
    n_features: int = N_FEATURES,
    n_tokens: int = 100_000,
    **data: Any,
) -> list[FeatureExample]:
    """Features whose strongest contexts agree most, no two with the same token, from frequent to rare.

    Args:
        sae ([`SAE`]): the autoencoder.
        host (`PreTrainedModel`): the model it belongs to.
        tokenizer: of the host.
        dataset: text that was not trained on; what [`hf_sae.features.top_contexts`] takes.
        n_features (`int`): how many; fewer where fewer agree.
        n_tokens (`int`): read so many.
        data: for `top_contexts`.
    """
    contexts = top_contexts(sae, host, tokenizer, dataset, n_tokens=n_tokens, **data)
    return [for_card(found) for found in choose_features(consistent_features(contexts, *DENSITIES), n_features)]


def for_card(found: LatentExamples, n_contexts: int = N_CONTEXTS) -> FeatureExample:
    """A feature with its strongest contexts, as a card shows it."""
    contexts: list[Context] = [
        {"tokens": example.tokens, "activations": [round(a, 4) for a in example.activations]}
        for example in found.strongest(n_contexts)
    ]
    return {
        "feature": found.latent,
        "label": describe_latent(found),
        "density": found.density,
        "maximum": found.maximum,
        "contexts": contexts,
    }
