"""The card of a repo with many autoencoders: what they are, how good each is, how to load one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import facts, tables
from .blocks import Document, merge, parse
from .cards import KINDS, TAGS, known_tags, template
from .collections import natural
from .markdown import escape
from .plots import Plot


def render_collection_card(
    repo_id: str, index: Mapping[str, Mapping[str, Any]], before: str = "", plot: Plot | None = None
) -> str:
    """The README of a repo with many autoencoders.

    Args:
        repo_id (`str`): where it lives on the Hub.
        index (`Mapping`): what is known of each, by its place (`hf_sae.hub.collections`).
        before (`str`): the README so far, whose own text and header are kept.
        plot ([`Plot`], *optional*): of all of them (`hf_sae.hub.plots.frontier`).

    Raises:
        CheckpointError: if the README so far has a header that is no YAML.
    """
    from huggingface_hub import ModelCardData

    places = sorted(index, key=natural)
    models = {facts.hub_id(entry.get("base_model"), entry.get("base_revision")) for entry in index.values()}
    bases = sorted(name for name in models if name)
    own = any(entry.get("base_model") == facts.DEFAULT_HOST for entry in index.values())
    extra: dict[str, Any] = {"base_model": bases, "base_model_relation": "adapter"} if bases else {}
    architectures = sorted({escape(str(entry.get("architecture") or "")) for entry in index.values()} - {""})
    tags = [TAGS[0], KINDS[0], *architectures, *TAGS[1:]]
    text = template("collection.md.jinja").render(
        title=escape(repo_id.rsplit("/", 1)[-1]),
        count=len(places),
        hosts=[f"`{name}`" for name in bases] + [facts.OWN_HOST] * own,
        repo=json.dumps(repo_id),
        example=json.dumps(places[0]),
        table=tables.overview(places, index),
        plot=plot,
    )
    header = ModelCardData(library_name="hf-sae", tags=tags, **extra).to_dict()
    return str(merge(Document(header, parse(text).parts), parse(before), known_tags()))
