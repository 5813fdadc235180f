"""What the Hub answers to a write, as errors that say what to do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ..access import explained
from ..errors import CheckpointError


@contextmanager
def readable(repo_id: str, repo_type: str = "model") -> Generator[None]:
    """Within it, what the Hub answers to a write becomes an error that says what to do.

    Raises:
        CheckpointError: for a repo id or a card that the Hub does not take.
        OSError: for a missing token or permission, or a Hub that does not answer.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from ..models.pinning import no_answer, split_name

    split_name(repo_id)
    try:
        with explained(repo_id, repo_type):
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
