"""One repo with many autoencoders: a folder each, and a `config.json` at the root that says what they are.

The index is all that a listing needs: architecture, places, sizes, figures and hashes of every autoencoder in one small file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..access import explained
from ..errors import CheckpointError, ConversionError
from ..models import AutoSAE
from ..models.pinning import remember, split_name


if TYPE_CHECKING:
    from ..conversion.files import Files
    from ..models import SAE

MODEL_TYPE = "sae_collection"
CONFIG, ADAPTER, RESULTS = "config.json", "adapter_config.json", "eval_results.json"
FACTS = ("hook_in", "hook_out", "d_in", "d_out", "d_sae", "k", "target_l0", "skip", "base_model", "base_revision")
FIGURES = ("l0", "fvu", "delta_ce", "ce_recovered", "dead_fraction")
Entry = dict[str, Any]


class SAECollection(Mapping[str, "SAE"]):
    """The autoencoders of a repo by their folder; each is loaded when it is asked for, and kept.

    Args:
        name (`str`): repo id or folder.
        index (`dict[str, dict]`): what is known of each without loading it.
        commit (`str`, *optional*): of the repo; every member is read at it.
        options (`dict`): for `AutoSAE.from_pretrained`.
    """

    def __init__(
        self, name: str, index: dict[str, Entry], commit: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.name, self.index, self.commit, self._options = name, index, commit, options or {}
        self._loaded: dict[str, SAE] = {}

    def __getitem__(self, place: str) -> SAE:
        if place not in self.index:
            import difflib

            nearest = difflib.get_close_matches(str(place), self.index, n=1)
            hint = f"Did you mean {nearest[0]!r}?" if nearest else f"It holds {', '.join(map(repr, self.index))}."
            raise KeyError(f"{self.name!r} has no {place!r}. {hint}")
        if place not in self._loaded:
            # a folder has no commits, and "." is the root of a repo with one autoencoder
            options = self._options | ({"revision": self.commit} if self.commit else {})
            where = "" if place == "." else place
            self._loaded[place] = AutoSAE.from_pretrained(self.name, subfolder=where, **options)
        return self._loaded[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        at = f" at {self.commit[:8]}" if self.commit else ""
        return f"SAECollection({self.name!r}{at}, {len(self)} autoencoders: {', '.join(self.index)})"


def load_saes(name: str, revision: str | None = None, subfolder: str = "", **options: Any) -> SAECollection:
    """The autoencoders of a repo or folder, ours or another library's, none of them loaded yet.

    Args:
        name (`str`): repo id or folder.
        revision (`str`, *optional*): branch, tag or commit; resolved once for all of them.
        subfolder (`str`): only what lies below it.
        options: for `AutoSAE.from_pretrained`, such as `token`, `dtype`, `device_map`.

    Raises:
        CheckpointError: if there is no autoencoder there, or the index is damaged.
        OSError: if the repo does not exist, is gated, or cannot be reached.

    Example:
        ```python
        saes = load_saes("user/gpt2-saes")
        sae = saes["layer_8"]
        ```
    """
    from ..conversion.files import open_files
    from ..conversion.registry import HUB_KEYS, members

    name, subfolder = split_name(name, subfolder)
    hub = {key: options[key] for key in HUB_KEYS if key in options}
    with explained(name):
        files = open_files(name, "", revision, (CONFIG,), **hub)
        index = read_index(files)
        remember(name, revision, files.commit, hub.get("cache_dir"))
    if index is None:
        local = Path(name).is_dir()  # there it costs nothing to look at each
        found = [place for place in members(files.at(subfolder)) if not _is_training(place)]
        root = ["."] if CONFIG in files.names and (not found or any(map(_is_weights, files.names))) else []
        with explained(name):
            index = {place: _describe(files, place) if local or place == "." else {} for place in [*root, *found]}
        index = {place: index[place] for place in sorted(index, key=natural)}
    elif not (files.commit and files.root):  # what the cache holds of a repo is not all of it
        index = present(index, files) | {place: {} for place in unlisted(index, files)}
    index = {place: entry for place, entry in index.items() if _below(place, subfolder)}
    if not index:
        raise CheckpointError(f"{name!r} holds no autoencoder{f' below {subfolder!r}' if subfolder else ''}.")
    return SAECollection(name, index, None if Path(name).is_dir() else files.commit, options)


def read_index(files: Files) -> dict[str, Entry] | None:
    """The index at the root of a repo or folder, or `None` where its `config.json` is none.

    Raises:
        CheckpointError: if it is damaged, or names a place outside the repo.
    """
    if CONFIG not in files.names:
        return None
    content = files.json(CONFIG)
    if content.get("model_type") != MODEL_TYPE:
        return None
    index = content.get("index")
    if not isinstance(index, dict) or not all(isinstance(entry, dict) for entry in index.values()):
        raise CheckpointError(f"{CONFIG} of {files.name!r} is the index of a collection, but lists no autoencoders.")
    for place in index:
        try:
            files.at(place)
        except ConversionError as error:
            raise CheckpointError(str(error)) from error
    return index


def present(index: Mapping[str, Entry], files: Files) -> dict[str, Entry]:
    """The entries of an index whose folders still hold weights: files may be deleted or moved by hand."""
    return {place: entry for place, entry in index.items() if place in _places(files.names)}


def unlisted(index: Mapping[str, Entry], files: Files) -> list[str]:
    """Places of autoencoders that an index does not know of."""
    known = {place for place in _places(files.names) if f"{place}/{CONFIG}" in files.names}
    return sorted(known - index.keys() - {"."}, key=natural)


def build_index(folder: str | Path) -> dict[str, Entry]:
    """What the saved autoencoders below a folder are, by their places in it."""
    folder = Path(folder)
    found = sorted(path.parent for path in folder.rglob(CONFIG) if path.parent != folder and not _hidden(path, folder))
    return {place.relative_to(folder).as_posix(): describe_folder(place) for place in found if list(_weights(place))}


def describe_folder(folder: Path) -> Entry:
    """One entry of an index: architecture, places, sizes, figures of the last evaluation, hashes of the weights.

    Raises:
        CheckpointError: if the config is not JSON.
    """
    report = read_json(folder / RESULTS) if (folder / RESULTS).is_file() else {}
    entry = _facts(read_json(folder / CONFIG), report)
    entry["sha256"] = {path.name: _digest(path) for path in _weights(folder)}
    return entry


def _describe(files: Files, place: str) -> Entry:
    """The same of a listed place, without hashes; nothing where it is another library's."""
    here = files.at("" if place == "." else place)
    config, report = here.find(CONFIG), here.find(RESULTS)
    return {} if config is None else _facts(files.json(config), {} if report is None else files.json(report))


def _facts(config: Mapping[str, Any], report: Mapping[str, Any]) -> Entry:
    kind = str(config.get("model_type", ""))
    if not kind.startswith("hf_sae_"):
        return {}
    entry: Entry = {"architecture": kind.removeprefix("hf_sae_")}
    entry |= {key: config[key] for key in FACTS if config.get(key) is not None}
    metrics = report.get("metrics")
    found = {key: metrics.get(key) for key in FIGURES} if isinstance(metrics, dict) else {}
    figures = {key: metric.get("value") for key, metric in found.items() if isinstance(metric, dict)}
    figures = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    return entry | ({"metrics": figures} if figures else {})


def index_json(index: Mapping[str, Entry]) -> str:
    """The text of a root `config.json`."""
    ordered = {place: index[place] for place in sorted(index, key=natural)}
    return json.dumps({"model_type": MODEL_TYPE, "index": ordered}, indent=1) + "\n"


def natural(place: str) -> list[Any]:
    """A key that sorts `layer_9` before `layer_10`."""
    import re

    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", place)]


def _below(place: str, subfolder: str) -> bool:
    return not subfolder or place == subfolder or PurePosixPath(place).is_relative_to(PurePosixPath(subfolder))


def _hidden(path: Path, folder: Path) -> bool:
    return _is_training(path.relative_to(folder).as_posix())


def _is_training(place: str) -> bool:
    """Whether a place is hidden or a checkpoint of a run: none of what a reader looks for."""
    return any(part.startswith((".", "checkpoint-")) for part in PurePosixPath(place).parts)


def _places(names: Iterable[str]) -> set[str]:
    return {str(PurePosixPath(name).parent) for name in names if _is_weights(PurePosixPath(name).name)}


def _is_weights(name: str) -> bool:
    return "/" not in name and name.startswith(("model", "adapter_model")) and name.endswith(".safetensors")


def _weights(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("model*.safetensors"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path.name} of {path.parent.name!r}: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} of {path.parent.name!r} holds no JSON object.")
    return value
