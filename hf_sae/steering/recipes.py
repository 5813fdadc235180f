"""Edits as plain JSON values: rows of a table, a link, `presets.json` of an autoencoder's author. Nothing in them is executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, DataError
from ..evaluation.writing import write_json
from .edits import Edit, OfMax, OfNorm, Strength, ablate, add, clamp, scale, when
from .plan import POSITIONS, SteeringPlan


if TYPE_CHECKING:
    from ..conversion.files import Files


PRESETS = "presets.json"
MAX_ROWS, MAX_PRESETS, MAX_TEXT = 64, 200, 4000
MAX_STRENGTH = 1e6

_OPERATIONS: dict[str, Callable[[int, Any], Edit]] = {
    "add": lambda latent, strength: add({latent: strength}),
    "clamp": lambda latent, strength: clamp({latent: strength}),
    "raise": lambda latent, strength: clamp({latent: strength}, only_raise=True),
    "scale": lambda latent, strength: scale({latent: strength}),
    "ablate": lambda latent, strength: ablate(latent),
}
_UNITS: dict[str, Callable[[float], Strength]] = {"max": OfMax, "norm": OfNorm, "latent": float}
OPERATIONS, UNITS = tuple(_OPERATIONS), tuple(_UNITS)


@dataclass(frozen=True)
class EditRow:
    """One edit of one latent, as people write it down.

    Args:
        feature (`int`): which latent.
        operation (`str`): `"add"`, `"clamp"`, `"raise"` (a clamp that never lowers), `"scale"` or `"ablate"`.
        strength (`float`): in `unit`; a factor for `"scale"`, not looked at for `"ablate"`.
        unit (`str`): `"max"` (times the latent's recorded maximum), `"norm"` (times the activation's norm) or `"latent"`.
        on (`bool`): whether it holds.
        sae (`str`): name of the autoencoder in the engine.
        when (`int`, *optional*): only on tokens on which this latent fires.

    Raises:
        DataError: for values that cannot be.
    """

    feature: int
    operation: str = "add"
    strength: float = 1.0
    unit: str = "max"
    on: bool = True
    sae: str = ""
    when: int | None = None

    def __post_init__(self) -> None:
        for name in ("feature", "when"):
            value = getattr(self, name)
            if not (name == "when" and value is None) and (type(value) is not int or not 0 <= value < 2**31):
                raise DataError(f"{name}={_short(value)} is not the index of a latent. Give a whole number from 0.")
        _one_of("operation", self.operation, OPERATIONS)
        _one_of("unit", self.unit, UNITS)
        if type(self.on) is not bool or not isinstance(self.sae, str) or len(self.sae) > MAX_TEXT:
            raise DataError(f"on={self.on!r}, sae={self.sae!r}: give true or false, and the name of an autoencoder.")
        if (
            not isinstance(self.strength, (int, float))
            or isinstance(self.strength, bool)
            or not -MAX_STRENGTH <= self.strength <= MAX_STRENGTH  # false for NaN
        ):
            raise DataError(
                f"strength={_short(self.strength)}: give a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}."
            )
        object.__setattr__(self, "strength", float(self.strength))

    @classmethod
    def from_json(cls, row: Any) -> EditRow:
        """A row from the dictionary that [`EditRow.to_json`] gives; keys may be left out.

        Raises:
            DataError: if it is no such dictionary, or a value cannot be.
        """
        known = set(cls.__dataclass_fields__)
        if not isinstance(row, Mapping) or "feature" not in row or not known.issuperset(row):
            raise DataError(
                f"{_short(row)} is no edit. Give a dictionary with 'feature' and any of {', '.join(sorted(known))}."
            )
        return cls(**row)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def edit(self) -> Edit:
        """The edit that it describes."""
        strength = self.strength if self.operation == "scale" else _UNITS[self.unit](self.strength)
        edit = _OPERATIONS[self.operation](self.feature, strength)
        return edit if self.when is None else when(edit, self.when)

    def python(self) -> str:
        """The same as Python source."""
        strength = exactly(self.strength)
        if self.operation != "scale":
            strength = {"max": f"OfMax({strength})", "norm": f"OfNorm({strength})", "latent": strength}[self.unit]
        call = {
            "raise": f"clamp({{{self.feature}: {strength}}}, only_raise=True)",
            "ablate": f"ablate({self.feature})",
        }.get(self.operation, f"{self.operation}({{{self.feature}: {strength}}})")
        return call if self.when is None else f"when({call}, {self.when})"


def exactly(value: float) -> str:
    """A number in as few digits as bring the same number back: `2`, `0.1`, `1.23456789`."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def rows_from_json(rows: Any) -> list[EditRow]:
    """Several rows.

    Raises:
        DataError: if it is no list of them, or one of more than 64.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise DataError(f"{_short(rows)} is no list of edits. Give [{{'feature': 12, 'strength': 2}}].")
    if len(rows) > MAX_ROWS:
        raise DataError(f"{len(rows)} edits: at most {MAX_ROWS} are taken.")
    return [EditRow.from_json(row) for row in rows]


def plan_of(rows: Sequence[EditRow], positions: str = "all", include_special: bool = False) -> SteeringPlan:
    """The plan of the rows that are on, in their order.

    Raises:
        ValueError: for positions that there are not.
    """
    edits: dict[str, list[Edit]] = {}
    for row in rows:
        if row.on:
            edits.setdefault(row.sae, []).append(row.edit())
    return SteeringPlan(edits, positions, include_special)


@dataclass(frozen=True)
class Preset:
    """Edits that the author of an autoencoder recommends.

    Args:
        name (`str`): a few words.
        rows (`tuple` of [`EditRow`]): the edits.
        description (`str`): what to expect.
        prompt (`str`): a text to try it on.
        positions (`str`): see [`SteeringPlan`].
    """

    name: str
    rows: tuple[EditRow, ...]
    description: str = ""
    prompt: str = ""
    positions: str = "all"

    @classmethod
    def from_json(cls, preset: Any) -> Preset:
        """A preset from the dictionary that [`Preset.to_json`] gives.

        Raises:
            DataError: if it is no such dictionary, or a value cannot be.
        """
        known = {"name", "edits", "description", "prompt", "positions"}
        if not isinstance(preset, Mapping) or not {"name", "edits"} <= set(preset) <= known:
            raise DataError(
                f"{_short(preset)} is no preset. Give a dictionary with 'name', 'edits' and any of {', '.join(sorted(known))}."
            )
        texts = {key: preset[key] for key in known - {"edits"} if key in preset}
        for key, text in texts.items():
            if not isinstance(text, str) or len(text) > MAX_TEXT:
                raise DataError(
                    f"{key} of a preset is {_short(text)}: give a text of at most {MAX_TEXT:,} characters."
                )
        _one_of("positions", texts.get("positions", "all"), POSITIONS)
        return cls(rows=tuple(rows_from_json(preset["edits"])), **texts)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {key: value for key, value in asdict(self).items() if key != "rows"}
        return plain | {"edits": [row.to_json() for row in self.rows]}


def load_presets(source: str | Path | Files) -> list[Preset]:
    """The presets beside an autoencoder: those of its `presets.json`, none where there is no such file.

    Args:
        source (`str`, `Path` or `Files`): a folder, or the files of a repo.

    Raises:
        DataError: if the file is damaged, or says something that cannot be.
        OSError: if it cannot be fetched.
    """
    from ..conversion.files import Files, open_files

    files = source if isinstance(source, Files) else open_files(str(source))
    name = files.find(PRESETS)
    if name is None:
        return []
    try:
        content = files.json(name)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    several = content.get("presets") if isinstance(content, Mapping) else None
    if not isinstance(several, list) or len(several) > MAX_PRESETS:
        raise DataError(f"{PRESETS} of {files.name!r} has no list of at most {MAX_PRESETS} 'presets'.")
    return [Preset.from_json(preset) for preset in several]


def save_presets(folder: str | Path, presets: Sequence[Preset]) -> Path:
    """Writes `presets.json` beside an autoencoder; a push takes it along.

    Raises:
        OSError: if it cannot be written; the file that was there stays.
    """
    path = Path(folder) / PRESETS
    write_json({"presets": [preset.to_json() for preset in presets]}, path)
    return path


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise DataError(f"{name}={_short(value)} is none of {', '.join(map(repr, allowed))}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
