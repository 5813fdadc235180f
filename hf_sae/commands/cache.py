"""`hf-sae cache`: activations written once, for any number of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Host, Json, Revision, aligned, fail, load_host
from .train import HOOK, places_in


if TYPE_CHECKING:
    from ..activations import ActivationStream, Manifest

app = typer.Typer(
    no_args_is_help=True, help="Activations on disk or on the Hub: write, look at, verify, upload; then train --cache."
)

Source = Annotated[str, typer.Argument(metavar="PATH_OR_REPO", help="Folder of a cache, or dataset repo on the Hub.")]
DTYPES = ("float32", "bfloat16", "float16", "int8")


@app.command("write")
def write(
    output_dir: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder to write to.")],
    hook: Annotated[list[str] | None, HOOK] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Short for --hook resid_post.LAYER; repeatable.")] = None,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write, or all where there are fewer.")] = 1_000_000,
    host: Host = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id, folder or file. Default: the source code of Python's standard library.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    positions: Annotated[str, typer.Option(help="all, assistant, user, or a mask column.")] = "all",
    context_length: Annotated[int, typer.Option(min=1, help="Tokens per row of text.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per call of the host.")] = 16,
    ring_mib: Annotated[int, typer.Option(min=1, help="Size of the shuffle buffer in MiB.")] = 256,
    dtype: Annotated[
        str | None, typer.Option(help=f"How to store: {', '.join(DTYPES)}. Default: the host's dtype.")
    ] = None,
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Tokens per file. Default: 256 MiB of them.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of documents and tokens.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run that was stopped left off.")] = False,
    as_json: Json = False,
) -> None:
    """Run the host once and keep its activations, shuffled, in checksummed shards.

    Example: `hf-sae cache write ./acts --host openai-community/gpt2 --dataset roneneldan/TinyStories --layer 8`
    """
    import torch

    from ..activations import Prefetched, write_cache

    console = Console(as_json)
    points = [*places_in(hook), *(f"resid_post.{number}" for number in layer or ())]
    if not points:
        fail("no place to read: give --layer 8, or --hook mlp_in.8. `hf-sae hooks HOST` lists the places of a host.")
    if dtype is not None and dtype not in DTYPES:
        fail(f"--dtype {dtype!r} is none of {', '.join(DTYPES)}.")
    text = {"dataset": dataset, "split": split, "column": column, "positions": positions, "seed": seed}
    shape = {"context_length": context_length, "batch_size": batch_size}
    stream = _stream(host, points, n_tokens, ring_mib * 2**20, **text, **shape)
    stored = None if dtype is None else getattr(torch, dtype)
    manifest = write_cache(
        Prefetched(stream), output_dir, n_tokens, rows_per_shard=rows_per_shard, dtype=stored, resume=resume
    )
    _show(console, manifest, {"folder": str(output_dir)}, f"hf-sae train --cache {output_dir} --hook {points[0]}")


def _stream(
    host: str | None,
    points: list[str],
    n_tokens: int,
    ring_bytes: int,
    dataset: str | None,
    split: Any,
    **options: Any,
) -> ActivationStream:
    """The host's activations, through a ring that holds no more tokens than will be written: filling it comes first."""
    from ..activations import ActivationStream
    from ..activations.columns import place_of
    from ..corpus import stdlib_corpus
    from ..hosts import width_of

    model, tokenizer = load_host(host)
    if tokenizer is None:
        fail(f"the host {host!r} has no tokenizer. Write its activations from Python with write_cache().")
    text = stdlib_corpus(split) if dataset is None else dataset
    slot = sum(width_of(model, place_of(point)) for point in points) * 4 + 16
    tokens = max(n_tokens, 4 * options["batch_size"] * options["context_length"])
    ring_bytes = min(ring_bytes, tokens * slot * 16 // 15 + slot)
    return ActivationStream(model, tokenizer, text, points, ring_bytes=ring_bytes, split=split, **options)


@app.command("info")
def info(source: Source, revision: Revision = None, as_json: Json = False) -> None:
    """What a cache holds: host, places, tokens, statistics, and what storing it lost.

    Example: `hf-sae cache info ./acts`
    """
    from ..activations.cache import open_shards

    found = open_shards(source, revision)
    point = next(iter(found.manifest.points))
    _show(
        Console(as_json),
        found.manifest,
        {"source": source, "commit": found.commit},
        f"hf-sae train --cache {source} --hook {point}",
    )


@app.command("verify")
def verify(source: Source, revision: Revision = None, as_json: Json = False) -> None:
    """Read every shard and compare it with its checksum; exit code 2 where one is damaged.

    Example: `hf-sae cache verify ./acts`
    """
    from tqdm.auto import tqdm

    from ..activations.cache import open_shards
    from ..activations.cache.checking import verify as look

    console, found = Console(as_json), open_shards(source, revision, keep=False)
    with tqdm(total=found.manifest.n_bytes, unit="B", unit_scale=True, desc="verify") as bar:
        damaged = look(found, lambda shard: bar.update(shard.bytes))
    payload: dict[str, Any] = {"source": source, "shards": len(found.manifest.shards), "damaged": damaged}
    if not damaged:
        console.show(f"All {len(found.manifest.shards)} shards are as they were written.")
        console.finish(payload, f"hf-sae train --cache {source}")
        return
    console.show("\n".join(f"{name}: {why}" for name, why in damaged.items()))
    console.finish(payload, "copy or write these shards again, or train with --skip-corrupt to go on without them")
    raise typer.Exit(2)


@app.command("push")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a finished cache.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name of a dataset repo.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repo as private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a cache as a dataset with a card; run it again after an interruption, nothing is sent twice.

    Example: `hf-sae cache push ./acts user/gpt2-layer-8-activations`
    """
    from ..hub import push_cache

    console = Console(as_json)
    url = push_cache(folder, repo_id, private=private or None, revision=revision, create_pr=create_pr)
    console.show(f"Uploaded: {url}")
    console.finish({"repo_id": repo_id, "url": url}, f"hf-sae train --cache {repo_id}")


def _show(console: Console, manifest: Manifest, payload: dict[str, Any], next_step: str) -> None:
    from ..activations.cache.manifest import summary

    facts = summary(manifest)
    rows = [["place", "width", "mean norm", "total variance", "FVU floor"]]
    for point, found in manifest.points.items():
        figures = [f"{found.mean_norm:.4g}", f"{found.total_variance:.4g}", f"{found.fvu_floor:.3g}"]
        rows.append([point, f"{found.width:,}", *figures])
    console.show(aligned(rows, "<>>>>"))
    counts = facts["counts"] or {}
    lost = f"; {counts['non_finite']:,} tokens were not finite and left out" if counts.get("non_finite") else ""
    host = facts["base_model"] or "an unnamed host"
    console.show(
        f"\n{facts['n_tokens']:,} tokens of {host}, {facts['bytes'] / 1e6:,.1f} MB as {facts['storage']} in {facts['shards']} "
        f"shards{lost}."
    )
    console.finish({**payload, **facts}, next_step)
