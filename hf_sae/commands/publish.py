"""`hf-sae card` and `hf-sae push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, fail


if TYPE_CHECKING:
    from ..evaluation import EvalReport

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a saved autoencoder.")]


def card(
    folder: Folder,
    report: Annotated[
        Path | None, typer.Option(help="Report of `hf-sae eval --output`. Default: the folder's.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="user/name that the quickstart loads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a README written by hand.")] = False,
    as_json: Json = False,
) -> None:
    """Write the model card of a saved autoencoder; text below its last marker is kept.

    Example: `hf-sae card ./sae --report report.json`
    """
    from ..hub.cards import README, is_generated

    console = Console(as_json)
    if not is_generated(folder / README) and not overwrite:
        fail(f"{str(folder / README)!r} was written by hand. Replace it with --overwrite.")
    path = make_card(folder, report, repo_id)
    console.show(f"Wrote {path}.")
    console.finish({"card": str(path)}, f"hf-sae push {folder} user/name")


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.")],
    subfolder: Annotated[str | None, typer.Option(help="Folder in the repo. Default: its root.")] = None,
    private: Annotated[bool | None, typer.Option(help="Visibility of a repo that is created.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    as_json: Json = False,
) -> None:
    """Upload a saved folder to the Hub, with its own card.

    Example: `hf-sae push ./sae user/gpt2-layer-8`
    """
    from ..hub import push_folder
    from ..hub.cards import README, is_generated

    console = Console(as_json)
    if (folder / "config.json").is_file() and is_generated(folder / README):
        make_card(folder, None, repo_id, subfolder)
    url = push_folder(
        folder,
        repo_id,
        subfolder=subfolder,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        ignore_patterns=["checkpoint-*"],
    )
    console.show(url)
    where = f"{repo_id} --subfolder {subfolder}" if subfolder else repo_id
    console.finish({"url": url}, f"hf-sae info {where}")


def make_card(folder: Path, report: Path | None, repo_id: str | None, subfolder: str | None = None) -> Path:
    """The card from the files of a folder."""
    from ..hub import save_card
    from ..hub.cards import EXAMPLES, RESULTS
    from ..models import AutoSAE

    sae = AutoSAE.from_pretrained(str(folder))
    source = report or folder / RESULTS
    measured = _report(source) if report is not None or source.exists() else None
    examples = _json(folder / EXAMPLES) if (folder / EXAMPLES).exists() else None
    return save_card(folder, sae, measured, None, examples, repo_id, subfolder=subfolder)


def _report(path: Path) -> EvalReport:
    from ..evaluation import EvalReport

    return EvalReport.from_dict(_json(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        fail(f"cannot read {str(path)!r}: {error}")
