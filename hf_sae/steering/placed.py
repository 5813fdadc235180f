"""Edits at the places of one autoencoder in one host: which rows get which, and where they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import HookPointError
from ..hooks import Call, one_place
from ..hosts import resolve
from .delta import BoundEdits
from .edits import Edit, as_edits


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.modeling_sae import SAE


Edits = Edit | Sequence[Edit] | None
Mask = Callable[[Tensor, Call], Tensor | None]


class RowEdits:
    """Which rows of the batch get which edits; one group of all rows where no rows were told apart.

    Args:
        edits ([`Edit`] or `list`, *optional*): of all rows.
        rows (`list`, *optional*): instead, those of each row.

    Raises:
        TypeError: if something in it is not an edit.
    """

    def __init__(self, edits: Edits, rows: Sequence[Edits] | None) -> None:
        self.n_rows = None if rows is None else len(rows)
        self.groups: dict[tuple[Edit, ...], list[int]] = {}
        if rows is None:
            self.groups[as_edits(edits)] = []
        for row, its_edits in enumerate(rows or ()):
            # rows with equal edits are encoded together
            self.groups.setdefault(as_edits(its_edits), []).append(row)
        self.groups.pop((), None)


class PlacedEdits:
    """One autoencoder's edits in one host.

    Args:
        host (`PreTrainedModel`): has the places of the autoencoder.
        sae ([`SAE`]): whose latents are edited.
        plan ([`RowEdits`]): which rows get which edits.
        where (`Callable`): from activation and call to the bool mask `[batch, tokens]` of what is steered, or `None` for all.

    Raises:
        HookPointError: if the host has no such place, or it has another width than the autoencoder.
        ValueError: if a latent or strength is impossible.
    """

    def __init__(self, host: PreTrainedModel, sae: SAE, plan: RowEdits, where: Mask) -> None:
        self.hook_in, self.hook_out = places_of(host, sae)
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


def places_of(host: PreTrainedModel, sae: SAE) -> tuple[str, str]:
    """Where the autoencoder reads and writes, after checking that it fits there."""
    hook_in = one_place(sae, "hook_in", "steering")
    hook_out = hook_in if sae.config.hook_out is None else one_place(sae, "hook_out", "steering")
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
