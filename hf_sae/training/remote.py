"""Checkpoints of a run on the Hub: a branch of their own, from which another machine goes on.

The branch keeps training state off `main`, where only what a reader loads belongs.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..models import SAE
from . import checkpoint
from .arguments import SAETrainingArguments


logger = logging.getLogger(__name__)
BRANCH = "checkpoints"
LAST = "last-checkpoint"
_CHECKPOINT = re.compile(rf"({LAST}|checkpoint-\d+)/{re.escape(checkpoint.STATE)}")


def write_card(folder: Path, sae: SAE, args: SAETrainingArguments, subfolder: str | None) -> None:
    """The card of a final model: nothing goes up without one."""
    from ..hub.cards import save_card

    save_card(folder, sae, repo_id=args.hub_model_id, subfolder=subfolder)


def prepare(args: SAETrainingArguments, main_process: bool) -> None:
    """Creates the repo of a run that pushes before anything is trained: a wrong name or token is said now, not after hours.

    Raises:
        CheckpointError: for a name that is no repo id, or a public repo where a private one was asked for.
        OSError: for a missing token or permission. A Hub that cannot be reached is a warning: it may be back.
    """
    from ..hub.push import prepare

    if not (args.push_to_hub and main_process):
        return
    try:
        prepare(str(args.hub_model_id), args.hub_private_repo, args.hub_token)
    except OSError as error:
        if getattr(getattr(error.__cause__, "response", None), "status_code", None) in (401, 403, 404):
            raise
        logger.warning("%s Training goes on; pushes are tried again.", error)


def push(folder: Path, args: SAETrainingArguments) -> None:
    """Uploads the final model to `main`, or a checkpoint to the branch [`BRANCH`]; training goes on where that fails."""
    from ..hub.push import push_folder

    options: dict[str, Any] = {"private": args.hub_private_repo, "token": args.hub_token}
    if (folder / checkpoint.STATE).is_file():
        if args.hub_strategy == "end":
            return
        place = LAST if args.hub_strategy == "checkpoint" else folder.name
        options |= {"subfolder": place, "revision": BRANCH, "training_state": True}
        options["commit_message"] = f"Checkpoint {folder.name.removeprefix('checkpoint-')}"
    try:
        push_folder(folder, str(args.hub_model_id), **options)
    except (OSError, CheckpointError) as error:
        logger.warning("could not push %s to %s: %s", folder, args.hub_model_id, error)


def fetch(args: SAETrainingArguments) -> Path:
    """Downloads the newest checkpoint of the run's repo into `output_dir` and returns its folder.

    Raises:
        CheckpointError: if no repo is named, or it holds no checkpoint.
        OSError: if the repo does not exist, is gated, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    from ..access import explained

    if not args.hub_model_id:
        raise CheckpointError("resume_from_checkpoint='hub' needs hub_model_id='user/name' in the arguments.")
    api = HfApi(token=args.hub_token)
    with explained(args.hub_model_id):
        try:
            info = api.model_info(args.hub_model_id, revision=BRANCH)
        except RevisionNotFoundError as error:
            raise CheckpointError(
                f"{args.hub_model_id!r} has no branch {BRANCH!r}: no checkpoint was pushed. Train without resuming."
            ) from error
        names = {m[1] for s in info.siblings or [] if (m := _CHECKPOINT.fullmatch(s.rfilename))}
        if not names:
            raise CheckpointError(f"the branch {BRANCH!r} of {args.hub_model_id!r} holds no checkpoint.")
        newest = LAST if LAST in names else max(names, key=lambda name: int(name.removeprefix("checkpoint-")))
        output_dir = Path(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".checkpoint-") as temporary:
            root = api.snapshot_download(
                args.hub_model_id, revision=info.sha, allow_patterns=f"{newest}/*", local_dir=temporary
            )
            return _settle(Path(root) / newest, output_dir)


def _settle(found: Path, output_dir: Path) -> Path:
    """Moves a downloaded checkpoint to where a run of this folder would have written it."""
    step = checkpoint.read_json(found).get("step")
    if not isinstance(step, int) or step < 0:
        raise CheckpointError(f"{checkpoint.STATE} of {found.name!r} on the Hub says step={step!r}: it is damaged.")
    target = output_dir / f"checkpoint-{step}"
    if not target.exists():
        shutil.move(found, target)
    elif (target / checkpoint.STATE).read_bytes() != (found / checkpoint.STATE).read_bytes():
        raise CheckpointError(
            f"{str(target)!r} is a checkpoint of another run than the one on the Hub: give another output_dir, or resume from "
            "the folder."
        )
    return target
