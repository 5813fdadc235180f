"""`hf-sae space`: the page of features, on this machine or as a Space on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Console, Json, Subfolder, fail


app = typer.Typer(no_args_is_help=True, help="The page of features: open it here, or publish it as a Space.")

Features = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_FOLDER",
        help="The feature dataset. Default: what lies beside the autoencoder, or REPO-features.",
    ),
]
Host = Annotated[str | None, typer.Option(help="Hub id or folder. Default: the host it was trained on.")]
OnlyThis = Annotated[bool, typer.Option("--only-this", help="Visitors may not open other repos with ?sae=user/repo.")]
DEMO = "hf-sae-demo"


@app.command("open")
def open_(
    repo_or_folder: Annotated[
        str | None,
        typer.Argument(metavar="[REPO_OR_FOLDER]", help="Hub id or folder. Default: what `hf-sae demo` trained."),
    ] = None,
    subfolder: Subfolder = "",
    features: Features = None,
    host: Host = None,
    only_this: OnlyThis = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> None:
    """Open the page of features on this machine.

    Example: `hf-sae space open ./hf-sae-demo`
    """
    from ..space.serve import SpaceSettings, serve

    repo = repo_or_folder or DEMO
    if repo_or_folder is None and not Path(DEMO).is_dir():
        fail(
            "which autoencoder? Give a repo or folder, or run `hf-sae demo` first, which trains one in three minutes."
        )
    options: dict[str, Any] = {"inbrowser": not no_browser} | ({"server_port": port} if port else {})
    console = Console(False)
    console.say("Starting the page; Ctrl-C ends it.")
    serve(SpaceSettings(repo, subfolder, features, host, not only_this), **options)


@app.command("create")
def create(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name of the Space.")],
    sae: Annotated[str, typer.Option(metavar="REPO", help="Hub id of the autoencoder, or of a repo with several.")],
    subfolder: Subfolder = "",
    features: Features = None,
    host: Host = None,
    only_this: OnlyThis = False,
    title: Annotated[str | None, typer.Option(help="Title of the Space.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="License of the Space, such as mit.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    hardware: Annotated[
        str | None, typer.Option(help="Of a Space that is created, such as zero-a10g. Default: the free CPU.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files and variables, and upload nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a Space that shows the features of an autoencoder on the Hub.

    Example: `hf-sae space create user/my-features --sae user/my-sae`
    """
    from ..space.publishing import check_settings, create_space, space_files
    from ..space.serve import SpaceSettings

    console = Console(as_json)
    settings = SpaceSettings(sae, subfolder, features, host, not only_this)
    check_settings(settings)
    files, variables = space_files(settings, title, license_), settings.variables()
    payload: dict[str, Any] = {"repo_id": repo_id, "files": files, "variables": variables, "private": private}
    if dry_run:
        console.show("\n".join(f"--- {name}\n{text}" for name, text in files.items()))
        console.show("--- variables\n" + "\n".join(f"{name}={value}" for name, value in variables.items()))
        console.finish(payload | {"url": None}, "the same without --dry-run publishes it")
        return
    look: dict[str, Any] = {"title": title, "license_": license_, "hardware": hardware}
    url = create_space(repo_id, settings, private=private or None, **look)
    console.show(f"Published {url}")
    step = f"open {url}; it is built in a few minutes"
    if private:
        step += f". If {sae} is private, add a secret HF_TOKEN that may read it: {url}/settings"
    console.finish(payload | {"url": url}, step)
