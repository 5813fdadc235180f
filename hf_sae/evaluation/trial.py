"""One autoencoder under evaluation: what is accumulated about it, batch by batch."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, HookPointError
from ..metrics import reconstruction_statistics, wide
from ..models.modeling_sae import SAE
from ..models.sparse_code import SparseCode
from .bootstrap import DocumentSums
from .controls import Moments, Reconstructor


_LATENT_ELEMENTS = 1 << 27
OUTLIER_NORM = 10.0


def places_of(sae: SAE) -> tuple[list[str], list[str]]:
    """The places that an SAE or transcoder reads, and those that it writes.

    Raises:
        HookPointError: if the config has no hook point, or places of several hosts.
    """
    if sae.config.hook_in is None:
        raise HookPointError(
            "hook_in=None: evaluation needs one place to read or several. Set sae.config.hook_in, such as 'resid_post.8'."
        )
    if paired := [place for place in sae.config.places_in if "/" in place]:
        raise HookPointError(
            f"hook_in={sae.config.hook_in!r}: {paired[0]!r} is in one of several hosts, and `evaluate` runs one. Read held-out "
            "text with PairedStream(hosts, …), and give its activations side by side to sae.fvu_by_place."
        )
    return sae.config.places_in, sae.config.places_out


def single_points(sae: SAE) -> tuple[str, str]:
    """`(hook_in, hook_out)` of an SAE or transcoder of one place.

    Raises:
        HookPointError: if the config has no hook point, or several.
    """
    places_in, places_out = places_of(sae)
    if len(places_in) > 1 or len(places_out) > 1:
        raise HookPointError(
            f"hook_in={sae.config.hook_in!r}, hook_out={sae.config.hook_out!r}: this needs one place to read and one to "
            "write. `evaluate` measures autoencoders of several places."
        )
    return places_in[0], places_out[0]


@dataclass
class Trial:
    """An autoencoder, its places, and the sums of the two passes over the tokens.

    Of several places the activations stand side by side; `place_sums` then has what is found at each place that is written.

    The first pass ([`survey`]) finds the mean of the targets, which centring and mean ablation need exactly; the second
    ([`measure`]) everything else.
    """

    sae: SAE
    places_in: list[str]
    places_out: list[str]
    wants_controls: bool = False
    moments: Moments = field(default_factory=Moments)
    tokens: int = 0
    total: Any = 0.0
    bias_total: Any = 0.0
    l0_total: int = 0
    controls: dict[str, Reconstructor] = field(default_factory=dict)
    sums: dict[str, DocumentSums] = field(default_factory=lambda: {"sae": DocumentSums()})
    place_sums: dict[str, DocumentSums] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    extremes: tuple[Tensor, Tensor] | None = None
    firing: Tensor | None = None
    norms: list[Tensor] = field(default_factory=list)

    @property
    def mean(self) -> Tensor:
        """`[d_out]`, the mean target over the kept tokens, fp64."""
        return self.total / self.tokens

    @property
    def columns(self) -> list[str]:
        """What is read of the host: the places, and `"<place>/<what the autoencoder needs besides>"` where it writes."""
        besides = [f"{place}/{need}" for need in self.sae.needs_at_inference for place in self.places_out]
        return [*self.places_in, *self.places_out, *besides]

    def inputs(self, activations: Mapping[str, Tensor], keep: Tensor) -> tuple[Tensor, Tensor]:
        """The kept inputs `[tokens, d_in]` and targets `[tokens, d_out]`.

        Raises:
            HookPointError: if a width is not the config's.
            DataError: if an activation is not finite.
        """
        x = self._side_by_side(activations, keep, self.places_in, "d_in")
        y = x
        if self.places_out != self.places_in:
            y = self._side_by_side(activations, keep, self.places_out, "d_out")
        self.widths = {place: activations[place].shape[-1] for place in self.places_out}
        return x, self.sae.comparable(y)

    def parts(
        self, x: Tensor, activations: Mapping[str, Tensor], keep: Tensor
    ) -> Generator[tuple[Tensor, dict[str, Any]]]:
        """Stretches of the kept inputs `[tokens, d_in]`, on the autoencoder's device, and what else it is called with."""
        device, rows = self.sae.device, max(1, _LATENT_ELEMENTS // self.sae.config.d_sae)
        besides = {
            need: self._side_by_side(activations, keep, [f"{place}/{need}" for place in self.places_out], "d_out")
            for need in self.sae.needs_at_inference
        }
        for start in range(0, max(len(x), 1), rows):  # one, without tokens, of a batch that keeps none
            stretch = slice(start, start + rows)
            yield x[stretch].to(device), {need: values[stretch].to(device) for need, values in besides.items()}

    def _side_by_side(self, activations: Mapping[str, Tensor], keep: Tensor, places: list[str], name: str) -> Tensor:
        """`[tokens, width]`: the kept activations of some places."""
        width, found = getattr(self.sae.config, name), sum(activations[place].shape[-1] for place in places)
        if found != width:
            raise HookPointError(
                f"{', '.join(map(repr, places))} {'is' if len(places) == 1 else 'are together'} {found} wide in this host, "
                f"but the autoencoder has {name}={width}: it was trained on another host or place."
            )
        parts = []
        for place in places:
            values = activations[place]
            kept = values[keep.to(values.device)]
            if not kept.isfinite().all():
                raise DataError(
                    f"activations at {place!r} hold NaN or infinite values: run the host in bfloat16 or float32."
                )
            parts.append(kept if not parts else kept.to(parts[0]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def by_place(self, values: Tensor) -> dict[str, Tensor]:
        """What stands side by side, `[..., d_out]`, by the place that is written; views."""
        return dict(zip(self.places_out, values.split([self.widths[p] for p in self.places_out], dim=-1), strict=True))

    def survey(self, activations: Mapping[str, Tensor], keep: Tensor) -> None:
        """First pass over one batch: the mean of the targets, and what the controls are fitted to."""
        x, y = self.inputs(activations, keep)
        self.tokens += len(y)
        self.total = self.total + wide(y).sum(0)
        if not self.wants_controls:
            return
        self.moments.add(x, y)
        for part, besides in self.parts(x, activations, keep):
            self.l0_total += int(self.sae.encode_sparse(part, **besides).counts().sum())
        units = (
            self.sae.in_loss_units(y)
            if self.sae.config.is_transcoder
            else self.sae.normalize(y.to(self.sae.device))[0]
        )
        self.bias_total = self.bias_total + wide(units).sum(0)

    def measure(self, activations: Mapping[str, Tensor], keep: Tensor, documents: Tensor) -> dict[str, Tensor]:
        """Second pass over one batch: adds the reconstruction sums and returns each variant's reconstruction.

        Args:
            activations (`Mapping[str, Tensor]`): `[batch, length, d]` by hook point.
            keep (`Tensor`): `[batch, length]`.
            documents (`Tensor`): `[batch, length]`.

        Returns:
            `dict[str, Tensor]`: `[tokens, d_out]` for `"sae"` and every control.
        """
        x, y = self.inputs(activations, keep)
        self.norms.append(x.float().norm(dim=-1).cpu())
        out = {}
        for name in self.sums:
            results = [
                self.reconstruct(part, **besides) if name == "sae" else self.controls[name](part)
                for part, besides in self.parts(x, activations, keep)
            ]
            out[name] = torch.cat([reconstruction for reconstruction, _ in results])
            statistics = reconstruction_statistics(out[name], y, self.mean)
            statistics["l0"] = torch.cat([counts for _, counts in results])
            self.sums[name].add(documents[keep], statistics)
        if len(self.places_out) > 1:
            self._measure_places(out["sae"], y, documents[keep])
        return out

    def _measure_places(self, reconstruction: Tensor, target: Tensor, documents: Tensor) -> None:
        parts = zip(*(self.by_place(values).items() for values in (reconstruction, target, self.mean)), strict=True)
        for (place, estimate), (_, truth), (_, mean) in parts:
            sums = self.place_sums.setdefault(place, DocumentSums())
            sums.add(documents, reconstruction_statistics(estimate, truth, mean))

    def reconstruct(self, x: Tensor, **besides: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions `[tokens, d_out]` and L0 `[tokens]` of `x` `[tokens, d_in]`; records which latents fire."""
        output = self.sae(x, **besides)
        code = output.code
        self.record(code)
        return output.reconstruction, code.counts()

    def record(self, code: SparseCode) -> None:
        """Counts which latents fire in the code of some kept tokens, and keeps their extremes."""
        _, latents, values = code.flat()
        latents, values = latents.cpu(), values.float().cpu()
        if self.firing is None or self.extremes is None:
            self.firing = torch.zeros(code.d_sae, dtype=torch.long)
            self.extremes = torch.zeros(code.d_sae), torch.zeros(code.d_sae)
        self.firing += code.firing_counts().cpu()
        self.extremes[0].scatter_reduce_(0, latents, values, "amax")
        self.extremes[1].scatter_reduce_(0, latents, values, "amin")

    def feature_stats(self) -> dict[str, Tensor]:
        """`density` and `maximum` `[d_sae]`, `input_norm` and `tokens` `[]`, on the CPU.

        `maximum` is the activation of the largest magnitude, with its sign: latents may be negative.
        """
        if self.firing is None or self.extremes is None:
            raise DataError("no token was evaluated: run the second pass first.")
        high, low = self.extremes
        return {
            "density": (self.firing.double() / self.tokens).float(),
            "maximum": torch.where(high >= -low, high, low),
            "input_norm": torch.cat(self.norms).mean(),
            "tokens": torch.tensor(self.tokens),
        }

    def norm_outliers(self) -> int:
        """Kept tokens whose input norm is above ten times the median: attention sinks that dominate squared errors."""
        norms = torch.cat(self.norms)
        return int((norms > OUTLIER_NORM * norms.median()).sum())
