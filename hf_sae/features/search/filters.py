"""Which features a search looks at."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError


MAX_HITS = 1000
_LAYER = re.compile(r"(?:^|\.)(\d+)(?=$|[.:])")


@dataclass(frozen=True)
class Filters:
    """Bounds on what may be found; what is `None` bounds nothing.

    Args:
        sae_ids (`list` of `str`, *optional*): only these autoencoders.
        layers (`list` of `int`, *optional*): only autoencoders that read one of these layers.
        min_density (`float`, *optional*), max_density (`float`, *optional*): share of tokens on which a feature fires.
        min_score (`float`, *optional*): of its best label; features without a scored label are left out.

    Raises:
        ConfigError: for bounds that are no shares or leave nothing between them.
    """

    sae_ids: Collection[str] | None = None
    layers: Collection[int] | None = None
    min_density: float | None = None
    max_density: float | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sae_ids, str) or isinstance(self.layers, int):
            raise ConfigError("sae_ids= and layers= are lists, such as sae_ids=['layer_8'].")
        for name in ("min_density", "max_density", "min_score"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise ConfigError(f"{name}={value}: give a number from 0 to 1.")
        low, high = self.min_density, self.max_density
        if low is not None and high is not None and low > high:
            raise ConfigError(f"min_density={low} is above max_density={high}: no feature lies between.")

    def condition(self, known: dict[str, int], layers: dict[str, int | None]) -> tuple[str, list[Any]]:
        """An SQL condition on the table `features` and its parameters.

        Args:
            known (`dict`): number of each autoencoder in the index.
            layers (`dict`): its layer, where it has one.

        Raises:
            ConfigError: for an autoencoder or layer that the index does not have.
        """
        parts: list[str] = []
        values: list[Any] = []
        if (chosen := self._chosen(known, layers)) is not None:
            parts.append(f"sae IN ({', '.join('?' * len(chosen))})")
            values += chosen
        for column, sign, bound in (
            ("density", ">=", self.min_density),
            ("density", "<=", self.max_density),
            ("score", ">=", self.min_score),
        ):
            if bound is not None:
                parts.append(f"{column} {sign} ?")
                values.append(float(bound))
        return " AND ".join(parts) or "1", values

    def _chosen(self, known: dict[str, int], layers: dict[str, int | None]) -> list[int] | None:
        if self.sae_ids is None and self.layers is None:
            return None
        _all_known("sae_ids", self.sae_ids or (), known)
        _all_known("layers", self.layers or (), {layer for layer in layers.values() if layer is not None})
        names = known if self.sae_ids is None else set(self.sae_ids)
        return sorted(known[name] for name in names if self.layers is None or layers[name] in set(self.layers))


def layer_of(hook: str | None) -> int | None:
    """The layer of a place: 8 of `resid_post.8` and of `transformer.h.8.mlp:output`."""
    match = _LAYER.search(hook or "")
    return int(match[1]) if match and len(match[1]) < 6 else None


def checked_limit(limit: int) -> int:
    """A number of hits that may be asked for.

    Raises:
        ConfigError: for another.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_HITS:
        raise ConfigError(f"limit={limit!r}: ask for 1 to {MAX_HITS} features.")
    return limit


def _all_known(what: str, given: Iterable[Any], known: Iterable[Any]) -> None:
    names = list(known)
    for item in given:
        if item not in names:
            close = difflib.get_close_matches(str(item), list(map(str, names)), n=1)
            hint = (
                f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(map(repr, names[:20])) or 'none'}."
            )
            raise ConfigError(f"{what}= names {item!r}, which the dataset does not have. {hint}")
