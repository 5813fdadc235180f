"""Model cards: what an autoencoder is, how to load it, how good it is, and what it was measured on.

A card is made from the files of a saved folder, so that it can be made again: the config, `eval_results.json`,
`examples.json`, `training_log.json`, `feature_stats.safetensors`. What a reader adds to it stays (`hf_sae.hub.blocks`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import CheckpointError
from ..models import SAE, registered
from ..models.checkpoint import atomic_folder
from . import facts, tables
from .blocks import Document, block, merge, parse
from .markdown import escape, strip


if TYPE_CHECKING:
    from jinja2 import Environment

    from ..evaluation import EvalReport
    from .plots import Plot

README, RESULTS, EXAMPLES, LOG, ASSETS = (
    "README.md",
    "eval_results.json",
    "examples.json",
    "training_log.json",
    "assets",
)
TAGS = ("hf-sae", "mechanistic-interpretability", "interpretability")
KINDS = ("sparse-autoencoder", "transcoder")


class Context(TypedDict):
    """A piece of text and how strongly a feature fires on each of its tokens."""

    tokens: list[str]
    activations: list[float]


class FeatureExample(TypedDict, total=False):
    """A feature as a card shows it; `feature` and `contexts` are needed."""

    feature: int
    label: str
    density: float
    maximum: float
    promoted: list[str]
    contexts: list[Context]


def render_card(
    sae: SAE,
    report: EvalReport | None = None,
    training: Mapping[str, Any] | None = None,
    examples: Sequence[FeatureExample] | None = None,
    repo_id: str | None = None,
    *,
    location: str | None = None,
    subfolder: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    plots: Sequence[Plot] = (),
    before: str = "",
) -> str:
    """The README of a saved autoencoder.

    Args:
        sae ([`SAE`]): the autoencoder; its config says where it reads and what it was trained on.
        report ([`EvalReport`], *optional*): metrics, for the table and the header.
        training (`Mapping[str, Any]`, *optional*): facts beside those of `config.provenance`, such as `seconds`.
        examples (`Sequence[FeatureExample]`, *optional*): features to show.
        repo_id (`str`, *optional*): where it lives on the Hub.
        location (`str`, *optional*): what the quickstart loads where there is no `repo_id`; a folder.
        subfolder (`str`, *optional*): folder in the repo.
        metadata (`Mapping[str, Any]`, *optional*): more keys of the header, such as `license` and `language`.
        plots (`Sequence[Plot]`): pictures to show (`hf_sae.hub.plots`).
        before (`str`): the README so far, whose own text and header are kept.

    Raises:
        CheckpointError: if the README so far has a header that is no YAML.
    """
    place = repo_id or location or "."
    name = place.rstrip("/").rsplit("/", 1)[-1].strip(".") or facts.title(sae)
    name += f" {subfolder}" if subfolder else ""
    text = template("card.md.jinja").render(
        title=escape(name),
        summary=facts.summary(sae, escape),
        links=facts.links(sae),
        quickstart=facts.quickstart(sae, place, subfolder),
        pinnable=repo_id is not None,
        headline=None if report is None else tables.headline(report),
        metrics=None if report is None else tables.metrics(report),
        places=None if report is None else tables.places(report),
        measured=None if report is None else facts.measured(report, escape),
        notes=[] if report is None else [escape(note) for note in report.notes],
        examples=[_example(example) for example in examples or ()],
        plots=plots,
        conventions=facts.conventions(sae, report),
        origin=facts.origin(sae, escape),
        method=facts.method(sae),
        training=[(escape(key), escape(value)) for key, value in facts.training(sae, training or {}, report)],
        is_transcoder=sae.config.is_transcoder,
    )
    fresh = Document(_header(sae, report, name) | dict(metadata or {}), parse(text).parts)
    return str(merge(fresh, parse(before), known_tags()))


def save_card(
    folder: str | Path,
    sae: SAE,
    report: EvalReport | None = None,
    training: Mapping[str, Any] | None = None,
    examples: Sequence[FeatureExample] | None = None,
    repo_id: str | None = None,
    *,
    subfolder: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, float]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the card, its plots, and what they are made from, into a saved folder; all files or none.

    Arguments as in [`render_card`], and:

    Args:
        folder (`str`): where the autoencoder is saved.
        history (`list` of `dict`, *optional*): `SAETrainer.log_history`; the folder's `training_log.json` when not given.
        overwrite (`bool`): replace a README that was written by hand; without it only its header is brought up to date.

    Raises:
        CheckpointError: if the folder cannot be written, or the README there has a header that is no YAML.
    """
    from .plots import PLOTS

    folder, history = Path(folder), None if history is None else finite_rows(history)
    text, plots = compose_card(
        folder,
        sae,
        report,
        training,
        examples,
        repo_id,
        subfolder=subfolder,
        metadata=metadata,
        history=history,
        overwrite=overwrite,
    )
    with atomic_folder(folder) as temporary:
        (temporary / README).write_text(text, encoding="utf-8")
        if report is not None:
            report.to_json(temporary / RESULTS)
        for name, value in ((EXAMPLES, examples), (LOG, history)):
            if value is not None:
                (temporary / name).write_text(json.dumps(list(value), indent=1) + "\n", encoding="utf-8")
        (temporary / ASSETS).mkdir()
        for plot in plots:
            (temporary / ASSETS / plot.file).write_bytes(plot.png)
    for name in PLOTS - {plot.file for plot in plots}:  # of an earlier card
        (folder / ASSETS / name).unlink(missing_ok=True)
    return folder / README


def compose_card(
    folder: Path,
    sae: SAE,
    report: EvalReport | None = None,
    training: Mapping[str, Any] | None = None,
    examples: Sequence[FeatureExample] | None = None,
    repo_id: str | None = None,
    *,
    history: Sequence[Mapping[str, float]] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> tuple[str, list[Plot]]:
    """The card that [`save_card`] would write, and its plots; arguments as there."""
    from .plots import card_plots

    plots = card_plots(sae, report, read_log(folder) if history is None else history)
    readme = folder / README
    there = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    before = there if not overwrite or is_generated_text(there) else ""
    options |= {"location": f"./{folder.resolve().name}", "plots": plots, "before": before}
    return render_card(sae, report, training, examples, repo_id, **options), plots


def finite_rows(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The figures of a run without those that are not finite, which JSON cannot say."""
    return [{k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)} for row in history]


def is_generated(readme: str | Path) -> bool:
    """Whether a README does not exist, is empty, or was made here."""
    readme = Path(readme)
    return not readme.exists() or is_generated_text(readme.read_text(encoding="utf-8", errors="replace"))


def is_generated_text(text: str) -> bool:
    """Whether a README's text was made here, or is empty."""
    found = parse(text)
    return found.generated or not found.parts


def read_log(folder: Path) -> list[dict[str, float]]:
    """The figures of training that `SAETrainer` wrote beside the weights; none where there are none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = folder / LOG
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error}. Delete it or train again.") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise CheckpointError(f"{str(path)!r} is no list of figures. Delete it or train again.")
    return found


def known_tags() -> frozenset[str]:
    """Tags that cards made here may have: those that are not right any more are taken away."""
    return frozenset((*TAGS, *KINDS, *(name.removeprefix("hf_sae_") for name in registered())))


def template(name: str) -> Any:
    """One of the templates in `templates/`."""
    return _environment().get_template(name)


def _header(sae: SAE, report: EvalReport | None, name: str) -> dict[str, Any]:
    from huggingface_hub import ModelCardData

    architecture = sae.config.model_type.removeprefix("hf_sae_")
    extra: dict[str, Any] = {}
    if base_model := facts.hub_id(sae.config.base_model, sae.config.base_revision):
        extra = {"base_model": base_model, "base_model_relation": "adapter"}
    if dataset := facts.hub_dataset(sae):
        extra["datasets"] = [dataset]
    results = [] if report is None else report.to_model_index(name)
    if results:
        extra |= {"model_name": name, "eval_results": results}
    tags = [TAGS[0], KINDS[sae.config.is_transcoder], architecture, *TAGS[1:]]
    return ModelCardData(library_name="hf-sae", tags=tags, **extra).to_dict()


def _example(example: FeatureExample) -> dict[str, Any]:
    density = example.get("density")
    return {
        "feature": int(example["feature"]),
        "label": escape(example.get("label") or ""),
        "rate": "" if not density else f"fires on 1 in {max(round(1 / density), 1):,} tokens",
        "maximum": "" if example.get("maximum") is None else f"maximum {facts.number(example['maximum'])}",
        "promoted": [f"<code>{escape(token).strip() or '␣'}</code>" for token in example.get("promoted", ())],
        "strips": [strip(context["tokens"], context["activations"]) for context in example["contexts"]],
    }


@lru_cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # every value is escaped for Markdown before it gets here, which HTML's autoescape does not do
    environment = Environment(
        loader=PackageLoader("hf_sae.hub"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shared: dict[str, Any] = {"block": _block}
    environment.globals.update(shared)
    return environment


def _block(name: str, caller: Callable[[], str]) -> str:
    return block(name, caller())
