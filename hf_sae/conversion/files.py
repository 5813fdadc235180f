"""The files of a published checkpoint: a folder, or a Hub repo at one commit, listed at once and fetched one by one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConversionError
from ..models.pinning import no_answer, no_revision, pin
from ..plain_yaml import load_yaml


MAX_FILES = 200_000
MAX_TEXT = 1 << 24  # a config of more than 16 MiB is none


class Files:
    """Names relative to the top of a folder or repo, and the place inside that was asked for.

    Args:
        name (`str`): the repo id or folder, as it was asked for.
        names (`Iterable[str]`): every file, with `/` between folders.
        place (`str`): what is to be loaded: a folder, a file, or a file without its extension; `""` is the top.
        root (`Path`, *optional*): the folder; `None` for the Hub.
        commit (`str`, *optional*): of the repo.
        hub_kwargs (`dict`, *optional*): `token`, `cache_dir`, … for downloads.
        given (`dict`, *optional*): config fields that the caller set by hand, for what no file says.

    Raises:
        ConversionError: if `place` leads out of the folder.
    """

    def __init__(
        self,
        name: str,
        names: Iterable[str],
        place: str = "",
        root: Path | None = None,
        commit: str | None = None,
        hub_kwargs: dict[str, Any] | None = None,
        given: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.root, self.commit, self.hub_kwargs = name, root, commit, hub_kwargs or {}
        self.given = given or {}
        self.names = frozenset(names)
        parts = PurePosixPath(place.replace("\\", "/")).parts
        if ".." in parts or place.startswith("/"):
            raise ConversionError(f"subfolder={place!r} leads out of {name!r}: give a folder or file inside it.")
        self.place = "/".join(parts)
        self.used: dict[str, Path] = {}

    @property
    def source(self) -> str:
        """The repo id, or the folder's name: a path would tell of a machine and mean nothing elsewhere."""
        return self.name if self.root is None or self.commit else self.root.resolve().name

    @property
    def path_in_words(self) -> str:
        """Repo or folder and the asked place as one path, for formats whose names say what no file does."""
        local = self.root is not None and self.commit is None
        whole = str(self.root.absolute()) if local and self.root is not None else self.name
        return "/".join(part for part in (os.path.normpath(whole).replace("\\", "/").rstrip("/"), self.place) if part)

    def at(self, place: str) -> Files:
        """The same files with another place asked for."""
        return Files(self.name, self.names, place, self.root, self.commit, self.hub_kwargs, self.given)

    def find(self, basename: str) -> str | None:
        """The full name of a file directly in the asked folder, or `None`."""
        full = f"{self.place}/{basename}" if self.place else basename
        return full if full in self.names else None

    def above(self, basename: str) -> str | None:
        """The full name of a file in the asked folder or the nearest one above it, or `None`."""
        for folder in [self.place, *(str(p) for p in PurePosixPath(self.place).parents)]:
            full = f"{folder}/{basename}" if folder not in ("", ".") else basename
            if full in self.names:
                return full
        return None

    def asked(self, *extensions: str) -> str | None:
        """The one file that is meant, by its full name.

        It is the asked file itself, with or without its extension, or the only one of that kind directly in the asked folder.
        """
        for candidate in (self.place, *(self.place + extension for extension in extensions)):
            if candidate in self.names and candidate.endswith(extensions):
                return candidate
        prefix = f"{self.place}/" if self.place else ""
        inside = [
            n for n in self.names if n.startswith(prefix) and "/" not in n[len(prefix) :] and n.endswith(extensions)
        ]
        return inside[0] if len(inside) == 1 else None

    def path(self, name: str) -> Path:
        """Where a file lies on disk; it is downloaded where it has to be.

        Raises:
            OSError: if it cannot be downloaded.
        """
        if name not in self.used:
            self.used[name] = self.root / name if self.root is not None else self._download(name)
        return self.used[name]

    def _download(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.name, name, revision=self.commit, **self.hub_kwargs))

    def text(self, name: str) -> str:
        """A small text file.

        Raises:
            ConversionError: if it is larger than a config can be, or not UTF-8.
        """
        path = self.path(name)
        if path.stat().st_size > MAX_TEXT:
            raise ConversionError(f"{name!r} of {self.name!r} has {path.stat().st_size:,} bytes: that is no config.")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConversionError(f"{name!r} of {self.name!r} is not UTF-8 text: {error}.") from error

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            ConversionError: if it is not one.
        """
        try:
            value = json.loads(self.text(name))
        except (ValueError, RecursionError) as error:  # ValueError: numbers of thousands of digits, too
            raise ConversionError(f"{name!r} of {self.name!r} is not JSON: {error}.") from error
        return self._mapping(name, value)

    def yaml(self, name: str) -> dict[str, Any]:
        """A YAML mapping of plain values.

        Raises:
            ConversionError: if it is not one.
        """
        try:
            value = load_yaml(self.text(name))
        except ConversionError:
            raise
        except ValueError as error:  # also a date or number that is none
            raise ConversionError(f"{name!r} of {self.name!r} is not YAML: {error}") from error
        return self._mapping(name, value)

    def _mapping(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ConversionError(f"{name!r} of {self.name!r} holds a {type(value).__name__}, not a mapping.")
        return value

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that was used, by name."""
        out = {}
        for name, path in sorted(self.used.items()):
            with path.open("rb") as file:
                out[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return out


def open_files(
    name: str, place: str = "", revision: str | None = None, holding: tuple[str, ...] | None = None, **hub_kwargs: Any
) -> Files:
    """Lists a folder, or a Hub repo at the commit that `revision` is now.

    Without a network a repo that was downloaded before is read from the cache.

    Args:
        name (`str`): folder or repo id; a file here is its folder with the file asked for.
        place (`str`): folder or file inside, with or without its extension.
        revision (`str`, *optional*): branch, tag or commit.
        holding (`tuple[str, ...]`, *optional*): as in [`pin`].
        hub_kwargs: `token`, `cache_dir`, `local_files_only`, `force_download`, `repo_type` as in huggingface_hub.

    Raises:
        ConversionError: for a folder with too many files.
        OSError: if the repo does not exist, is gated, or cannot be reached and is not in the cache.
    """
    if Path(name).is_file():
        place, name = "/".join(part for part in (Path(name).name, place) if part), str(Path(name).parent)
    if Path(name).is_dir():
        return Files(name, _listing(Path(name)), place, Path(name), hub_kwargs=hub_kwargs)
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    token, local = hub_kwargs.get("token"), hub_kwargs.get("local_files_only", False)
    if not local:
        try:
            info = HfApi(token=token).repo_info(name, revision=revision, repo_type=hub_kwargs.get("repo_type"))
        except HFValidationError as error:
            raise ConversionError(f"{name!r} is neither a folder here nor an id on the Hub ('user/repo').") from error
        except RevisionNotFoundError as error:
            raise no_revision(name, str(revision), token, hub_kwargs.get("repo_type") or "model") from error
        except HfHubHTTPError:
            raise  # the Hub answered: gated, missing, private
        except no_answer():
            local = True
        else:
            names = [sibling.rfilename for sibling in getattr(info, "siblings", None) or []]
            return Files(name, names, place, None, info.sha, hub_kwargs)
    try:
        cached = {key: hub_kwargs[key] for key in ("cache_dir", "repo_type") if key in hub_kwargs}
        revision = pin(name, place, revision, local_files_only=True, holding=holding, **cached)
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, **cached))
    except LocalEntryNotFoundError as error:
        raise OSError(f"{name!r} is not in the cache and the Hub cannot be reached.") from error
    return Files(name, _listing(folder), place, folder, folder.name, hub_kwargs)


def _listing(folder: Path) -> list[str]:
    names = []
    for path in folder.rglob("*"):
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
        if len(names) > MAX_FILES:
            raise ConversionError(
                f"{str(folder)!r} holds more than {MAX_FILES:,} files: give the checkpoint's folder."
            )
    return names
