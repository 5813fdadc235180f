"""`hf-sae features`: one pass over text, and a feature dataset of everything that a dashboard shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Revision, aligned, fail, load_pair


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..features.reading import FeatureDataset
    from ..models import SAE


def features(
    repos: Annotated[
        list[str],
        typer.Argument(
            metavar="REPO_OR_PATH...", help="Hub ids (user/repo or user/repo:folder) or folders of saved autoencoders."
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder to write the feature dataset to.")],
    subfolder: Annotated[
        list[str] | None, typer.Option(help="Folder inside the one REPO_OR_PATH; repeat it for several autoencoders.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Hub id or folder. Default: the host they were trained on.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id, folder or file. Default: the source code of Python's standard library.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset. Default: test.")] = None,
    column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens to read, or all where there are fewer.")] = 1_000_000,
    context_length: Annotated[int | None, typer.Option(help="Tokens per row. Default: that of training.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per call of the host.")] = 16,
    top: Annotated[int, typer.Option(min=1, help="Strongest contexts kept of each latent.")] = 20,
    random: Annotated[int, typer.Option(min=0, help="Random contexts kept of each latent.")] = 10,
    window: Annotated[int, typer.Option(min=0, help="Tokens shown on each side of a peak.")] = 12,
    seed: Annotated[int, typer.Option(help="Of data order and random contexts.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there, unfinished or not.")] = False,
    save_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens between two saves, from which --resume goes on; 0 saves nothing.")
    ] = 1_000_000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run that was stopped last saved.")] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Look at every latent: contexts, density, histogram, promoted tokens, neighbours and partners, as one dataset.

    Several autoencoders of one host share the pass over the text.

    Example: `hf-sae features ./sae --output-dir ./sae-features --n-tokens 200000`

    On several devices: `accelerate launch -m hf_sae features …`
    """
    from accelerate import Accelerator

    from ..features.harvest import harvest
    from ..features.latent_state import ExampleCounts

    console, process = Console(as_json), Accelerator()  # before the host: it chooses this process's device
    saes, model, tokenizer = _load(_places(repos, subfolder or []), host, revision)
    found = harvest(
        saes,
        model,
        tokenizer,
        dataset,
        output_dir,
        n_tokens=n_tokens,
        examples=ExampleCounts(top=top, random=random, window=window),
        context_length=context_length,
        batch_size=batch_size,
        column=column,
        split=split,
        seed=seed,
        overwrite=overwrite,
        accelerator=process,
        save_tokens=save_tokens or None,
        resume=resume,
    )
    if process.is_main_process:
        _conclude(console, found, output_dir)


def _conclude(console: Console, found: FeatureDataset, output_dir: Path) -> None:
    summary = _summary(found)
    console.show(_table(summary))
    console.show(f"\nRead {found.data['n_tokens']:,} tokens; wrote {output_dir}.")
    payload = {"folder": str(output_dir), "data": found.data, "saes": summary}
    console.finish(payload, f"hf-sae push {output_dir} user/{output_dir.resolve().name}-dashboards")


def _places(repos: list[str], subfolders: list[str]) -> list[tuple[str, str]]:
    """Repo and subfolder of each autoencoder."""
    if len(repos) > 1 and subfolders:
        fail(f"--subfolder goes with one REPO_OR_PATH, and there are {len(repos)}: write user/repo:folder instead.")
    places = [(repos[0], folder) for folder in subfolders] or [(repo, "") for repo in repos]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        fail(f"{'/'.join(filter(None, twice))!r} is there twice. Name each autoencoder once.")
    return places


def _load(
    places: list[tuple[str, str]], host: str | None, revision: str | None
) -> tuple[dict[str, SAE], PreTrainedModel, PreTrainedTokenizerBase]:
    """The autoencoders by `sae_id`, and the host that they share."""
    from ..models import AutoSAE

    names = sae_ids(["/".join(filter(None, (*repo.split(":"), folder))) for repo, folder in places])
    first, model, tokenizer = load_pair(places[0][0], host, places[0][1], revision)
    saes: dict[str, Any] = {names[0]: first}
    for name, (repo, folder) in zip(names[1:], places[1:], strict=True):
        sae = AutoSAE.from_pretrained(repo, subfolder=folder, revision=revision or "main")
        if host is None and sae.config.base_model != first.config.base_model:
            fail(
                f"{repo!r} was trained on {sae.config.base_model!r} and {places[0][0]!r} on {first.config.base_model!r}: one pass "
                "has one host. Run the command once for each, or name it with --host."
            )
        saes[name] = sae.to(model.device)
    return saes, model, tokenizer


def sae_ids(places: list[str]) -> list[str]:
    """The shortest ends of paths that tell them apart: `layer_8`, or `a/layer_8` and `b/layer_8`."""
    parts = [Path(place).resolve().parts if Path(place).exists() else tuple(place.split("/")) for place in places]
    by_depth = (["/".join(part[-depth:]) for part in parts] for depth in range(1, max(map(len, parts)) + 1))
    apart = next((ends for ends in by_depth if len(set(ends)) == len(ends)), None)
    return apart or fail("an autoencoder is there twice. Name each one once.")


def _summary(found: FeatureDataset) -> dict[str, dict[str, Any]]:
    """Of each autoencoder: latents, how many never fired, the median density of the others, and contexts."""
    import numpy as np

    densities: dict[str, list[float]] = {name: [] for name in found.saes}
    for rows in found.batches("features"):
        for name, density in zip(rows["sae_id"].to_pylist(), rows["density"].to_pylist(), strict=True):
            densities[name].append(density)
    contexts = dict.fromkeys(found.saes, 0)
    for rows in found.batches("examples"):
        for name in rows["sae_id"].to_pylist():
            contexts[name] += 1
    summary = {}
    for name, values in densities.items():
        fired = [value for value in values if value]
        median = float(np.median(fired)) if fired else None
        summary[name] = {"latents": len(values), "dead": len(values) - len(fired), "median_density": median}
        summary[name]["contexts"] = contexts[name]
    return summary


def _table(summary: dict[str, dict[str, Any]]) -> str:
    rows = [["sae_id", "latents", "never fired", "median density", "contexts"]]
    for name, facts in summary.items():
        median = facts["median_density"]
        shown = "" if median is None else f"{median:.2e}"
        rows.append([name, f"{facts['latents']:,}", f"{facts['dead']:,}", shown, f"{facts['contexts']:,}"])
    return aligned(rows, "<>>>>")
