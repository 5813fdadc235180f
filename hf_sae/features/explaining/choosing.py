"""Which latents are labelled: all, some by number, or the most active ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ...errors import ConfigError
from .latents import Key


_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_features(text: str) -> list[int]:
    """`0-99,205` as numbers.

    Raises:
        ConfigError: if it is not of that form.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= 2**31:
            raise ConfigError(f"{text!r} is no list of features: write 7, 0-99 or 0-99,205.")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def chosen(
    fired: Mapping[Key, float],
    widths: Mapping[str, int],
    sae_id: str | None = None,
    features: Sequence[int] | None = None,
) -> list[Key]:
    """The latents of a choice, those that never fired included, in order.

    Args:
        fired (`dict`): density of each latent that fired.
        widths (`dict`): number of latents of each autoencoder.
        sae_id (`str`, *optional*): only of this one.
        features (`list` of `int`, *optional*): only these.

    Raises:
        ConfigError: for an autoencoder or a latent that there is not.
    """
    if sae_id is not None and sae_id not in widths:
        raise ConfigError(f"there is no autoencoder {sae_id!r}: the dataset has {', '.join(map(repr, widths))}.")
    names = sorted(widths) if sae_id is None else [sae_id]
    if features is not None:
        widest = max(widths[name] for name in names)
        wrong = next((index for index in features if not 0 <= index < widest), None)
        if wrong is not None:
            raise ConfigError(f"there is no feature {wrong}: they are numbered 0 to {widest - 1}.")
    return [
        (name, index)
        for name in names
        for index in sorted(range(widths[name]) if features is None else {i for i in features if i < widths[name]})
    ]


def most_active(keys: Iterable[Key], fired: Mapping[Key, float], n: int) -> list[Key]:
    """The `n` that fire most often, in order of their numbers."""
    return sorted(sorted(keys, key=lambda key: (-fired.get(key, 0.0), key))[:n])
