"""`TokenBatch`: one batch of token ids for a host."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """One batch for the host.

    Args:
        input_ids (`Tensor`): `[B, T]` long.
        attention_mask (`Tensor`): `[B, T]` long; 0 is padding, always on the right.
        keep (`Tensor`): `[B, T]` bool; the positions that an autoencoder is trained and evaluated on.
        documents (`Tensor`): `[B, T]` long; number of the record in the dataset that a token comes from (in a stream:
            among the records that this rank reads), -1 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    documents: Tensor
