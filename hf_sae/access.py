"""What to do when a repo of the Hub cannot be read: a licence to accept, a network that is missing, a name that is wrong."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def explained(name: str, repo_type: str = "model") -> Generator[None]:
    """Within it, what huggingface_hub and transformers raise about access becomes an `OSError` that names the fix.

    Args:
        name (`str`): the repo.
        repo_type (`str`): `model` or `dataset`.

    Raises:
        OSError: instead of an error about a gated, missing or unreachable repo; other errors pass as they are.
    """
    try:
        yield
    except OSError as error:
        advice = _advice(name, error, repo_type)
        if advice is None:
            raise
        raise OSError(advice) from error


def _advice(name: str, error: BaseException, repo_type: str) -> str | None:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from .models.pinning import causes, no_answer, no_room

    chain = list(causes(error))
    if (full := no_room(name, error)) is not None:
        return full
    page, flag = ("datasets/", "--repo-type dataset ") if repo_type == "dataset" else ("", "")
    if any(isinstance(link, GatedRepoError) for link in chain):
        return (
            f"{name!r} has a licence that has to be accepted: do so at https://huggingface.co/{page}{name} with your account, "
            "then run `hf auth login`."
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return f"{name!r} has no such revision: give a branch, tag or commit of it."
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"there is no repo {name!r}, or it is private: check the spelling, or run `hf auth login`."
    _, transport = no_answer()
    if getattr(error, "response", None) is not None:
        return None  # the Hub did answer
    missing = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    unreachable = any(
        isinstance(link, missing) or (isinstance(link, transport) and not isinstance(link, HfHubHTTPError))
        for link in chain
    )
    if not unreachable:
        return None
    offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "ON") else ""
    return (
        f"{name!r} is not in the cache and the Hub cannot be reached.{offline} Run `hf download {flag}{name}` where there is a "
        "network, or give a local folder."
    )
