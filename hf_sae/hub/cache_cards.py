"""The card of an activation cache: whose activations, of what text, what storing them lost, and how to train on them."""

from __future__ import annotations

import json
from typing import Any

from ..activations import Manifest
from . import facts
from .blocks import Document, merge, parse
from .cards import template
from .markdown import code, escape, table


TAGS = ["hf-sae", "activations", "mechanistic-interpretability", "interpretability"]
_DATA = {
    "dataset": "Dataset",
    "revision": "Revision",
    "split": "Split",
    "context_length": "Tokens per row of text",
    "packed": "Packed",
    "positions": "Positions",
    "tokenizer": "Tokenizer",
}
_COUNTS = {
    "seen": "Tokens that the host read",
    "masked": "Left out by the mask",
    "non_finite": "Left out, not finite",
    "outliers": "Norm outliers, kept",
}


def render_cache_card(manifest: Manifest, repo_id: str, before: str = "") -> str:
    """The README of a cache; everything in it is from the manifest.

    Args:
        manifest ([`Manifest`]): of the cache.
        repo_id (`str`): where it lives on the Hub.
        before (`str`): the README so far, whose own text and header are kept.

    Raises:
        CheckpointError: if the README so far has a header that is no YAML.
    """
    source = manifest.source
    base, revision = source.get("base_model"), source.get("base_revision")
    hub = facts.hub_id(base, revision)
    host = facts.OWN_HOST if base == facts.DEFAULT_HOST else f"`{hub or base or 'an unnamed host'}`"
    text = template("cache.md.jinja").render(
        title=escape(repo_id.rstrip("/").rsplit("/", 1)[-1]),
        tokens=f"{manifest.n_tokens:,}",
        host=host,
        revision=code(str(revision)) if revision else None,
        quickstart=_quickstart(manifest, repo_id),
        points=_points(manifest),
        storage=manifest.storage.name,
        shards=f"{len(manifest.shards):,}",
        rows=f"{manifest.rows_per_shard:,}",
        size=f"{manifest.n_bytes / 1e6:,.1f}",
        data=[(escape(key), escape(value)) for key, value in _data(source)],
    )
    return str(merge(Document(_header(hub), parse(text).parts), parse(before)))


def _header(hub: str | None) -> dict[str, Any]:
    from huggingface_hub import DatasetCardData

    # shards are no table that the viewer could show
    header = DatasetCardData(tags=TAGS).to_dict() | {"viewer": False}
    return header | ({"base_model": hub} if hub else {})


def _quickstart(manifest: Manifest, repo_id: str) -> str:
    point, width = next(iter(manifest.widths.items()))
    return "\n".join(
        [
            "from hf_sae import SAETrainer, SAETrainingArguments, TopKConfig, TopKSAE",
            "from hf_sae.activations import CachedStream",
            "",
            f"stream = CachedStream({json.dumps(repo_id)}, repeat=True)",
            f"sae = TopKSAE(TopKConfig(d_in={width}, d_sae={16 * width}, k=32, hook_in={json.dumps(point)}))",
            f'args = SAETrainingArguments(output_dir="sae", total_tokens={manifest.n_tokens})',
            "SAETrainer(sae, args, stream).train()",
        ]
    )


def _points(manifest: Manifest) -> str:
    rows = [["Place", "Width", "Mean norm", "Total variance", "FVU floor of storage"]]
    for point, found in manifest.points.items():
        figures = [facts.number(x) for x in (found.mean_norm, found.total_variance)]
        rows.append([code(point), f"{found.width:,}", *figures, f"{found.fvu_floor:.3g}"])
    return table(rows, (False, True, True, True, True))


def _data(source: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for part, names in ((source.get("data"), _DATA), (source.get("counts"), _COUNTS)):
        values = part if isinstance(part, dict) else {}
        for key, title in names.items():
            value = values.get(key)
            if isinstance(value, str | int | float):
                shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
                found.append((title, shown))
    if isinstance(source.get("seed"), int):
        found.append(("Seed of the order", str(source["seed"])))
    return found
