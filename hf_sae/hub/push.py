"""Uploading a saved folder as it is, with its own README, so that nobody ever sees half of it.

* transformers' `push_to_hub` writes a blank card over ours, and `upload_folder` of huggingface_hub may commit in several
  parts. Here the files and the index of the repo go up in one commit.
* Where they are too many for one commit, they go to a pull request of this call's own, which is merged when it is whole.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..access import explained
from ..errors import CheckpointError
from .collections import ADAPTER, CONFIG, build_index, describe_folder, index_json, present, read_index
from .selection import additions as files_of


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

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
    brings up to date.

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
    from huggingface_hub import HfApi

    folder, place = Path(folder), (subfolder or "").strip("/")
    saved = (folder / CONFIG).is_file() or (folder / ADAPTER).is_file()
    index = {} if saved else build_index(folder)
    if not saved and not index:
        raise CheckpointError(f"{str(folder)!r} holds no config.json: save_pretrained a model there first.")
    files = files_of(folder, place, ignore_patterns or (), training_state)
    title = commit_message or f"Upload {place or ('autoencoders' if index else 'autoencoder')} with hf-sae"
    with readable(repo_id):
        api = HfApi(token=token)
        _prepare(api, repo_id, private, None if create_pr else revision)
        if place and not training_state and not (folder / ADAPTER).is_file():
            index = {place: describe_folder(folder)} if not index else {f"{place}/{k}": v for k, v in index.items()}
        for attempt in range(ATTEMPTS):
            parent = None if create_pr else api.model_info(repo_id, revision=revision).sha
            additions = [copy(file) for file in files]  # they remember what was done with them
            if index and not training_state:
                additions += _root(api, repo_id, parent or revision, index, {a.path_in_repo for a in additions})
            try:
                commit = _send(api, repo_id, additions, title, revision, create_pr, parent)
            except OSError as error:
                if attempt + 1 < ATTEMPTS and (isinstance(error, _OvertakenError) or _overtaken(error)):
                    continue  # somebody committed meanwhile: take their index into account
                raise
            return commit.pr_url if create_pr and commit.pr_url else commit.commit_url
    raise OSError(f"{repo_id!r} changed {ATTEMPTS} times during the upload: try again.")


def prepare(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> None:
    """Creates the model repo where it does not exist, and finds out whether it may be written to.

    Raises:
        CheckpointError: for a name that is no repo id, or `private` where everybody can read the repo.
        OSError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with readable(repo_id):
        _prepare(HfApi(token=token), repo_id, private, None)


def _prepare(api: HfApi, repo_id: str, private: bool | None, branch: str | None) -> None:
    """Creates repo and branch where they do not exist.

    Raises:
        CheckpointError: if something private would go to a repo that everybody can read.
    """
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise CheckpointError(
            f"{repo_id!r} exists and is public: nothing was uploaded. Make it private in its settings, or push without private=True."
        )
    if branch is not None and not branch.startswith("refs/"):
        api.create_branch(repo_id, branch=branch, exist_ok=True)


def group(repo_ids: list[str], title: str, *, token: str | bool | None = None, private: bool = False) -> str:
    """Lists repos in a Hub collection of yours, which is created where it does not exist, and returns its address.

    Args:
        repo_ids (`list[str]`): model repos.
        title (`str`): of the collection.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        private (`bool`): visibility of a collection that is created.

    Raises:
        OSError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with readable(title.replace("/", " ")):
        api = HfApi(token=token)
        collection = api.create_collection(title, private=private, exists_ok=True)
        for repo_id in repo_ids:
            api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    return collection.url


def _root(
    api: HfApi, repo_id: str, revision: str | None, index: dict[str, Any], written: set[str]
) -> list[CommitOperationAdd]:
    """The index with the new entries, and the card that lists them, unless the root belongs to something else."""
    from huggingface_hub import CommitOperationAdd

    from ..conversion.files import open_files
    from .cards import is_generated_text, render_collection_card

    files = open_files(repo_id, "", revision, (CONFIG,), token=api.token)
    known = read_index(files)
    if CONFIG in written or (CONFIG in files.names and known is None):
        return []
    index = present(known or {}, files) | index
    before = files.text(README) if README in files.names else ""
    out = [CommitOperationAdd(CONFIG, index_json(index).encode())]
    if README not in written and is_generated_text(before):
        out.append(CommitOperationAdd(README, render_collection_card(repo_id, index, before).encode()))
    return out


def _send(
    api: HfApi,
    repo_id: str,
    additions: list[CommitOperationAdd],
    title: str,
    revision: str | None,
    create_pr: bool,
    parent: str | None,
) -> CommitInfo:
    if len(additions) <= ONE_COMMIT:
        return api.create_commit(
            repo_id,
            additions,
            commit_message=title,
            revision=revision,
            create_pr=create_pr or None,
            parent_commit=parent,
        )
    if revision not in (None, "main"):
        raise CheckpointError(
            f"{len(additions)} files are too many for one commit to {revision!r}: push to main, or with create_pr=True."
        )
    # weights first, what makes them visible (index and card) last
    additions.sort(key=lambda addition: addition.path_in_repo in (CONFIG, README))
    pull = api.create_pull_request(repo_id, title=title)
    for start in range(0, len(additions), ONE_COMMIT):
        part = additions[start : start + ONE_COMMIT]
        commit = api.create_commit(repo_id, part, commit_message=title, revision=pull.git_reference)
    if not create_pr:
        if api.model_info(repo_id).sha != parent:  # its index would contradict what main has become: make it again
            api.change_discussion_status(repo_id, pull.num, "closed", comment="main moved on; pushed again.")
            raise _OvertakenError
        api.change_discussion_status(repo_id, pull.num, "open")  # it begins as a draft
        api.merge_pull_request(repo_id, pull.num)
        return commit
    commit.pr_url = pull.url
    return commit


class _OvertakenError(OSError):
    """The branch moved while a pull request was filled."""


def _overtaken(error: OSError) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) == 412


@contextmanager
def readable(repo_id: str) -> Generator[None]:
    """Within it, what the Hub answers to a write becomes an error that says what to do.

    Raises:
        CheckpointError: for a repo id or a card that the Hub does not take.
        OSError: for a missing token or permission, or a Hub that does not answer.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from ..models.pinning import no_answer, split_name

    split_name(repo_id)
    try:
        with explained(repo_id):
            yield
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is no repo id: give 'user/name'.") from error
    except CheckpointError:
        raise
    except ValueError as error:  # what the Hub says of a card's header
        raise CheckpointError(f"the Hub does not take this upload to {repo_id!r}: {error}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = {
            401: "no valid token: run `hf auth login`, or pass token=.",
            403: "this token may not write there: use one with write permission, or a namespace of yours.",
        }.get(status or 0)
        if reason is None:
            raise
        raise OSError(f"cannot push to {repo_id!r}: {reason}") from error
    except RuntimeError as error:  # huggingface_hub's and hf-xet's, when a file breaks off
        why = error.__cause__ or error
        raise OSError(
            f"the upload to {repo_id!r} broke off: {error} ({why}). Nothing was committed; run it again, what has arrived is not "
            "sent twice."
        ) from error
    except no_answer() as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise
        raise OSError(
            f"cannot push to {repo_id!r}: the Hub cannot be reached ({error}). Nothing was committed."
        ) from error
