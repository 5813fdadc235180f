"""`hf-sae`: the command line.

* Results go to stdout, progress and errors to stderr. The last line says what to do next.
* A mistake of the user ends with one paragraph and exit code 2; `--debug` shows the traceback. Ctrl-C exits with 130.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from . import __version__
from .commands import (
    cache,
    check,
    convert,
    demo,
    diff,
    explain,
    features,
    inspect,
    neuronpedia,
    publish,
    search,
    space,
    steer,
    train,
)
from .commands import evaluate as evaluation
from .commands.console import paragraph


app = typer.Typer(
    name="hf-sae",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.add_typer(cache.app, name="cache")
app.command("eval")(evaluation.evaluate)
app.command("check")(check.check)
app.command("diff")(diff.diff)
app.command("convert")(convert.convert)
app.command("info")(inspect.info)
app.command("features")(features.features)
app.command("explain")(explain.explain)
app.command("neuronpedia")(neuronpedia.neuronpedia)
app.command("search")(search.search)
app.command("steer")(steer.steer)
app.add_typer(space.app, name="space")
app.command("hooks")(inspect.hooks)
app.command("card")(publish.card)
app.command("push")(publish.push)
app.command("pull")(publish.pull)
app.command("ls")(publish.ls)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-sae {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Sparse autoencoders and transcoders as first-class Hugging Face models.

    Start with `hf-sae demo`: it trains one on a small language model that ships in the package, with no network.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments (`Sequence[str]`, *optional*): instead of `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    # Before torch is imported: threads that spin while they wait make a run seven times slower where something else
    # wants one of two cores, and gain little where nothing does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():  # a progress bar in a file or pipe: a few states of it, not hundreds
        os.environ.setdefault("TQDM_MININTERVAL", "15")
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="hf-sae")
    except (ValueError, OSError) as error:  # every typed error of hf_sae, and what transformers and the Hub raise
        if debug:
            raise
        typer.echo(paragraph(f"Error: {str(error) or type(error).__name__}"), err=True)
        sys.exit(2)
