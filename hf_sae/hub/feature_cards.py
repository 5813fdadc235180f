"""The card of a feature dataset: whose features, from what text, what the columns mean, and how to load them."""

from __future__ import annotations

import json
from typing import Any

from ..features.manifest import Manifest, SAESource
from ..features.schema import TABLES
from . import facts
from .blocks import Document, merge, parse
from .cards import template
from .markdown import code, escape, table


TAGS = ["hf-sae", "sae-dashboards", "mechanistic-interpretability", "interpretability"]
_DATA = {"name": "Dataset", "n_tokens": "Tokens", "n_documents": "Documents"}


def render_features_card(manifest: Manifest, repo_id: str, before: str = "") -> str:
    """The README of a feature dataset.

    Args:
        manifest ([`Manifest`]): what it is about and which tables have rows.
        repo_id (`str`): where it lives on the Hub, or a folder that the quickstart loads.
        before (`str`): the README so far, whose own text and header are kept.

    Raises:
        CheckpointError: if the README so far has a header that is no YAML.
    """
    first = manifest.shards["features"][0].first if manifest.rows("features") else None
    text = template("features.md.jinja").render(
        title=escape(repo_id.rstrip("/").rsplit("/", 1)[-1]),
        hosts=sorted({f"`{host}`" for sae in manifest.saes.values() if (host := _host(sae))}),
        count=len(manifest.saes),
        features=f"{manifest.rows('features'):,}",
        quickstart=_quickstart(repo_id, first),
        saes=_saes(manifest),
        data=[(escape(key), escape(value)) for key, value in _data(manifest)],
        tables=[
            {"name": name, "about": kind.about, "rows": f"{manifest.rows(name):,}", "columns": _columns(name)}
            for name, kind in TABLES.items()
        ],
        embedding=_embedding(manifest),
    )
    return str(merge(Document(_header(manifest), parse(text).parts), parse(before)))


def _header(manifest: Manifest) -> dict[str, Any]:
    from huggingface_hub import DatasetCardData

    # a table without rows has no configuration: `datasets` and the viewer take an empty one for an error
    shown = [name for name in TABLES if manifest.rows(name)]
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": f"data/{name}-*.parquet"}
        | ({"default": True} if name == "features" else {})
        for name in shown
    ]
    return DatasetCardData(tags=TAGS, configs=configs).to_dict()


def _host(sae: SAESource) -> str | None:
    return facts.hub_id(sae.base_model, sae.base_revision)


def _quickstart(repo_id: str, first: tuple[str, int] | None) -> str:
    lines = [
        "from hf_sae import load_features",
        "",
        "",
        f"dataset = load_features({json.dumps(repo_id)})",
        "print(dataset)",
    ]
    if first is not None:
        lines += [
            f"record = dataset.feature({json.dumps(first[0])}, {first[1]})  # reads a few row groups, not the tables",
            'print(record.facts["density"], [example["text"] for example in record.examples])',
        ]
    return "\n".join(lines)


def _saes(manifest: Manifest) -> str:
    rows = [["`sae_id`", "Autoencoder", "Commit", "Kind", "Place", "Latents", "Tokens read"]]
    for name, sae in manifest.saes.items():
        where = code(sae.subfolder) if sae.subfolder else ""
        if sae.repo_id and facts.hub_id(sae.repo_id):
            where = f"[{escape(sae.repo_id)}](https://huggingface.co/{sae.repo_id})" + (f" {where}" if where else "")
        place = sae.hook_in or ""
        if sae.hook_out not in (None, sae.hook_in):
            place += f" → {sae.hook_out}"
        rows.append(
            [
                code(name),
                where,
                code(sae.commit[:8]) if sae.commit else "",
                escape(sae.architecture or ""),
                code(place) if place else "",
                f"{sae.d_sae:,}",
                "" if sae.n_tokens is None else f"{sae.n_tokens:,}",
            ]
        )
    return table(rows, (False, False, False, False, False, True, True))


def _data(manifest: Manifest) -> list[tuple[str, str]]:
    rows = []
    for key, value in manifest.data.items():
        if isinstance(value, str | int | float):
            shown = (
                facts.number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
            )
            rows.append((_DATA.get(key, key.replace("_", " ").capitalize()), shown))
    return rows


def _columns(name: str) -> str:
    rows = [["Column", "Type", "Meaning"]]
    for column in TABLES[name].columns:
        kind = str(column.type).replace("item: ", "").replace("element: ", "")
        rows.append([f"`{column.name}`", code(kind), column.meaning + (", or null" if column.optional else "")])
    return table(rows, (False, False, False))


def _embedding(manifest: Manifest) -> str | None:
    made = manifest.embedding
    if made is None:
        return None
    at = f" at {code(made.revision)}" if made.revision else ""
    length = "of length 1" if made.normalised else "not normalised"
    return (
        f"Vectors are by {code(made.model)}{at}, {made.dim:,} numbers each, {length}. Embed a query by the same model."
    )
