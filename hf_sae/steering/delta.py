"""The effect of edits on an activation, as a difference.

* `x' = x + sum_j (z'_j - z_j) W_dec[j]`: the reconstruction error of the autoencoder stays in `x'`, and what is not edited
  does not change. Adding needs no latents, so nothing is encoded for it.
* A list of edits composes on the latents: a later edit sees what the earlier ones made of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .edits import Edit, OfMax, OfNorm, Strength


if TYPE_CHECKING:
    from ..models.modeling_sae import SAE, Norm
    from ..models.sparse_code import SparseCode


_PRE_ACTIVATIONS_AT_ONCE = 2**26  # encoding a long prompt with a wide autoencoder then takes 256 MB in float32


@dataclass(frozen=True)
class _Step:
    """One edit on some columns of the edited latents."""

    edit: Edit
    columns: list[int]
    fixed: Tensor  # [n], strengths in latent units, 0 where they depend on the token
    share: Tensor  # [n], strengths as a share of the activation's norm, 0 where they do not
    relative: bool  # whether any share is given

    def to(self, device: torch.device) -> _Step:
        return replace(self, fixed=self.fixed.to(device), share=self.share.to(device))

    def strength(self, length: Tensor, per_unit: Tensor) -> Tensor:
        """In latent units, `[n]` or `[tokens, n]`; `length` `[tokens, 1]` is what `per_unit` `[..., n]` is a unit of."""
        fixed = self.fixed.to(length.dtype)
        if not self.relative:
            return fixed
        return torch.where(self.share != 0, self.share * (length / per_unit[..., self.columns]), fixed)


class BoundEdits:
    """Edits that were checked against an autoencoder, ready to give the difference they make.

    Args:
        sae ([`SAE`]): whose latents are meant.
        edits (`tuple` of [`Edit`]): in order.

    Raises:
        ValueError: if a latent does not exist, a maximum is needed and was not recorded, or a norm is needed of a
            decoder row that is zero.
    """

    def __init__(self, sae: SAE, edits: tuple[Edit, ...]) -> None:
        self.sae = sae
        triggers = {edit.trigger.latent for edit in edits if edit.trigger is not None and edit.latents}
        self.latents = sorted({latent for edit in edits for latent in edit.latents} | triggers)
        if self.latents and self.latents[-1] >= sae.config.d_sae:
            raise ValueError(
                f"latent {self.latents[-1]} does not exist: this autoencoder has d_sae={sae.config.d_sae}. Choose one from "
                f"0 to {sae.config.d_sae - 1}."
            )
        self.needs_latents = any(edit.needs_latents for edit in edits)
        self.needs_norm = sae.config.undoes_norm_per_token
        self.rows = sae.W_dec[self.latents].to(torch.promote_types(sae.dtype, torch.float32))
        self.lengths = torch.linalg.vector_norm(self.rows, dim=-1)
        self.steps = [self._step(edit) for edit in edits if edit.latents]

    def _step(self, edit: Edit) -> _Step:
        columns = [self.latents.index(latent) for latent in edit.latents]
        fixed = [self._units(latent, strength) for latent, strength in edit.strengths]
        share = [self._share(latent, strength) for latent, strength in edit.strengths]
        return _Step(edit, columns, self.rows.new_tensor(fixed), self.rows.new_tensor(share), any(share))

    def _units(self, latent: int, strength: Strength) -> float:
        if isinstance(strength, OfNorm):
            return 0.0
        if not isinstance(strength, OfMax):
            return strength
        stats = self.sae.feature_stats
        if stats is None or "maximum" not in stats:
            raise ValueError(
                f"{strength} of latent {latent}: this autoencoder has no recorded maxima. Run evaluate(sae, …) first, or "
                "give the strength as a number in latent units."
            )
        maximum = float(stats["maximum"][latent])
        if maximum == 0 or not math.isfinite(maximum):
            raise ValueError(
                f"{strength} of latent {latent}: its recorded maximum is {maximum:g}. Run evaluate(sae, …) on more tokens, or "
                "give the strength as a number in latent units."
            )
        return strength.factor * maximum

    def _share(self, latent: int, strength: Strength) -> float:
        if not isinstance(strength, OfNorm):
            return 0.0
        if not self.lengths[self.latents.index(latent)] > 0:
            raise ValueError(
                f"{strength} of latent {latent}: its decoder row is zero, so no strength gives it a length. Choose another "
                "latent."
            )
        return strength.factor

    def __call__(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The difference to add to activations, computed in float32 at least.

        Args:
            source (`Tensor`): `[tokens, d_in]`, what the autoencoder reads.
            target (`Tensor`): `[tokens, d_out]`, what is changed; its norms are what [`OfNorm`] refers to.

        Returns:
            `(delta, touched)`: `[tokens, d_out]`, and `[tokens, 1]`, whether any latent changed there.
        """
        self._follow(target.device)
        dtype = torch.promote_types(self.rows.dtype, target.dtype)
        norm = self._norm(source, target.device, dtype)
        length = torch.linalg.vector_norm(target.to(dtype), dim=-1, keepdim=True)
        per_unit = self.sae.to_output_units(self.lengths.to(dtype), norm)
        latents = target.new_zeros(len(target), len(self.latents), dtype=dtype)
        if self.needs_latents:
            latents = self._read(source).to(latents)
        change = torch.zeros_like(latents)
        for step in self.steps:
            now = latents[:, step.columns] + change[:, step.columns]
            delta = step.edit.delta(now, step.strength(length, per_unit))
            if (trigger := step.edit.trigger) is not None:
                fires = latents[:, self.latents.index(trigger.latent)] > trigger.above
                delta = torch.where(fires.unsqueeze(-1), delta, 0)
            change[:, step.columns] = change[:, step.columns] + delta
        return self.sae.to_output_units(change @ self.rows.to(dtype), norm), (change != 0).any(-1, keepdim=True)

    def _follow(self, device: torch.device) -> None:
        # the layers of one host may lie on several devices; on which is known when its activations arrive
        if self.rows.device != device:
            self.rows, self.lengths = self.rows.to(device), self.lengths.to(device)
            self.steps = [step.to(device) for step in self.steps]

    def _norm(self, source: Tensor, device: torch.device, dtype: torch.dtype) -> Norm | None:
        if not self.needs_norm:
            return None
        norm = self.sae.normalize(source.to(self.sae.device))[1]
        return None if norm is None else (norm[0].to(device, dtype), norm[1].to(device, dtype))

    def _read(self, source: Tensor) -> Tensor:
        """The edited latents `[tokens, n]` as the autoencoder has them before any edit."""
        at_once = max(1, _PRE_ACTIVATIONS_AT_ONCE // self.sae.config.d_sae)
        parts = source.to(self.sae.device).split(at_once)
        return torch.cat([self._columns(self.sae.encode_sparse(part)) for part in parts])

    def _columns(self, code: SparseCode) -> Tensor:
        rows, latents, values = code.flat()
        column = torch.full((code.d_sae,), -1, device=latents.device)
        column[self.latents] = torch.arange(len(self.latents), device=latents.device)
        wanted = column[latents] >= 0
        found = values.new_zeros(code.n_rows, len(self.latents))
        return found.index_put((rows[wanted], column[latents[wanted]]), values[wanted])
