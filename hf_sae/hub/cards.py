"""Model cards: what an autoencoder is, how to load it, how good it is, and what it was measured on.

* A card is made from the files of a saved folder, so that it can be made again: the config, `eval_results.json`,
  `examples.json`.
* Below [`KEPT`] a card belongs to its reader: that text survives when the card is made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..models import SAE
from ..models.checkpoint import atomic_folder
from . import facts
from .markdown import code, escape, strip, table


if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from jinja2 import Template

    from ..evaluation import EvalReport

README, RESULTS, EXAMPLES = "README.md", "eval_results.json", "examples.json"
GENERATED = "<!-- hf-sae: this card is generated; hf-sae card makes it again -->"
KEPT = "<!-- hf-sae: write your own text below this line; it is kept -->"


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
    """
    place = repo_id or location or "."
    name = place.rstrip("/").rsplit("/", 1)[-1].strip(".") or facts.title(sae)
    shown = [_example(example) for example in examples or ()]
    return render(
        "card.md.jinja",
        header=_header(sae, report, name),
        generated=GENERATED,
        kept=KEPT,
        title=escape(name),
        summary=facts.summary(sae, escape),
        quickstart=facts.quickstart(sae, place, subfolder),
        conventions=facts.conventions(sae, report),
        origin=facts.origin(sae, escape),
        metrics=None if report is None else _metrics(report),
        controls=None if report is None or not report.controls else _controls(report),
        measured=None if report is None else facts.measured(report, escape),
        notes=[] if report is None else [escape(note) for note in report.notes],
        examples=shown,
        training=[(escape(key), escape(value)) for key, value in facts.training(sae, training or {})],
        is_transcoder=sae.config.is_transcoder,
    )


def save_card(
    folder: str | Path,
    sae: SAE,
    report: EvalReport | None = None,
    training: Mapping[str, Any] | None = None,
    examples: Sequence[FeatureExample] | None = None,
    repo_id: str | None = None,
    *,
    subfolder: str | None = None,
) -> Path:
    """Writes the card, and what it is made from, into a saved folder; all files or none.

    Arguments as in [`render_card`].

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    folder = Path(folder)
    text = render_card(
        sae, report, training, examples, repo_id, location=f"./{folder.resolve().name}", subfolder=subfolder
    )
    text += "\n" + _kept(folder / README)
    with atomic_folder(folder) as temporary:
        (temporary / README).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        if report is not None:
            report.to_json(temporary / RESULTS)
        if examples is not None:
            (temporary / EXAMPLES).write_text(json.dumps(list(examples), indent=1) + "\n", encoding="utf-8")
    return folder / README


def is_generated(readme: str | Path) -> bool:
    """Whether a README may be written over: it does not exist, or was made here."""
    readme = Path(readme)
    return not readme.exists() or is_generated_text(readme.read_text(encoding="utf-8", errors="replace"))


def is_generated_text(text: str) -> bool:
    """Whether a README's text was made here, or is empty."""
    return not text.strip() or GENERATED in text


def render_collection_card(repo_id: str, index: Mapping[str, Mapping[str, Any]], before: str = "") -> str:
    """The README of a repo with many autoencoders: what they are, in a table, and how to load one.

    Args:
        repo_id (`str`): where it lives on the Hub.
        index (`Mapping`): what is known of each, by its place (`hf_sae.hub.collections`).
        before (`str`): the README so far, whose own text is kept.
    """
    from huggingface_hub import ModelCardData

    from .collections import natural

    places = sorted(index, key=natural)
    models = {facts.hub_id(entry.get("base_model"), entry.get("base_revision")) for entry in index.values()}
    bases = sorted(name for name in models if name)
    extra: dict[str, Any] = {"base_model": bases, "base_model_relation": "adapter"} if bases else {}
    kinds = sorted({escape(str(entry.get("architecture") or "")) for entry in index.values()} - {""})
    tags = ["hf-sae", "sparse-autoencoder", *kinds, "mechanistic-interpretability", "interpretability"]
    text = render(
        "collection.md.jinja",
        header=ModelCardData(library_name="hf-sae", tags=tags, **extra).to_yaml().strip(),
        generated=GENERATED,
        kept=KEPT,
        title=escape(repo_id.rsplit("/", 1)[-1]),
        count=len(places),
        hosts=[f"`{name}`" for name in bases],
        repo=json.dumps(repo_id),
        example=json.dumps(places[0]),
        table=_overview(places, index),
    )
    return text + "\n" + own_text(before).rstrip("\n") + "\n"


def _overview(places: Sequence[str], index: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["Folder", "Kind", "Place", "Latents", "k", "L0", "FVU", "ΔCE"]]
    for place in places:
        entry = index[place]
        metrics = entry.get("metrics") or {}
        where = str(entry.get("hook_in") or "")
        if entry.get("hook_out") not in (None, entry.get("hook_in")):
            where += f" → {entry['hook_out']}"
        sizes = [
            entry.get("d_sae"),
            entry.get("k") or entry.get("target_l0"),
            *map(metrics.get, ("l0", "fvu", "delta_ce")),
        ]
        numbers = [facts.number(value) if isinstance(value, int | float) else "" for value in sizes]
        rows.append(
            [code(place), escape(str(entry.get("architecture") or "")), code(where) if where else "", *numbers]
        )
    return table(rows, (False, False, False, *[True] * 5))


def _kept(readme: Path) -> str:
    return own_text(readme.read_text(encoding="utf-8", errors="replace")) if readme.exists() else ""


def own_text(text: str) -> str:
    """What somebody wrote below the last marker of a card."""
    _, found, own = text.partition(KEPT)
    return own.strip("\n") if found else ""


def _header(sae: SAE, report: EvalReport | None, name: str) -> str:
    from huggingface_hub import ModelCardData

    architecture = sae.config.model_type.removeprefix("hf_sae_")
    kind = "transcoder" if sae.config.is_transcoder else "sparse-autoencoder"
    extra: dict[str, Any] = {}
    if base_model := facts.hub_id(sae.config.base_model, sae.config.base_revision):
        extra = {"base_model": base_model, "base_model_relation": "adapter"}
    if dataset := facts.hub_dataset(sae):
        extra["datasets"] = [dataset]
    results: list[EvalResult] = [] if report is None else report.to_model_index(name)
    if results:
        extra |= {"model_name": name, "eval_results": results}
    tags = ["hf-sae", kind, architecture, "mechanistic-interpretability", "interpretability"]
    return ModelCardData(library_name="hf-sae", tags=tags, **extra).to_yaml().strip()


def _metrics(report: EvalReport) -> str:
    rows = [["Metric", "Value", "95 % interval", "Meaning"]]
    for key, metric in report.metrics.items():
        if metric.value is None:
            continue
        interval = "" if metric.low is None else f"{facts.number(metric.low)} to {facts.number(metric.high)}"
        rows.append([f"`{key}`", facts.number(metric.value), interval, escape(facts.meaning(key))])
    return table(rows, (False, True, True, False))


def _controls(report: EvalReport) -> str:
    names = list(report.controls)
    keys = [key for key in report.metrics if any(key in values for values in report.controls.values())]
    rows = [["Same tokens", "this one", *(escape(name) for name in names)]]
    for key in keys:
        values = [report.controls[name].get(key) for name in names]
        cells = ["" if value is None else facts.number(value.value) for value in values]
        rows.append([f"`{key}`", facts.number(report.metrics[key].value), *cells])
    return table(rows, (False, *[True] * (len(names) + 1)))


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


def render(name: str, **values: Any) -> str:
    """A template of this package with its values; they are Markdown already, and a missing one is an error."""
    return re.sub(r"\n{3,}", "\n\n", _template(name).render(values)).strip() + "\n"


@lru_cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # every value is escaped for Markdown before it gets here, which HTML's autoescape does not do
    environment = Environment(
        loader=PackageLoader("hf_sae.hub"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
