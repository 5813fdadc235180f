"""One feature on a text that somebody typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models import SAE


@torch.no_grad()
def activations_of(
    sae: SAE, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, feature: int
) -> dict[str, Any]:
    """Activation of one latent on each token, as JSON values; 0 on BOS, which autoencoders are not trained on.

    Raises:
        DataError: for an empty text, or one that is longer than the host reads.
        HookPointError: if the host has no such place, or it has another width.
    """
    from ..features.search.firing import firing
    from ..features.tokens import special_ids, token_texts

    found = firing(sae, host, tokenizer, text)
    ids = found.ids.tolist()
    values = torch.zeros(len(ids))
    mine = found.latents == feature
    values[found.rows[mine]] = found.values[mine]
    special = special_ids(tokenizer)
    return {
        "feature": feature,
        "tokens": token_texts(tokenizer, ids),
        "token_ids": ids,
        "activations": values.tolist(),
        "special": [place for place, index in enumerate(ids) if index in special],
    }
