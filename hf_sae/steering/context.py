"""Steering: generating, or reading, with some latents of an autoencoder changed.

* Edits are differences (`steering_delta`): what the autoencoder does not explain stays, and tokens that are not steered
  keep their bits.
* Hooks belong to the host, so every caller of that host is steered while the context is open. A program that serves several
  users runs them as rows of one batch, each with its own edits (`rows=`), or lets one thread own the host.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..hooks import edit
from ..hosts.fingerprints import warn_of_another_host
from .placed import Edits, PlacedEdits, RowEdits
from .positions import Positions, Where


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.modeling_sae import SAE


__all__ = ["steer"]


@contextmanager
def steer(
    host: PreTrainedModel,
    sae: SAE | Mapping[SAE, Edits],
    edits: Edits = None,
    *,
    rows: Sequence[Edits] | None = None,
    positions: Positions = "all",
    include_special: bool = False,
    tokenizer: Any = None,
) -> Generator[None]:
    """Changes latents in every forward pass and `generate` of the host while the context is open.

    A transcoder is read at `hook_in`, and the difference is added at `hook_out`, so its skip term stays. Contexts may be
    nested; each reads what those entered before it have made of the activation.

    Args:
        host (`PreTrainedModel`): any model that has the places of the autoencoder.
        sae ([`SAE`] or `dict`): the autoencoder, or `{sae: edits}` for several, in this order where they share a place.
        edits ([`Edit`] or `list`, *optional*): what to do; a list composes, later edits seeing the earlier ones' latents.
        rows (`list`, *optional*): instead of `edits`, those of each row of the batch; `None` leaves a row alone. Beams and
            returned sequences are steered like the row they come from.
        positions (`str`, `Tensor` or `Callable`): `"all"`, `"prompt"`, `"generated"`, a bool mask `[batch, prompt
            length]`, or a function from a [`Call`] to a bool mask `[batch, tokens of this call]`.
        include_special (`bool`): steer BOS and padding too. They are known from ids and attention mask: a host that is
            called with embeddings alone has no BOS to leave out.
        tokenizer (*optional*): says what BOS is; otherwise `host.config.bos_token_id` does.

    Raises:
        HookPointError: if the host has no such place, or it has another width than the autoencoder.
        TypeError: if an edit is not one.
        ValueError: if a latent or strength is impossible, or `rows` or `positions` do not fit the batch.
    """
    pairs = _by_sae(sae, edits, rows)
    where = Where(host, positions, include_special, tokenizer)
    for each, _ in pairs:
        warn_of_another_host(each, host, tokenizer, stacklevel=4)  # 4: past contextlib
    steerings = [PlacedEdits(host, each, plan, where) for each, plan in pairs]
    with ExitStack() as stack:
        for steering in steerings:
            for point, function in steering.hooks():
                stack.enter_context(edit(host, point, function))
        yield


def _by_sae(sae: Any, edits: Edits, rows: Sequence[Edits] | None) -> list[tuple[SAE, RowEdits]]:
    if isinstance(sae, Mapping):
        if edits is not None or rows is not None:
            raise TypeError(
                "steer(host, {sae: edits}) takes the edits from the dictionary. Leave edits= and rows= out; for rows of "
                "several autoencoders nest one steer(host, sae, rows=[…]) per autoencoder."
            )
        return [(each, RowEdits(its_edits, None)) for each, its_edits in sae.items()]
    if edits is not None and rows is not None:
        raise TypeError("steer takes edits for all rows or rows=[…], not both. Put the common edits into each row.")
    return [(sae, RowEdits(edits, rows))]
