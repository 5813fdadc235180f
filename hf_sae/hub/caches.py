"""Activation caches on the Hub: `push_cache`; [`hf_sae.activations.CachedStream`] reads them from there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..activations.cache.checking import damaged, problem
from ..activations.cache.manifest import MANIFEST, Manifest
from ..conversion.files import open_files
from ..errors import DataError
from .push import README, upload


if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from .push import Operations

DATASET = "dataset"
_SHARD = re.compile(r"activations-\d+\.safetensors")


def push_cache(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Creates the dataset repo where it does not exist and uploads a finished cache, whole or not at all.

    Every shard is compared with its checksum first. What arrived before an upload broke off is not sent again when it is called
    again. Shards of an earlier cache that this one does not have are removed by the same commit. Paths of this machine in the
    manifest go up as bare names. Text that somebody wrote into the card on the Hub stays.

    Args:
        folder (`str` or `Path`): what [`hf_sae.activations.write_cache`] wrote.
        repo_id (`str`): `user/name` of a dataset repo.
        private (`bool`, *optional*): visibility of a repo that is created; `None` is the account's default.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        revision (`str`, *optional*): branch to commit to; it is created where it does not exist.
        create_pr (`bool`): open a pull request instead of committing.
        commit_message (`str`, *optional*): title of the commit.

    Returns:
        `str`: address of the commit, or of the pull request.

    Raises:
        DataError: if the folder holds no finished cache, or a shard of it is damaged.
        CheckpointError: if the Hub refuses the card, or the repo id is none.
        OSError: if the Hub refuses or cannot be reached.

    Example:
        ```python
        push_cache("gpt2-layer-8", "user/gpt2-layer-8-activations")
        stream = CachedStream("user/gpt2-layer-8-activations")
        ```
    """
    root = Path(folder)
    manifest = Manifest.open(root)
    manifest = replace(manifest, source=without_paths(manifest.source))
    for shard in manifest.shards:
        if (wrong := problem(root / shard.file, shard)) is not None:
            raise DataError(damaged(shard, wrong))

    def operations(api: HfApi, parent: str | None) -> Operations:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        from .blocks import over
        from .cache_cards import render_cache_card

        there = open_files(repo_id, "", parent, repo_type=DATASET, token=api.token)
        before = there.text(README) if README in there.names else ""
        wanted = {shard.file for shard in manifest.shards}
        return [
            *(CommitOperationAdd(name, root / name) for name in sorted(wanted)),
            CommitOperationAdd(MANIFEST, manifest.to_json().encode()),
            CommitOperationAdd(README, over(render_cache_card(manifest, repo_id), before).encode()),
            *(CommitOperationDelete(n) for n in sorted(there.names) if _SHARD.fullmatch(n) and n not in wanted),
        ]

    return upload(
        repo_id,
        operations,
        commit_message or "Upload activations with hf-sae",
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        repo_type=DATASET,
    )


def without_paths(value: Any) -> Any:
    """JSON values in which a path of this machine is its last part: the rest means nothing elsewhere."""
    if isinstance(value, dict):
        return {key: without_paths(found) for key, found in value.items()}
    if isinstance(value, list):
        return [without_paths(found) for found in value]
    local = isinstance(value, str) and (Path(value).is_absolute() or ("/" in value and Path(value).exists()))
    return Path(value).name if local else value
