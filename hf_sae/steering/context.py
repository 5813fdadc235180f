"""Steering: generating, or reading, with some latents of an autoencoder changed.

* Edits are differences (`steering_delta`): what the autoencoder does not explain stays, and tokens that are not steered
  keep their bits.
* Hooks belong to the host, so every caller of that host is steered while the context is open. A program that serves several
  users runs them as rows of one batch, each with its own edits (`rows=`), or lets one thread own the host.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import HookPointError
from ..hooks import Call, edit
from ..hosts import resolve
from ..hosts.fingerprints import warn_of_another_host
from .delta import BoundEdits
from .edits import Edit, OfMax, OfNorm, Strength, ablate, add, as_edits, clamp, scale
from .positions import Positions, Where


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.modeling_sae import SAE


__all__ = ["Edit", "OfMax", "OfNorm", "Strength", "ablate", "add", "clamp", "scale", "steer"]

Edits = Edit | Sequence[Edit] | None


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
    steerings = [_Steering(host, each, plan, where) for each, plan in pairs]
    with ExitStack() as stack:
        for steering in steerings:
            for point, function in steering.hooks():
                stack.enter_context(edit(host, point, function))
        yield


def _by_sae(sae: Any, edits: Edits, rows: Sequence[Edits] | None) -> list[tuple[SAE, _Plan]]:
    if isinstance(sae, Mapping):
        if edits is not None or rows is not None:
            raise TypeError(
                "steer(host, {sae: edits}) takes the edits from the dictionary. Leave edits= and rows= out; for rows of "
                "several autoencoders nest one steer(host, sae, rows=[…]) per autoencoder."
            )
        return [(each, _Plan(its_edits, None)) for each, its_edits in sae.items()]
    if edits is not None and rows is not None:
        raise TypeError("steer takes edits for all rows or rows=[…], not both. Put the common edits into each row.")
    return [(sae, _Plan(edits, rows))]


class _Plan:
    """Which rows of the batch get which edits; one group of all rows where no rows were told apart."""

    def __init__(self, edits: Edits, rows: Sequence[Edits] | None) -> None:
        self.n_rows = None if rows is None else len(rows)
        self.groups: dict[tuple[Edit, ...], list[int]] = {}
        if rows is None:
            self.groups[as_edits(edits)] = []
        for row, its_edits in enumerate(rows or ()):
            # rows with equal edits are encoded together
            self.groups.setdefault(as_edits(its_edits), []).append(row)
        self.groups.pop((), None)


class _Steering:
    """One autoencoder's edits in one host."""

    def __init__(self, host: PreTrainedModel, sae: SAE, plan: _Plan, where: Where) -> None:
        self.hook_in, self.hook_out = _places(host, sae)
        self.sae, self.plan, self.where = sae, plan, where
        self.groups = [(rows, BoundEdits(sae, edits)) for edits, rows in plan.groups.items()]
        self.reads = self.hook_in != self.hook_out and any(bound.needs_latents for _, bound in self.groups)
        self.source: Tensor | None = None

    def hooks(self) -> list[tuple[str, Callable[[Tensor, Call], Tensor]]]:
        """Places and what to do there; none where nothing is edited, so that the host runs as if alone."""
        if not self.groups and self.plan.n_rows is None:
            return []
        write = (self.hook_out, self.write)
        return [(self.hook_in, self.remember), write] if self.reads else [write]

    def remember(self, x: Tensor, call: Call) -> Tensor:
        """Keeps what the transcoder reads until its output place comes."""
        _check_width(self.sae, "d_in", x.shape[-1], self.hook_in)
        self.source = x
        return x

    def write(self, x: Tensor, call: Call) -> Tensor:
        """`x` `[batch, tokens, d_out]` with the edits of its rows."""
        _check_width(self.sae, "d_out", x.shape[-1], self.hook_out)
        source = self._take(x) if self.reads else x
        if x.dim() == 2 and call.input_ids is not None and call.input_ids.numel() == len(x):
            # some modules see all tokens of a batch as one list
            shape = call.input_ids.shape
            return self._edit(x.view(*shape, -1), source.view(*shape, -1), call).view_as(x)
        return self._edit(x, source, call)

    def _edit(self, x: Tensor, source: Tensor, call: Call) -> Tensor:
        keep = self.where(x, call)
        self._check_rows(x, call)
        out = x
        for rows, bound in self.groups:
            selected = keep
            if self.plan.n_rows is not None:
                mine = _descend_from(rows, x, call)
                selected = mine.expand(x.shape[:-1]) if keep is None else mine & keep
            out = _apply(bound, out, source, selected)
        return out

    def _check_rows(self, x: Tensor, call: Call) -> None:
        if self.plan.n_rows is None:
            return
        batch = int(call.rows.max()) + 1
        if self.plan.n_rows != batch or len(call.rows) != len(x):
            raise ValueError(
                f"rows= has {self.plan.n_rows} entries, and the batch has {batch} rows (the activation at {self.hook_out!r} "
                f"has {len(x)}). Give one entry per prompt; None leaves a row alone."
            )

    def _take(self, x: Tensor) -> Tensor:
        source, self.source = self.source, None
        if source is None or source.shape[:-1] != x.shape[:-1]:
            raise HookPointError(
                f"{self.hook_out!r} came without {self.hook_in!r} before it (or with other tokens), so the transcoder has "
                "nothing to read there. It fits hosts in which hook_in runs first."
            )
        return source


def _descend_from(rows: list[int], x: Tensor, call: Call) -> Tensor:
    """`[batch, 1]`: which rows of this call stem from the given rows of the prompts."""
    mine = torch.isin(call.rows.to(x.device), torch.tensor(rows, device=x.device))
    return mine.view(-1, *[1] * (x.dim() - 2))


def _apply(bound: BoundEdits, x: Tensor, source: Tensor, selected: Tensor | None) -> Tensor:
    if selected is None:
        target, read = x.flatten(0, -2), source.flatten(0, -2)
    else:
        target, read = x[selected], source[selected]
    if not len(target):
        return x
    delta, touched = bound(read, target)
    changed = torch.where(touched, (target + delta).to(x.dtype), target)
    if selected is None:
        return changed.view(x.shape)
    return x.clone().masked_scatter(selected.unsqueeze(-1), changed)


def _places(host: PreTrainedModel, sae: SAE) -> tuple[str, str]:
    """Where the autoencoder reads and writes, after checking that it fits there."""
    config = sae.config
    hook_in, hook_out = config.hook_in, config.hook_out or config.hook_in
    if not isinstance(hook_in, str) or not isinstance(hook_out, str):
        raise HookPointError(
            f"steering needs one place to read and one to write, and the autoencoder has hook_in={hook_in!r} and "
            f"hook_out={config.hook_out!r}. Set sae.config.hook_in, such as 'resid_post.6'."
        )
    # the structure may not say how wide a place is; then its first activation does
    _check_width(sae, "d_in", resolve(host, hook_in).place.width, hook_in)
    _check_width(sae, "d_out", resolve(host, hook_out).place.width, hook_out)
    return hook_in, hook_out


def _check_width(sae: SAE, name: str, width: int | None, point: str) -> None:
    expected = getattr(sae.config, name)
    if width is not None and width != expected:
        raise HookPointError(
            f"{point!r} is {width} wide, and the autoencoder has {name}={expected}. Use the host it was trained on "
            f"({sae.config.base_model or 'not recorded in its config'}), or another autoencoder."
        )
