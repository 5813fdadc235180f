"""`hf-sae eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Console, Json, Repo, Revision, Subfolder, load_pair


def evaluate(
    repo_or_path: Repo,
    host: Annotated[str | None, typer.Option(help="Hub id or folder. Default: the host it was trained on.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id, folder or file. Default: the source code of Python's standard library.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset. Default: test.")] = None,
    column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    n_tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 100_000,
    context_length: Annotated[int | None, typer.Option(help="Tokens per row. Default: that of training.")] = None,
    seed: Annotated[int, typer.Option(help="Of data order and intervals.")] = 0,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also score PCA and random weights of equal L0.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the report to this JSON file.")] = None,
    zf_plot: Annotated[
        Path | None, typer.Option(help="Draw the lengths of codes against those of activations into this PNG file.")
    ] = None,
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure reconstruction, sparsity and what the reconstruction costs the host.

    Example: `hf-sae eval ./sae --n-tokens 50000 --controls`
    """
    from ..evaluation import evaluate as measure

    console = Console(as_json)
    sae, model, tokenizer = load_pair(repo_or_path, host, subfolder, revision)
    data: dict[str, Any] = {
        "n_tokens": n_tokens,
        "context_length": context_length,
        "split": split,
        "column": column,
        "seed": seed,
    }
    report = measure(sae, model, tokenizer, dataset, controls=controls, **data)
    norms = None if zf_plot is None else _draw_norms(console, zf_plot, (sae, model, tokenizer, dataset), data)
    if output is not None:
        report.to_json(output)
        console.say(f"Wrote {output}.")
    console.show(report.to_table())
    local = Path(repo_or_path).is_dir()
    folder = Path(repo_or_path, subfolder)
    step = f"hf-sae card {folder} --report {output}" if local and output else f"hf-sae info {repo_or_path}"
    console.finish(report.to_dict() | ({} if norms is None else {"code_norms": norms}), step)


def _draw_norms(console: Console, path: Path, what: tuple[Any, Any, Any, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Measures the lengths of codes on the same tokens, draws them, and tells them in a line."""
    from ..errors import DataError
    from ..evaluation import code_norms
    from ..evaluation.writing import write_bytes
    from ..hub.plots import zf_plot

    norms = code_norms(*what, **data)
    plot = zf_plot(norms)
    if plot is None:
        raise DataError(
            f"no token has a code of a length above 0, so that {path} would be empty. Leave --zf-plot out."
        )
    write_bytes(plot.png, path)
    console.say(f"Wrote {path}. {plot.alt}")
    return norms.to_dict()
