"""The state of a pass over text on disk, so that a run that was killed goes on where it was last saved.

```
{folder}.unfinished/progress.json                      what has been read, of which text, by which autoencoders, and these files:
                    tokens-1000000/0-of-2-sae-0.safetensors  the state of one process and autoencoder
```

* `progress.json` is replaced in one step once all files beside it are whole; the files that it named before are then removed.
  So there are two saved states for a moment, and one otherwise, however long the run.
* States are sums: another number of processes may go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import DataError
from .latent_state import LatentState
from .ranks import Ranks


PROGRESS, FORMAT, VERSION = "progress.json", "hf_sae_harvest", 1
Settings = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a pass has come.

    Args:
        tokens (`int`): read so far.
        batches (`int`): of them.
        digest (`str`): hash of the ids that were read.
    """

    tokens: int = 0
    batches: int = 0
    digest: str = ""


class SavedPass:
    """Saves states of a pass beside its dataset, and finds them again.

    Args:
        folder (`str` or `Path`): of the dataset.
        settings (`dict`): what has to be the same to go on, as JSON values.
        ranks ([`Ranks`]): the processes; all of them see the folder.
        every (`int`, *optional*): tokens between two saves; `None` saves nothing.
    """

    def __init__(self, folder: str | Path, settings: Settings, ranks: Ranks, every: int | None) -> None:
        folder = Path(folder)
        self.folder = folder.with_name(f"{folder.name}.unfinished")
        self.settings, self.ranks, self.every = json.loads(json.dumps(settings)), ranks, every
        self._facts: dict[str, Any] = {}

    def begin(self, resume: bool, overwrite: bool, n_tokens: int) -> Progress:
        """What was saved of this pass; nothing to go on from is no error.

        Args:
            resume (`bool`): go on from it.
            overwrite (`bool`): where not, throw away what was saved.
            n_tokens (`int`): that the pass is to read.

        Raises:
            DataError: if something was saved and it is not said what to do with it, or it is of another pass.
        """
        there = (self.folder / PROGRESS).is_file()
        if there and not resume and not overwrite:
            raise DataError(
                f"{str(self.folder)!r} holds an unfinished pass: go on with it by resume=True (--resume), or throw it away by "
                "overwrite=True (--overwrite)."
            )
        self.ranks.wait()  # until all have looked
        if not (there and resume):
            if self.ranks.is_first:
                self.remove()
            self.ranks.wait()
            return Progress()
        self._facts = self._read()
        progress = Progress(**self._facts["progress"])
        self._compare(self._facts["settings"])
        if progress.tokens >= n_tokens:
            raise DataError(
                f"{progress.tokens:,} tokens were read before, and n_tokens={n_tokens:,}: ask for more, or overwrite."
            )
        return progress

    def load(self, states: Mapping[str, LatentState]) -> None:
        """Puts what was saved into the states: those of several processes are merged where fewer go on.

        Raises:
            DataError: if a file is missing or damaged.
        """
        for file in self._facts.get("files", ()):
            if file["rank"] % self.ranks.size == self.ranks.rank:
                state = states[file["sae"]]
                other = state.empty() if state.tokens else state
                other.load(self._tensors(file))
                if other is not state:
                    state.merge(other)

    def is_due(self, before: int, now: int) -> bool:
        """Whether to save between two counts of tokens."""
        return self.every is not None and now // self.every > before // self.every

    def save(self, states: Mapping[str, LatentState], progress: Progress) -> None:
        """Saves the states of all processes; what was saved before goes away when all are there.

        Raises:
            DataError: if they cannot be written, or the processes do not share the folder.
        """
        place = self.folder / f"tokens-{progress.tokens}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            own = [self._write(place, number, name, state) for number, (name, state) in enumerate(states.items())]
            (place / f"{self.ranks.rank}.json").write_text(json.dumps(own), encoding="utf-8")
            self.ranks.wait()
            if self.ranks.is_first:
                self._commit(place, progress)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"could not save the pass to {str(self.folder)!r}: {error}. What was saved before is still there: free space "
                "and resume, or turn saving off."
            ) from error

    def remove(self) -> None:
        """Removes all that was saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, place: Path, number: int, name: str, state: LatentState) -> dict[str, Any]:
        file = f"{self.ranks.rank}-of-{self.ranks.size}-sae-{number}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in state.tensors().items()}, place / file)
        facts = {"file": f"{place.name}/{file}", "rank": self.ranks.rank, "sae": name}
        return facts | {"sha256": _sha256(place / file)}

    def _commit(self, place: Path, progress: Progress) -> None:
        files = []
        for rank in range(self.ranks.size):
            facts = place / f"{rank}.json"
            if not facts.is_file():
                raise DataError(
                    f"process {rank} saved its state where process 0 does not see it: give a folder that all machines share, "
                    "or turn saving off (save_tokens=None, --save-tokens 0)."
                )
            files += json.loads(facts.read_text(encoding="utf-8"))
            facts.unlink()
        facts = {"format": FORMAT, "version": VERSION, "progress": asdict(progress), "settings": self.settings}
        new = self.folder / f"{PROGRESS}.new"
        new.write_text(json.dumps(facts | {"files": files}, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.folder / PROGRESS)
        for old in self.folder.glob("tokens-*"):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        path = self.folder / PROGRESS
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if (facts["format"], facts["version"]) != (FORMAT, VERSION):
                raise DataError(f"{str(path)!r} is of another version of hf-sae: start afresh with overwrite.")
            Progress(**facts["progress"])
            names = {(file["file"], file["rank"], file["sae"], file["sha256"]) for file in facts["files"]}
            if not names or not isinstance(facts["settings"], dict) or not all(map(_is_ours, facts["files"])):
                raise KeyError("files")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{str(path)!r} cannot be read ({error!r}): start afresh with overwrite=True (--overwrite)."
            ) from error
        return facts

    def _compare(self, saved: Mapping[str, Any]) -> None:
        for name, here in self.settings.items():
            if saved.get(name) != here:
                was, now = (json.dumps(value)[:120] for value in (saved.get(name), here))
                raise DataError(
                    f"the pass in {str(self.folder)!r} was begun with {name} = {was}, and this one has {now}. Go on with what "
                    "it was begun with, or start afresh with overwrite=True (--overwrite)."
                )

    def _tensors(self, file: Mapping[str, Any]) -> dict[str, Any]:
        path = self.folder / file["file"]
        try:
            if _sha256(path) != file["sha256"]:
                raise DataError(
                    f"{str(path)!r} is not what was saved: start afresh with overwrite=True (--overwrite)."
                )
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{str(path)!r} cannot be read: {error}. Start afresh with overwrite=True.") from error


def _is_ours(file: Mapping[str, Any]) -> bool:
    """Whether a listed file lies where states are saved."""
    folder, _, name = str(file["file"]).partition("/")
    return folder.startswith("tokens-") and name.endswith(".safetensors") and "/" not in name and "\\" not in name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
