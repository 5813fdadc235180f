"""`hf-sae convert`: a checkpoint of any known format in ours, or in another library's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Console, Json, Revision, Subfolder, did_you_mean, fail, pairs


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Hub id, folder or prefixed name of a checkpoint.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write to.")],
    form: Annotated[str, typer.Option("--format", help="ours, saelens, sparsify or dictionary_learning.")] = "ours",
    subfolder: Subfolder = "",
    revision: Revision = None,
    hook_in: Annotated[str | None, typer.Option(help="Place that is read, where no file says it.")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other field that no file says, such as input_scale=0.3."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that holds files.")] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint in another format, with the same outputs.

    Example: `hf-sae convert saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre ./layer_8`
    """
    from ..conversion import write
    from ..hub import save_card
    from ..models import AutoSAE

    console = Console(as_json)
    if destination.exists() and not overwrite and (destination.is_file() or any(destination.iterdir())):
        fail(f"{str(destination)!r} is not empty: choose another folder, or say --overwrite.")
    given = _fields(fields or [], hook_in)
    sae = AutoSAE.from_pretrained(source, subfolder=subfolder, revision=revision or "main", **given)
    read = ((sae.config.provenance or {}).get("conversion") or {}).get("transforms") or []
    written = write(sae, destination, form)
    if form == "ours":
        save_card(destination, sae)
    for text in [*read, *written]:
        console.show(f"- {text}")
    console.show(
        f"Wrote {type(sae).__name__} ({sae.config.d_sae:,} latents at {sae.config.hook_in}) to {destination}."
    )
    payload = {"format": form, "destination": str(destination), "read": read, "written": written}
    console.finish(
        payload, f"hf-sae check {destination}" if form == "ours" else f"load {destination} with that library"
    )


def _fields(options: list[str], hook_in: str | None) -> dict[str, Any]:
    """What was set by hand; a name that is no field of any architecture would go unseen to transformers."""
    from transformers import PreTrainedConfig

    from ..models import registered

    given = pairs(options, "--set") | ({"hook_in": hook_in} if hook_in else {})
    known = {field.name for config, _ in registered().values() for field in dataclasses.fields(config)}
    known -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for key in given:
        if key not in known:
            fail(f"--set {key}: there is no such field. {did_you_mean(key, known)}")
    return given
