"""Where shards lie: in a folder, or in a dataset repo of the Hub, from which they come one at a time."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...access import explained
from ...conversion.files import open_files
from ...errors import CheckpointError, DataError
from ...models.pinning import split_name
from .manifest import MANIFEST, Manifest, Shard


DATASET = "dataset"


class FolderShards:
    """A cache in a folder.

    Raises:
        DataError: if there is no finished one.
    """

    commit: str | None = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.manifest = Manifest.open(folder)

    def path(self, shard: Shard) -> Path:
        """Where a shard lies."""
        return self.folder / shard.file

    def fetch_ahead(self, shard: Shard) -> None:
        """Nothing to do: it is here."""

    def release(self, shard: Shard) -> None:
        """Nothing to do: it stays."""

    def repaired(self, shard: Shard) -> Path | None:
        """There is no other copy."""
        return None


class HubShards:
    """A cache in a dataset repo, at the commit that `revision` is now.

    Shards are downloaded when they are needed, the next one meanwhile in a thread. A download that was damaged is fetched
    once more.

    Args:
        repo_id (`str`): `user/name`.
        revision (`str`, *optional*): branch, tag or commit.
        keep (`bool`): downloads stay in the Hub's cache; otherwise each is deleted when the next shard is read.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.

    Raises:
        DataError: if the repo holds no cache.
        OSError: if the repo does not exist, is gated, or cannot be reached.
    """

    def __init__(
        self, repo_id: str, revision: str | None = None, keep: bool = True, token: str | bool | None = None
    ) -> None:
        try:
            self.name, rest = split_name(repo_id)
            if rest:
                raise DataError(f"{repo_id!r} is no dataset: a cache is a repo, give {self.name!r}.")
            with explained(self.name, DATASET):
                files = open_files(self.name, "", revision, (MANIFEST,), repo_type=DATASET, token=token)
                if MANIFEST not in files.names:
                    raise DataError(f"the dataset {self.name!r} holds no activation cache: it has no {MANIFEST}.")
                self.manifest = Manifest.from_json(files.path(MANIFEST).read_text(encoding="utf-8"))
        except CheckpointError as error:  # a name that is none
            raise DataError(str(error)) from error
        self.commit, self.token = files.commit, token
        self._own = None if keep else tempfile.TemporaryDirectory(prefix="hf-sae-cache-")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hf-sae-download")
        self._ahead: dict[str, Future[Path]] = {}

    def path(self, shard: Shard) -> Path:
        """Where a shard lies, once it is here."""
        coming = self._ahead.pop(shard.file, None)
        with explained(self.name, DATASET):
            return self._download(shard) if coming is None else coming.result()

    def fetch_ahead(self, shard: Shard) -> None:
        """Begins to download a shard that will be needed next."""
        if shard.file not in self._ahead:
            self._ahead[shard.file] = self._pool.submit(self._download, shard)

    def release(self, shard: Shard) -> None:
        """Deletes a shard that is not needed for now, unless downloads are kept."""
        if self._own is not None:
            (Path(self._own.name) / shard.file).unlink(missing_ok=True)

    def repaired(self, shard: Shard) -> Path | None:
        """A fresh download of a shard that came damaged."""
        with explained(self.name, DATASET):
            return self._download(shard, force_download=True)

    def _download(self, shard: Shard, **options: Any) -> Path:
        from huggingface_hub import hf_hub_download

        place = {} if self._own is None else {"local_dir": self._own.name}
        chosen: dict[str, Any] = {"repo_type": DATASET, "revision": self.commit, "token": self.token, **place}
        return Path(hf_hub_download(self.name, shard.file, **chosen, **options))


def open_shards(
    source: str | Path, revision: str | None = None, keep: bool = True, token: str | bool | None = None
) -> FolderShards | HubShards:
    """The cache in a folder, or in a dataset repo where there is no such folder.

    Raises:
        DataError: if there is none.
        OSError: if the Hub cannot be reached.
    """
    if Path(source).exists() or isinstance(source, Path):
        return FolderShards(source)
    return HubShards(source, revision, keep, token)
