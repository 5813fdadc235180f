"""The sentences of a card: what an autoencoder is, where it reads, how it was trained and measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import SAE
from ..models.adapters import has_adapter
from ..views.words import meaning as meaning_of_place
from .markdown import code


if TYPE_CHECKING:
    from ..evaluation import EvalReport

DEFAULT_HOST, HUB = "default_host", "https://huggingface.co"
OWN_HOST = "the small language model that ships with hf-sae"
SIDE_BY_SIDE = [
    'acts = read(host, sae.config.places_in, **tokenizer("import os", return_tensors="pt"))',
    "code = sae.encode_sparse(torch.cat(list(acts.values()), dim=-1))  # the places side by side",
]
_TRAINING = {
    "total_tokens": "Tokens",
    "tokens_per_batch": "Tokens per batch",
    "learning_rate": "Peak learning rate",
    "adam_beta1": "Adam β₁",
    "adam_beta2": "Adam β₂",
    "max_grad_norm": "Gradient clipping",
    "bf16": "bfloat16",
    "seed": "Seed",
    "seconds": "Wall-clock seconds",
    "device": "Hardware",
    "processes": "Processes",
}


def data_of(sae: SAE) -> dict[str, Any]:
    """What the config records about the training data: dataset, masks, context length, …"""
    data = (sae.config.provenance or {}).get("data")
    return data if isinstance(data, dict) else {}


def number(value: float | None) -> str:
    """Four significant digits; counts as whole numbers."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def meaning(key: str) -> str:
    """What a metric says, in a few words."""
    from ..evaluation.report import MEANINGS

    return MEANINGS.get(key, "")


def title(sae: SAE) -> str:
    """`TopK SAE`, `JumpReLU transcoder`, …"""
    architecture = type(sae).__name__.removesuffix("SAE")
    return f"{architecture} {'transcoder' if sae.config.is_transcoder else 'SAE'}"


def hub_id(name: str | None, revision: str | None = None) -> str | None:
    """`name` where it is an id on the Hub and no folder of the machine that trained: ids have a slash or a commit."""
    if not name or name == DEFAULT_HOST or Path(name).exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        return None
    return name if "/" in name or revision else None


def hub_dataset(sae: SAE) -> str | None:
    """The dataset it was trained on, where that is an id on the Hub."""
    name = data_of(sae).get("dataset")
    if not isinstance(name, str) or name.startswith(".") or re.search(r"\.(jsonl?|txt|parquet|csv|tsv)\b", name):
        return None
    return hub_id(name)


def in_words(point: str | list[str] | None) -> str:
    """A hook point as a person would say it."""
    if isinstance(point, list):
        return ""
    return "an unnamed place" if point is None else meaning_of_place(point)


def places(point: str | list[str] | None) -> str:
    """One place or several, as code, with what a single one means."""
    names = [f"`{name}`" for name in (point if isinstance(point, list) else [point])]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return listed + (f" ({words})" if (words := in_words(point)) else "")


def summary(sae: SAE, escape: Callable[[str], str]) -> str:
    """One sentence: architecture, width, sparsity, place and host."""
    config = sae.config
    kind = "skip transcoder" if config.skip else "transcoder" if config.is_transcoder else "sparse autoencoder"
    each = "about {} active on each token"
    sparsity = {"k": each if sae.couples_tokens else "{} active on each token", "target_l0": each}
    active = [text.format(f"{v:g}") for key, text in sparsity.items() if (v := getattr(config, key, None))]
    host = config.base_model and (hub_id(config.base_model, config.base_revision) or Path(config.base_model).name)
    host = {None: "its host", DEFAULT_HOST: OWN_HOST}.get(host, f"`{host}`")
    place = places(config.hook_in)
    verb = "that reconstructs"
    if config.is_transcoder:
        verb, place = "that reads", f"{place} and predicts {places(config.hook_out)}"
    latents = f"{config.d_sae:,} latents" + (f", {active[0]}," if active else "")
    article = "An" if type(sae).__name__[0] in "AEIO" else "A"
    return f"{article} {type(sae).__name__.removesuffix('SAE')} {kind} with {latents} {verb} {place} of {host}."


def links(sae: SAE) -> list[str]:
    """Links to the host and the training data, where those are on the Hub, and the size in a word each."""
    out = []
    if name := hub_id(sae.config.base_model, sae.config.base_revision):
        out.append(f"Host [{name}]({HUB}/{name})")
    if dataset := hub_dataset(sae):
        out.append(f"Training data [{dataset}]({HUB}/datasets/{dataset})")
    return out


def method(sae: SAE) -> str:
    """The architecture and the paper that it comes from."""
    name, paper = type(sae).__name__.removesuffix("SAE"), type(sae).paper
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", paper)
    return f"{name}: " + (f"[{paper}](https://arxiv.org/abs/{found[1]})." if found else f"{paper}.") if paper else ""


def quickstart(sae: SAE, place: str, subfolder: str | None = None) -> str:
    """Python that runs as it stands: loads the folder or repo, its host, and looks at a text."""
    config = sae.config
    inside = f", subfolder={json.dumps(subfolder)}" if subfolder else ""
    load = f"sae = AutoSAE.from_pretrained({json.dumps(place)}{inside})"
    name = hub_id(config.base_model, config.base_revision)
    of_hosts = any("/" in place for place in config.places_in)  # of several models, which the config does not name
    if (config.base_model != DEFAULT_HOST and name is None) or of_hosts:
        encode = (
            f"code = sae.encode_sparse(torch.zeros(1, {config.d_in}))  # activations at {' | '.join(config.places_in)}"
        )
        return "\n".join(["import torch", "", "from hf_sae import AutoSAE", "", "", load, encode])
    first, tool, look = [], "top_features", ['print(top_features(sae, host, tokenizer, "import os"))']
    if isinstance(config.hook_in, list):
        first, tool, look = ["import torch", ""], "read", SIDE_BY_SIDE
    if config.base_model == DEFAULT_HOST:
        head, host = [f"from hf_sae import AutoSAE, default_host, {tool}"], "default_host()"
    else:
        head = [f"from hf_sae import AutoSAE, {tool}", "from hf_sae.hosts.loading import load_host"]
        revision = f", revision={json.dumps(config.base_revision)}" if config.base_revision else ""
        host = f"load_host({json.dumps(name)}{revision})"
    return "\n".join([*first, *head, "", "", load, f"host, tokenizer = {host}", *look])


def conventions(sae: SAE, report: EvalReport | None) -> list[str]:
    """Hook points, normalisation and masks: what silently goes wrong when it is not known."""
    config, data = sae.config, data_of(sae)
    base = getattr(sae, "name_or_path", "") if has_adapter(sae) else ""
    lines = (
        [f"A PEFT adapter on the encoder of {code(Path(base).name if Path(base).exists() else base)}."] if base else []
    )
    lines += [f"Reads {_side_by_side(config.places_in)}, width {config.d_in:,}."]
    if config.is_transcoder:
        lines.append(f"Writes {_side_by_side(config.places_out)}, width {config.d_out:,}.")
    norm = {
        "none": "Activations are read as they are.",
        "scalar": f"Activations are multiplied by {_scales(config)} before encoding.",
        "center": "Each token's mean is subtracted before encoding.",
        "layer_norm": "Each token's activations are standardised before encoding.",
        "unit_ln": "Each token's activations are standardised before encoding, as by a LayerNorm without gain and bias.",
        "unit_rms": "Each token's activations are divided by their root mean square before encoding.",
    }[config.input_norm]
    undo = "" if config.is_transcoder or config.input_norm == "none" else " Reconstructions are in the host's units."
    lines.append(norm + undo)
    if config.subtracts_bias:
        lines.append("The decoder bias is subtracted from the input before encoding.")
    positions = data.get("positions") or (report.positions if report is not None else None)
    if positions is not None:
        kept = "every position" if positions == "all" else f"positions `{str(positions).replace('`', '')}`"
        lines.append(f"Trained on {kept} but padding and BOS, which are never counted.")
    length = data.get("context_length") or (report.context_length if report is not None else None)
    if length:
        lines.append(f"Context length {length} tokens.")
    return lines


def _side_by_side(points: list[str]) -> str:
    listed = ", ".join(f"`{point}`" for point in points)
    return listed if len(points) == 1 else f"{listed} side by side"


def _scales(config: Any) -> str:
    several = getattr(config, "input_scales", None)
    return ", ".join(f"{s:.6g}" for s in several) + " (place by place)" if several else f"{config.input_scale:.6g}"


def origin(sae: SAE, escape: Callable[[str], str]) -> list[str]:
    """Where a converted checkpoint comes from, and what was done to it; empty for one that was trained here."""
    found = (sae.config.provenance or {}).get("conversion")
    if not isinstance(found, dict):
        return []
    source, place, commit = (found.get(key) for key in ("source", "place", "commit"))
    where = code(source) + (f", {code(place)}" if place else "") + (f", commit {code(commit)}" if commit else "")
    lines = [f"Converted from {where} (format {escape(str(found.get('format')))})."]
    lines += [
        f"File {code(name)} with SHA-256 {code(digest)}." for name, digest in (found.get("sha256") or {}).items()
    ]
    lines += [f"Exact transform: {escape(str(text))}." for text in found.get("transforms") or []]
    figures = [f"{escape(str(key))} {number(value)}" for key, value in (found.get("published") or {}).items()]
    return lines + ([f"Published with {', '.join(figures)}; not measured here."] if figures else [])


def measured(report: EvalReport, escape: Callable[[str], str]) -> str:
    """What the metrics were measured on."""
    dataset = report.dataset
    name = escape(str(dataset.get("name") or dataset.get("dataset") or "a dataset without a name"))
    split = f", split {escape(str(dataset['split']))}" if dataset.get("split") else ""
    numerics = f", {escape(str(report.sae['dtype']))}" if report.sae.get("dtype") else ""
    return (
        f"Measured on {report.n_tokens:,} tokens of {report.n_documents:,} documents ({name}{split}), context length "
        f"{report.context_length}{numerics}, seed {report.seed}. Intervals resample documents."
        + (" Baselines spend as many numbers per token." if report.controls else "")
    )


def training(sae: SAE, extra: Mapping[str, Any], report: EvalReport | None = None) -> list[tuple[str, str]]:
    """Rows of the training table; what is not known is left out."""
    provenance, data = sae.config.provenance or {}, data_of(sae)
    known = {**(provenance.get("training") or {}), **extra}
    corpus = provenance.get("corpus")
    if isinstance(corpus, dict):
        rows = [("Data", f"{corpus.get('name')} of Python {corpus.get('python')}, split {corpus.get('split')}")]
    else:
        dataset = hub_dataset(sae) or data.get("dataset_name") or data.get("dataset")
        rows = [("Data", str(dataset))] if dataset else []
        rows += [("Data revision", str(data["revision"]))] if data.get("revision") else []
    for key, value in known.items():
        if value is not None and isinstance(value, str | int | float):
            rows.append((_TRAINING.get(key, key.replace("_", " ").capitalize()), _shown(value)))
    if "versions" not in known and report is not None and report.versions:
        rows.append(("Versions", ", ".join(f"{library} {version}" for library, version in report.versions.items())))
    return rows


def _shown(value: str | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else value
