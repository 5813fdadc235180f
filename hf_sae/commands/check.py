"""`hf-sae check`: is a checkpoint read right?"""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Console, Json, Repo, Revision, Subfolder, columns, load_pair


def check(
    repo_or_path: Repo,
    host: Annotated[str | None, typer.Option(help="Hub id or folder. Default: the host it was trained on.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id, folder or file. Default: the source code of Python's standard library.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.")] = None,
    column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    n_tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 4096,
    published_l0: Annotated[
        float | None, typer.Option(help="L0 to compare with. Default: the one in its files.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data order.")] = 0,
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint beside its near misses and say which reading of its files fits best.

    Exit code 1 where another reading fits better, or none does.

    Example: `hf-sae check google/gemma-scope-2b-pt-res --subfolder layer_20/width_16k/average_l0_71`
    """
    from ..evaluation import check as measure

    console = Console(as_json)
    sae, model, tokenizer = load_pair(repo_or_path, host, subfolder, revision)
    report = measure(
        sae,
        model,
        tokenizer,
        dataset,
        n_tokens=n_tokens,
        published_l0=published_l0,
        split=split,
        column=column,
        seed=seed,
    )
    console.show(report.to_table(columns()))
    where = f"{repo_or_path} --subfolder {subfolder}" if subfolder else repo_or_path
    console.finish(report.to_dict(), f"hf-sae eval {where}" if report.ok else f"hf-sae info {where}")
    if not report.ok:
        raise typer.Exit(1)
