"""`hf-sae diff`: what did fine-tuning change?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, columns, fail, load_host


if TYPE_CHECKING:
    from ..evaluation import DiffReport


_CHARACTERS_PER_TOKEN = 3.5  # of source code, at the least: all files count


def diff(
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="Hub id or folder of the plain host, or `default_host`.")
    ],
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="Hub id or folder of a PEFT adapter (user/repo:folder), or of a whole fine-tuned model.",
        ),
    ],
    sae: Annotated[str, typer.Option(help="Hub id or folder of an autoencoder that was trained on HOST.")],
    subfolder: Annotated[str, typer.Option(help="Folder inside the autoencoder's repo.")] = "",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder or file. Default: a stretch of each held-out file of Python's standard library."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset. Default: test.")] = None,
    column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens to measure on.")] = 100_000,
    context_length: Annotated[int | None, typer.Option(help="Tokens per row. Default: that of training.")] = None,
    seed: Annotated[int, typer.Option(help="Of data order and intervals.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Changed latents to show.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the report to this JSON file.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the autoencoder.")] = None,
    adapter_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of ADAPTER.")] = None,
    as_json: Json = False,
) -> None:
    """Find the latents that fine-tuning changed most: rate and mean activation before and after, on the same text.

    Text in the style of fine-tuning shows what the new host sees in it; plain text shows where it now expects something else.

    Example: `hf-sae diff google/gemma-2-2b user/my-lora --sae google/gemma-scope-2b-pt-res --subfolder layer_20/width_16k/average_l0_71 --dataset my-text.jsonl`
    """
    console = Console(as_json)
    options = {"context_length": context_length, "split": split, "column": column, "seed": seed, "top": top}
    autoencoder = _autoencoder(sae, subfolder, revision)
    report = _compare(autoencoder, (host, adapter, adapter_revision), dataset, n_tokens, options)
    if output is not None:
        report.to_json(output)
        console.say(f"Wrote {output}.")
    console.show(report.to_table(columns()))
    where = f"{sae} --subfolder {subfolder}" if subfolder else sae
    console.finish(report.to_dict(), next_step(report, host, adapter, where, n_tokens))


def _autoencoder(name: str, subfolder: str, revision: str | None) -> Any:
    from ..models import AutoSAE

    return AutoSAE.from_pretrained(name, subfolder=subfolder, revision=revision or "main")


def _compare(
    sae: Any, names: tuple[str, str, str | None], dataset: str | None, n_tokens: int, options: dict[str, Any]
) -> DiffReport:
    """The report on a host and its fine-tuned version by name."""
    from ..evaluation import compare_hosts
    from ..evaluation.samples import public_name
    from ..hosts.adapters import load_finetuned

    host, adapter, revision = names
    plain, tokenizer = load_host(host)
    if tokenizer is None:
        fail(f"the host {host!r} has no tokenizer: this command needs text. Use compare_hosts() from Python.")
    tuned = load_finetuned(plain, tokenizer, adapter, revision)
    text, known = held_out(dataset, n_tokens, options["seed"])
    report = compare_hosts(sae.to(plain.device), plain, tuned.model, tokenizer, text, n_tokens=n_tokens, **options)
    report.dataset |= known
    report.finetuned |= {"name": public_name(adapter), "revision": tuned.commit}
    return report


def held_out(dataset: str | None, n_tokens: int, seed: int) -> tuple[Any, dict[str, str]]:
    """The dataset as given; else the same share of every held-out file, because each is one observation, however long."""
    if dataset is not None:
        return dataset, {}
    from ..corpus import NAME, stdlib_files
    from ..demo import excerpts

    files = len(stdlib_files("test"))
    return excerpts(int(_CHARACTERS_PER_TOKEN * n_tokens / files) + 1, seed), {"name": NAME, "split": "test"}


def next_step(report: DiffReport, host: str, adapter: str, sae: str, n_tokens: int) -> str:
    """Steering with what changed most; more text, in the new style, where nothing did."""
    if report.latents:
        return f'hf-sae steer {sae} --feature {report.latents[0].latent}=2x --prompt "…"'
    return f"hf-sae diff {host} {adapter} --sae {sae} --n-tokens {4 * n_tokens} --dataset …"
