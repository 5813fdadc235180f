"""What every verb shares: where text goes, hosts and autoencoders by name, `key=value` pairs."""

from __future__ import annotations

import difflib
import json
import logging
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models import SAE

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Host = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of the host model. Default: the small language model that ships in the package."
    ),
]
Repo = Annotated[str, typer.Argument(metavar="REPO_OR_PATH", help="Hub id or folder of a saved autoencoder.")]
Subfolder = Annotated[str, typer.Option(help="Folder inside REPO_OR_PATH.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]


class Console:
    """Results go to stdout, progress to stderr; under `--json` stdout holds one object and nothing else."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        library = logging.getLogger("hf_sae")  # not the root: huggingface_hub and transformers print their own
        if not library.handlers:
            library.addHandler(logging.StreamHandler())

    def say(self, text: str = "") -> None:
        """Progress and remarks, on stderr."""
        typer.echo(paragraph(text), err=True)

    def show(self, text: str = "") -> None:
        """A result: on stdout, or on stderr under `--json`."""
        typer.echo(text, err=self.as_json)

    def finish(self, payload: dict[str, Any], next_step: str) -> None:
        """The last line: what to do next, or the JSON object."""
        if self.as_json:
            typer.echo(json.dumps(payload, allow_nan=False, default=str))
        else:
            typer.echo(f"\nNext: {next_step}")


def columns() -> int:
    """Width of the terminal, at most 120: longer lines are hard to read."""
    return min(shutil.get_terminal_size((80, 24)).columns, 120)


def paragraph(text: str) -> str:
    """White space folded, lines broken at the width of the terminal."""
    return textwrap.fill(" ".join(text.split()), columns(), break_long_words=False, break_on_hyphens=False)


def fail(message: str) -> NoReturn:
    """A mistake in what was typed: one paragraph on stderr and exit code 2."""
    from ..errors import ConfigError

    raise ConfigError(message)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A sentence with the nearest name, or with all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(given, known, n=1)
    return f"Did you mean {nearest[0]!r}?" if nearest else f"There are: {', '.join(sorted(known))}."


def load_host(name: str | None, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A host by Hub id or folder; `None` and `default_host` are the one that ships in the package."""
    from ..assets import DEFAULT_HOST, default_host
    from ..hosts.loading import load_host as load

    if name in (None, DEFAULT_HOST):
        return default_host()
    try:
        return load(name, **kwargs)
    except OSError as error:  # transformers does not always say which model
        raise OSError(f"cannot load the host {name!r}: {error}") from error


def load_pair(
    repo: str, host: str | None, subfolder: str = "", revision: str | None = None
) -> tuple[SAE, PreTrainedModel, PreTrainedTokenizerBase]:
    """An autoencoder, and the host it was trained on (or `host`) with its tokenizer."""
    from ..models import AutoSAE

    sae = AutoSAE.from_pretrained(repo, subfolder=subfolder, revision=revision or "main")
    name = host or sae.config.base_model
    if name is None:
        fail(f"{repo!r} does not record the host it was trained on. Name it: --host org/model.")
    pinned = {"revision": sae.config.base_revision} if host is None and sae.config.base_revision else {}
    model, tokenizer = load_host(name, **pinned)
    if tokenizer is None:
        fail(f"the host {name!r} has no tokenizer: this command needs text. Use evaluate() or steer() from Python.")
    return sae.to(model.device), model, tokenizer


def aligned(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Columns of text; `sides` has `<` or `>` for each. The last one is cut at the width of the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(line if len(line) <= columns() else line[: columns() - 1] + "…" for line in lines)


def pairs(options: Sequence[str], flag: str) -> dict[str, Any]:
    """`["k=64", "skip=true"]` as `{"k": 64, "skip": True}`: values are read as YAML."""
    import yaml

    out = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.strip():
            fail(f"{flag} {option!r} is not key=value, such as {flag} k=64.")
        out[key.strip()] = yaml_number(yaml.safe_load(value))
    return out


def yaml_number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; people mean a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)
    return value
