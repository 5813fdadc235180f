"""Feature datasets on the Hub: `load_features` and `push_features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..access import explained
from ..conversion.files import Files, open_files
from ..errors import CheckpointError, DataError
from ..models.pinning import pin, split_name
from .push import README, upload
from .selection import additions


if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from ..features.reading import FeatureDataset
    from .push import Operations

DATASET = "dataset"


def load_features(
    name: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> FeatureDataset:
    """What is known of the features of an autoencoder: statistics, contexts, labels and vectors; none of it read yet.

    Args:
        name (`str` or `Path`): id of a dataset repo, or a folder.
        revision (`str`, *optional*): branch, tag or commit; resolved once, and recorded in `.commit`.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        cache_dir (`str` or `Path`, *optional*): instead of the Hub's usual cache.
        local_files_only (`bool`): read the cache only.

    Raises:
        DataError: if there is no feature dataset there, or a damaged one.
        OSError: if the repo does not exist, is gated, or cannot be reached and is not in the cache.

    Example:
        ```python
        dataset = load_features("user/gpt2-sae-dashboards")
        record = dataset.feature("layer_8", 4011)  # a few hundred kB, however large the dataset is
        dataset.examples  # a datasets.Dataset
        ```
    """
    from ..features.reading import FeatureDataset

    name = str(name)
    if Path(name).is_dir():
        return FeatureDataset.open(name)
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    try:
        name, rest = split_name(name)
        if rest:
            raise DataError(f"{name}:{rest} is no dataset: a feature dataset is a repo, give {name!r}.")
        with explained(name, DATASET):
            commit = pin(name, "data", revision, repo_type=DATASET, **options)
            files = open_files(name, "", commit, repo_type=DATASET, **options)
        return FeatureDataset(files, None if files.root is not None else _Ranges(files, token))
    except CheckpointError as error:  # a name that is none
        raise DataError(str(error)) from error


def push_features(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    ignore_patterns: list[str] | None = None,
) -> str:
    """Creates the dataset repo where it does not exist and uploads a feature dataset, whole or not at all.

    Every row is checked first. Tables of an earlier upload that this one does not have are removed by the same commit. The card
    is made from what is uploaded; text that somebody wrote into it, in the folder or on the Hub, stays.

    Args:
        folder (`str` or `Path`): what [`hf_sae.features.writing.FeatureWriter`] wrote.
        repo_id (`str`): `user/name` of a dataset repo.
        private (`bool`, *optional*): visibility of a repo that is created; `None` is the account's default.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        revision (`str`, *optional*): branch to commit to; it is created where it does not exist.
        create_pr (`bool`): open a pull request instead of committing.
        commit_message (`str`, *optional*): title of the commit.
        ignore_patterns (`list[str]`, *optional*): files to leave out, as glob patterns; pickles and hidden files always are.

    Returns:
        `str`: address of the commit, or of the pull request.

    Raises:
        DataError: if the folder holds no feature dataset, or a row of it is not as the schema says.
        CheckpointError: if the Hub refuses the card, or the repo id is none.
        OSError: if the Hub refuses or cannot be reached.
    """
    from ..features.reading import FeatureDataset

    folder = Path(folder)
    dataset = FeatureDataset.open(folder)
    dataset.validate()

    def operations(api: HfApi, parent: str | None) -> Operations:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        from .blocks import over
        from .feature_cards import render_features_card

        files = {file.path_in_repo: file for file in additions(folder, "", ignore_patterns or ())}
        there = open_files(repo_id, "", parent, repo_type=DATASET, token=api.token)
        before = there.text(README) if README in there.names else ""
        own = (folder / README).read_text(encoding="utf-8", errors="replace") if README in files else ""
        card = over(render_features_card(dataset.manifest, repo_id, own), before)
        files[README] = CommitOperationAdd(README, card.encode())
        gone = [name for name in sorted(there.names) if _is_table(name) and name not in files]
        return [*files.values(), *(CommitOperationDelete(name) for name in gone)]

    return upload(
        repo_id,
        operations,
        commit_message or "Upload features with hf-sae",
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        repo_type=DATASET,
    )


def _is_table(name: str) -> bool:
    return name.startswith("data/") and name.endswith(".parquet")


class _Ranges:
    """Opens files of a dataset repo at one commit: from the cache where they are in it, else range by range."""

    def __init__(self, files: Files, token: str | bool | None) -> None:
        self.files, self.token = files, token

    def __call__(self, name: str) -> BinaryIO:
        from huggingface_hub import HfFileSystem, try_to_load_from_cache

        options = {"cache_dir": self.files.hub_kwargs.get("cache_dir"), "revision": self.files.commit}
        cached = try_to_load_from_cache(self.files.name, name, repo_type=DATASET, **options)
        if isinstance(cached, str):
            return Path(cached).open("rb")
        # no read-ahead: Parquet asks for the ranges that it needs
        place = f"datasets/{self.files.name}@{self.files.commit}/{name}"
        return HfFileSystem(token=self.token).open(place, "rb", cache_type="none")
