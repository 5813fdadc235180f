"""One load reads one commit: a branch or tag is resolved once, and the commit is what everything else asks for.

Without a network a branch means what the cache last saw of it. That may be a commit at which only another autoencoder of the
same repo was fetched (every download moves the branch); then the newest cached commit that holds the asked one is read.
"""

import difflib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError
from transformers.utils import logging

from .errors import CheckpointError


logger = logging.get_logger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WITH_FOLDER = re.compile(r"([\w.-]+/[\w.-]+):([\w./=+-]+)")
_TOO_LONG = re.compile(r"([\w.-]+/[\w.-]+)/([\w./=+-]+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CONTENT = {"model": (".safetensors", ".npz", ".pt", ".pth", ".bin"), "dataset": (".parquet",)}


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
    holding: tuple[str, ...] | None = None,
    repo_type: str = "model",
) -> str | None:
    """The commit to read a repo at, or `revision` as it was given where there is nothing to resolve.

    Args:
        name (`str`): repo id or folder.
        subfolder (`str`): what will be read; only looked at without a network.
        revision (`str`, *optional*): branch, tag or commit.
        token, cache_dir, local_files_only: as in huggingface_hub.
        holding (`tuple[str, ...]`, *optional*): how the name of a file ends without which a cached commit is of no use; by
            default, weights or tables.
        repo_type (`str`): `model` or `dataset`.

    Raises:
        CheckpointError: if the repo has no such revision; what it has is listed.
    """
    if Path(name).exists() or is_commit(revision):
        return revision
    if not local_files_only:
        try:
            return HfApi(token=token).repo_info(name, revision=revision, repo_type=repo_type).sha
        except RevisionNotFoundError as error:
            raise no_revision(name, str(revision), token, repo_type) from error
        except (HfHubHTTPError, HFValidationError):
            return revision  # the Hub answered, or need not be asked: whoever loads says what is wrong
        except no_answer():
            pass
    root = Path(cache_dir or constants.HF_HUB_CACHE) / _folder(name, repo_type)
    return _cached(name, root, subfolder.strip("/"), revision, holding or CONTENT[repo_type])


def no_revision(
    name: str, revision: str, token: str | bool | None = None, repo_type: str = "model"
) -> CheckpointError:
    """The error for a revision that a repo does not have, with those that it has."""
    try:
        refs = HfApi(token=token).list_repo_refs(name, repo_type=repo_type)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
    except (HfHubHTTPError, *no_answer()):
        known = []
    nearest = difflib.get_close_matches(revision, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(map(repr, known[:12])) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    has = (
        f"It has {shown}; a commit or a pull request ('refs/pr/1') will do, too."
        if known
        else "Give a branch or commit."
    )
    return CheckpointError(f"{name!r} has no such revision: {revision!r}.{hint} {has}")


def remember(
    name: str,
    revision: str | None,
    commit: str | None,
    cache_dir: str | Path | None = None,
    repo_type: str = "model",
) -> None:
    """Writes down what a branch, tag or short hash meant, as huggingface_hub does, to be found without a network.

    Files are fetched by commit, of which huggingface_hub keeps no such note. It is made once they are there: one about a
    commit of which nothing is cached would make huggingface_hub take the repo's cache for damaged.
    """
    root = Path(cache_dir or constants.HF_HUB_CACHE) / _folder(name, repo_type)
    revision = revision or "main"
    if (
        Path(name).exists()
        or revision == commit
        or not is_commit(commit)
        or not (root / "snapshots" / str(commit)).is_dir()
    ):
        return
    target = root / "refs" / revision
    if not target.resolve().is_relative_to((root / "refs").resolve()):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(str(commit))
        os.replace(temporary, target)
    except OSError:  # a cache that may only be read
        return


def _cached(name: str, root: Path, subfolder: str, revision: str | None, holding: tuple[str, ...]) -> str | None:
    wanted = revision or "main"
    found = [path.name for path in _snapshots(root) if _holds(path, subfolder, holding)]
    known = _reference(root, wanted)
    if known in found:
        return known
    if re.fullmatch(r"[0-9a-f]{7,39}", wanted) and (short := [sha for sha in found if sha.startswith(wanted)]):
        return short[0]
    if wanted != "main" or not found:
        return revision
    if known is not None or len(found) > 1:  # the only commit that was ever fetched is no surprise
        logger.warning(
            "%s at %r is not in the cache as of the branch's last known commit: commit %s, the newest one cached with it, is "
            "read. Give revision=%r to pin it.",
            name,
            subfolder or ".",
            found[0][:8],
            found[0],
        )
    return found[0]


def _folder(name: str, repo_type: str) -> str:
    return f"{repo_type}s--" + name.replace("/", "--")


def _reference(root: Path, revision: str) -> str | None:
    path = root / "refs" / revision
    try:
        return path.read_text(encoding="utf-8").strip() if path.resolve().is_relative_to(root.resolve()) else None
    except (OSError, ValueError):
        return None


def _snapshots(root: Path) -> Iterator[Path]:
    """Every cached commit, the newest first."""
    folder = root / "snapshots"
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    yield from sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _holds(snapshot: Path, subfolder: str, holding: tuple[str, ...]) -> bool:
    if not subfolder:
        return any(path.is_file() and path.name.endswith(holding) for path in snapshot.iterdir())
    inside = snapshot / subfolder
    named = inside.parent.iterdir() if inside.parent.is_dir() else ()
    # a file, with or without its extension, or a folder
    files = [p for p in named if p.is_file() and (p.name == inside.name or p.name.startswith(f"{inside.name}."))]
    return any(path.name.endswith(holding) for path in (*files, *inside.rglob("*")))


def no_answer() -> tuple[Any, ...]:
    """What can be raised where the Hub does not answer: the system's errors and those of huggingface_hub's HTTP client.

    The client changed with huggingface_hub's versions; its base error is what `HfHubHTTPError` derives from first. That one
    itself, an answer, is an `OSError` too: catch it before.
    """
    return OSError, HfHubHTTPError.__mro__[1]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, …"""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def no_room(name: str, error: BaseException) -> str | None:
    """What to do where the disk is too small for a download, or `None` where an error is another."""
    full = [cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno in _FULL]
    if not full:
        return None
    return (
        f"no room for {name!r} on the disk: {full[0].strerror}. Free space, or set HF_HOME to a folder on a larger disk, and try "
        "again."
    )


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, which means the same for ever."""
    return bool(_COMMIT.fullmatch(revision or ""))


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of a `from_pretrained`, those that [`pin`] takes."""
    return {key: kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in kwargs}
