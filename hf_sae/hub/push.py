"""Uploading a saved folder as it is, with its own README.

transformers' `push_to_hub` writes a card of its own over ours; this does not.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError


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
) -> str:
    """Creates the model repo where it does not exist and uploads the folder in one commit.

    Args:
        folder (`str`): what `save_pretrained` wrote: it has to hold a `config.json`, or folders that do.
        repo_id (`str`): `user/name`.
        subfolder (`str`, *optional*): folder in the repo; its root when not given.
        private (`bool`, *optional*): visibility of a repo that is created; `None` is the account's default.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.
        revision (`str`, *optional*): branch to commit to; it is created where it does not exist.
        create_pr (`bool`): open a pull request instead of committing.
        commit_message (`str`, *optional*): title of the commit.
        ignore_patterns (`list[str]`, *optional*): files to leave out, as glob patterns.

    Returns:
        `str`: address of the commit, or of the pull request.

    Raises:
        CheckpointError: if the folder holds no saved autoencoder.
        OSError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / "config.json").is_file() and not any(folder.glob("*/config.json")):
        raise CheckpointError(f"{str(folder)!r} holds no config.json: save_pretrained a model there first.")
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=subfolder or "",
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or f"Upload {subfolder or 'autoencoder'} with hf-sae",
        ignore_patterns=[".saving-*", *(ignore_patterns or [])],
    )
    return commit.pr_url if create_pr and commit.pr_url else commit.commit_url
