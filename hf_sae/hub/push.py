"""Uploading a saved folder as it is, with its own README, so that nobody ever sees half of it.

* transformers' `push_to_hub` writes a blank card over ours, and `upload_folder` of huggingface_hub may commit in several
  parts. Here the files and the index of the repo go up in one commit.
* Where they are too many for one commit, they go to a pull request of this call's own, which is merged when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError
from .collections import ADAPTER, CONFIG, build_index, describe_folder, index_json, present, read_index
from .refusals import readable
from .selection import additions as files_of


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

    from ..conversion.files import Files

    Operations = list[CommitOperationAdd | CommitOperationDelete]

ONE_COMMIT = 200  # files; more go up in parts
ATTEMPTS = 3
README = "README.md"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    subfolder: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    ignore_patterns: list[str] | None = None,
    training_state: bool = False,
) -> str:
    """Creates the model repo where it does not exist and uploads the folder, whole or not at all.

    A repo with autoencoders in subfolders has an index at its root (`hf_sae.hub.collections`), which the same commit
    brings up to date. What readers wrote into the cards on the Hub stays (`hf_sae.hub.blocks`); weights that are replaced go, and
    with them what was measured on them (`hf_sae.hub.companions`).

    Args:
        folder (`str`): what `save_pretrained` wrote: it has to hold a `config.json`, or folders that do (a sweep).
        repo_id (`str`): `user/name`.
        subfolder (`str`, *optional*): folder in the repo; its root when not given.
        private (`bool`, *optional*): visibility of a repo that is created; `None` is the account's default.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        revision (`str`, *optional*): branch to commit to; it is created where it does not exist.
        create_pr (`bool`): open a pull request instead of committing.
        commit_message (`str`, *optional*): title of the commit.
        ignore_patterns (`list[str]`, *optional*): files to leave out, as glob patterns; pickles and hidden files always are.
        training_state (`bool`): also upload what only a resumed training needs.

    Returns:
        `str`: address of the commit, or of the pull request.

    Raises:
        CheckpointError: if the folder holds no saved autoencoder, or the Hub refuses the card.
        OSError: if the Hub refuses or cannot be reached.
    """
    folder, place = Path(folder), (subfolder or "").strip("/")
    saved = (folder / CONFIG).is_file() or (folder / ADAPTER).is_file()
    index = {} if saved else build_index(folder)
    if not saved and not index:
        raise CheckpointError(f"{str(folder)!r} holds no config.json: save_pretrained a model there first.")
    files = files_of(folder, place, ignore_patterns or (), training_state)
    title = commit_message or f"Upload {place or ('autoencoders' if index else 'autoencoder')} with hf-sae"
    if place and not training_state and not (folder / ADAPTER).is_file():
        index = {place: describe_folder(folder)} if not index else {f"{place}/{k}": v for k, v in index.items()}

    def operations(api: HfApi, parent: str | None) -> Operations:
        from huggingface_hub import CommitOperationDelete

        from ..conversion.files import open_files
        from .companions import stale

        there = open_files(repo_id, "", parent, (CONFIG,), token=api.token)
        wanted = [with_own_text(copy(file), there) for file in files]  # they remember what was done with them
        names = {file.path_in_repo for file in wanted}
        if index and not training_state:
            wanted += _root(repo_id, there, index, names)
        gone = [name for inside in index or [place] for name in stale(inside, names, there.names)]
        return [*wanted, *map(CommitOperationDelete, gone)]

    return upload(repo_id, operations, title, private=private, token=token, revision=revision, create_pr=create_pr)


def upload(
    repo_id: str,
    operations: Callable[[HfApi, str | None], Operations],
    title: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    repo_type: str = "model",
) -> str:
    """Creates a repo where it does not exist and commits to it, whole or not at all; returns the address.

    Args:
        repo_id (`str`), private, token, revision, create_pr: as in [`push_folder`].
        operations (`Callable`): what to commit, given the API and the commit, or branch, that it comes on; it is asked again
            where somebody else committed meanwhile.
        title (`str`): of the commit.
        repo_type (`str`): `model` or `dataset`.

    Raises:
        CheckpointError, OSError: as in [`push_folder`].
    """
    from huggingface_hub import HfApi

    with readable(repo_id, repo_type):
        api = HfApi(token=token)
        _prepare(api, repo_id, private, None if create_pr else revision, repo_type)
        for attempt in range(ATTEMPTS):
            parent = None if create_pr else api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
            wanted = operations(api, parent or revision)
            try:
                commit = _send(api, repo_id, wanted, title, revision, create_pr, parent, repo_type)
            except OSError as error:
                if attempt + 1 < ATTEMPTS and (isinstance(error, _OvertakenError) or _overtaken(error)):
                    continue  # somebody committed meanwhile: take their index into account
                raise
            return commit.pr_url if create_pr and commit.pr_url else commit.commit_url
    raise OSError(f"{repo_id!r} changed {ATTEMPTS} times during the upload: try again.")


def with_own_text(file: CommitOperationAdd, there: Files) -> CommitOperationAdd:
    """The file; a card with what its readers wrote into the one that it replaces."""
    from huggingface_hub import CommitOperationAdd

    from .blocks import over
    from .cards import known_tags

    name = file.path_in_repo
    if Path(name).name != README or name not in there.names:
        return file
    with file.as_file() as content:
        local = content.read().decode("utf-8", errors="replace")
    return CommitOperationAdd(name, over(local, there.text(name), known_tags()).encode())


def prepare(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> None:
    """Creates the model repo where it does not exist, and finds out whether it may be written to.

    Raises:
        CheckpointError: for a name that is no repo id, or `private` where everybody can read the repo.
        OSError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with readable(repo_id):
        _prepare(HfApi(token=token), repo_id, private, None, "model")


def _prepare(api: HfApi, repo_id: str, private: bool | None, branch: str | None, repo_type: str) -> None:
    """Creates repo and branch where they do not exist.

    Raises:
        CheckpointError: if something private would go to a repo that everybody can read.
    """
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise CheckpointError(
            f"{repo_id!r} exists and is public: nothing was uploaded. Make it private in its settings, or push without private=True."
        )
    if branch is not None and not branch.startswith("refs/"):
        api.create_branch(repo_id, branch=branch, exist_ok=True, repo_type=repo_type)


def group(
    repo_ids: list[str],
    title: str,
    *,
    token: str | bool | None = None,
    private: bool = False,
    repo_type: Literal["model", "dataset"] = "model",
) -> str:
    """Lists repos in a Hub collection of yours, which is created where it does not exist, and returns its address.

    Args:
        repo_ids (`list[str]`): repos.
        title (`str`): of the collection.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        private (`bool`): visibility of a collection that is created.
        repo_type (`str`): of the repos, `model` or `dataset`.

    Raises:
        OSError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with readable(title.replace("/", " ")):
        api = HfApi(token=token)
        collection = api.create_collection(title, private=private, exists_ok=True)
        for repo_id in repo_ids:
            api.add_collection_item(collection.slug, repo_id, repo_type, exists_ok=True)
    return collection.url


def _root(repo_id: str, there: Files, index: dict[str, Any], written: set[str]) -> list[CommitOperationAdd]:
    """The index with the new entries, and the card that lists them, unless the root belongs to something else."""
    from huggingface_hub import CommitOperationAdd

    from .cards import ASSETS, is_generated_text
    from .collection_cards import render_collection_card
    from .plots import frontier

    known = read_index(there)
    if CONFIG in written or (CONFIG in there.names and known is None):
        return []
    index = present(known or {}, there) | index
    before = there.text(README) if README in there.names else ""
    out = [CommitOperationAdd(CONFIG, index_json(index).encode())]
    if README not in written:
        plot = frontier(index)
        out.append(CommitOperationAdd(README, render_collection_card(repo_id, index, before, plot).encode()))
        if plot is not None and is_generated_text(before):
            out.append(CommitOperationAdd(f"{ASSETS}/{plot.file}", plot.png))
    return out


def _send(
    api: HfApi,
    repo_id: str,
    operations: Operations,
    title: str,
    revision: str | None,
    create_pr: bool,
    parent: str | None,
    repo_type: str,
) -> CommitInfo:
    if len(operations) <= ONE_COMMIT:
        return api.create_commit(
            repo_id,
            operations,
            repo_type=repo_type,
            commit_message=title,
            revision=revision,
            create_pr=create_pr or None,
            parent_commit=parent,
        )
    if revision not in (None, "main"):
        raise CheckpointError(
            f"{len(operations)} files are too many for one commit to {revision!r}: push to main, or with create_pr=True."
        )
    # weights first, what makes them visible (index and card) last
    operations.sort(key=lambda operation: operation.path_in_repo in (CONFIG, README))
    pull = api.create_pull_request(repo_id, title=title, repo_type=repo_type)
    for start in range(0, len(operations), ONE_COMMIT):
        part = operations[start : start + ONE_COMMIT]
        commit = api.create_commit(
            repo_id, part, commit_message=title, revision=pull.git_reference, repo_type=repo_type
        )
    if create_pr:
        commit.pr_url = pull.url
        return commit
    if api.repo_info(repo_id, repo_type=repo_type).sha != parent:  # its index would contradict what main has become
        said = "main moved on; pushed again."
        api.change_discussion_status(repo_id, pull.num, "closed", comment=said, repo_type=repo_type)
        raise _OvertakenError
    api.change_discussion_status(repo_id, pull.num, "open", repo_type=repo_type)  # it begins as a draft
    api.merge_pull_request(repo_id, pull.num, repo_type=repo_type)
    return commit


class _OvertakenError(OSError):
    """The branch moved while a pull request was filled."""


def _overtaken(error: OSError) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) == 412
