"""One load reads one commit: a branch or tag is resolved once, and the commit is what everything else asks for.

Without a network a branch means what the cache last saw of it. That may be a commit at which only another autoencoder of the
same repo was fetched (every download moves the branch); then the newest cached commit that holds the asked one is read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError, HFValidationError
from transformers.utils import logging

from .errors import CheckpointError


logger = logging.get_logger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WITH_FOLDER = re.compile(r"([\w.-]+/[\w.-]+):([\w./=+-]+)")
_TOO_LONG = re.compile(r"([\w.-]+/[\w.-]+)/([\w./=+-]+)")
_CONTENT = {"model": (".safetensors", ".npz", ".pt", ".pth", ".bin"), "dataset": (".parquet",)}


def split_name(name: str, subfolder: str = "") -> tuple[str, str]:
    """Repo and subfolder of a name, which may be written `user/repo:subfolder`.

    Raises:
        CheckpointError: for a repo id with a path in it, which would be looked up as another repo.
    """
    if Path(name).exists():
        return name, subfolder
    short = _WITH_FOLDER.fullmatch(name)
    if short and not subfolder:
        return short[1], short[2]
    long = _TOO_LONG.fullmatch(name)
    if long:
        raise CheckpointError(
            f"{name!r} is no folder here, and a repo id is 'user/repo': did you mean {long[1]!r} with "
            f"subfolder={long[2]!r}?"
        )
    return name, subfolder


def pin(
    name: str,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    repo_type: str = "model",
) -> str | None:
    """The commit to read a repo at, or `revision` as it was given where there is nothing to resolve.

    Args:
        name (`str`): repo id or folder.
        subfolder (`str`): what will be read; only looked at without a network.
        revision (`str`, *optional*): branch, tag or commit.
        token, cache_dir, local_files_only, repo_type: as in huggingface_hub.
    """
    if Path(name).exists() or is_commit(revision):
        return revision
    if not local_files_only:
        try:
            return HfApi(token=token).repo_info(name, revision=revision, repo_type=repo_type).sha
        except (HfHubHTTPError, HFValidationError):
            return revision  # the Hub answered, or need not be asked: whoever loads says what is wrong
        except no_answer():
            pass
    return _cached(name, subfolder, revision, cache_dir, repo_type)


def _cached(
    name: str, subfolder: str, revision: str | None, cache_dir: str | Path | None, repo_type: str
) -> str | None:
    found = list(_snapshots(name, cache_dir, repo_type))
    wanted = revision or "main"
    holding = [(sha, refs) for sha, refs, files in found if _holds(files, subfolder, _CONTENT[repo_type])]
    for sha, refs in holding:
        if wanted in refs:
            return sha
    if revision not in (None, "main") or not holding:
        return revision
    sha = holding[0][0]
    logger.warning(
        "%s at %r is not in the cache as of the branch's last known commit: commit %s, the newest one cached with it, is read. "
        "Give revision=%r to pin it.",
        name,
        subfolder or ".",
        sha[:8],
        sha,
    )
    return sha


def _snapshots(
    name: str, cache_dir: str | Path | None, repo_type: str
) -> Iterator[tuple[str, frozenset[str], list[str]]]:
    """Commit, branches and files of every cached snapshot, the newest first."""
    try:
        repos = scan_cache_dir(cache_dir).repos
    except (CacheNotFound, ValueError):
        return
    for repo in repos:
        if repo.repo_id == name and repo.repo_type == repo_type:
            for snapshot in sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True):
                root = snapshot.snapshot_path
                files = [file.file_path.relative_to(root).as_posix() for file in snapshot.files]
                yield snapshot.commit_hash, snapshot.refs, files


def _holds(files: list[str], subfolder: str, content: tuple[str, ...]) -> bool:
    prefix = subfolder.strip("/")
    inside = [f for f in files if f == prefix or f.startswith((f"{prefix}/", f"{prefix}.") if prefix else "")]
    if not prefix:
        inside = [f for f in files if "/" not in f]
    return any(f.endswith(content) for f in inside)


def no_answer() -> tuple[Any, ...]:
    """What can be raised where the Hub does not answer: the system's errors and those of huggingface_hub's HTTP client.

    The client changed with huggingface_hub's versions; its base error is what `HfHubHTTPError` derives from first. That one
    itself, an answer, is an `OSError` too: catch it before.
    """
    return OSError, HfHubHTTPError.__mro__[1]


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, which means the same for ever."""
    return bool(_COMMIT.fullmatch(revision or ""))


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of a `from_pretrained`, those that [`pin`] takes."""
    return {key: kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in kwargs}
