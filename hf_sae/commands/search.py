"""`hf-sae search`."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Revision, fail, load_pair, paragraph


if TYPE_CHECKING:
    from ..features.index import FeatureIndex
    from ..features.reading import FeatureDataset
    from ..features.search.filters import Filters
    from ..features.search.firing import Order
    from ..features.search.hits import Hit, Reason

_CONTEXTS = 2  # shown of each hit


class Sort(StrEnum):
    """What comes first among the features that fire on a prompt."""

    max = "max"
    sum = "sum"
    mean = "mean"
    tf_idf = "tf-idf"


def search(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Hub id or folder of a feature dataset.")],
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="Words to find; in quotes, a phrase.")] = None,
    by_prompt: Annotated[
        str | None, typer.Option("--by-prompt", metavar="TEXT", help="Instead: features that fire on this text.")
    ] = None,
    promotes: Annotated[
        str | None, typer.Option(metavar="TOKEN", help='Instead: features that promote this token, such as " Paris".')
    ] = None,
    sae: Annotated[
        str | None, typer.Option(help="With --by-prompt: Hub id or folder of the autoencoder. Default: the dataset's.")
    ] = None,
    sae_id: Annotated[str | None, typer.Option("--sae-id", help="Only features of this autoencoder.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Only features of this layer. Repeatable.")] = None,
    host: Annotated[
        str | None, typer.Option(help="With --by-prompt: host. Default: the one it was trained on.")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="With --by-prompt: what comes first.")] = Sort.tf_idf,
    min_density: Annotated[float | None, typer.Option(help="Share of tokens on which it fires, at least.")] = None,
    max_density: Annotated[float | None, typer.Option(help="And at most.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Score of its label, at least.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many features.")] = 10,
    words_only: Annotated[bool, typer.Option("--words-only", help="Leave out labels that are only similar.")] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Find features by words, by what they promote, or by a text on which they fire, and say why each was found.

    Example: `hf-sae search user/gpt2-sae-dashboards "docstring"`
    """
    from ..features.index import FeatureIndex
    from ..features.search.embedders import WordsOnly
    from ..features.search.filters import Filters
    from ..hub import load_features

    console = Console(as_json)
    if sum(given is not None for given in (query, by_prompt, promotes)) != 1:
        fail("give one of QUERY, --by-prompt TEXT and --promotes TOKEN: what is to be found?")
    data = load_features(dataset, revision)
    filters = Filters(None if sae_id is None else [sae_id], layer, min_density, max_density, min_score)
    with FeatureIndex.open(data, embedder=WordsOnly() if words_only else None) as index:
        if by_prompt is not None:
            hits = _firing(index, by_prompt, sae, sae_id, host, _order(sort), limit, filters)
        elif promotes is not None:
            hits = index.by_promoted(promotes, limit, filters)
        else:
            hits = index.search(query or "", limit, filters)
        payload = {
            "dataset": dataset,
            "commit": data.commit,
            "how": index.note,
            "hits": [hit.to_dict() for hit in hits],
        }
        if not hits:
            payload["suggestions"] = _suggestions(by_prompt is None, query or "", filters)
            console.show("No feature was found.")
            console.finish(payload, f"try {'; or '.join(payload['suggestions'])}")
            return
        console.show("\n\n".join(_card(hit, data) for hit in hits))
        if query is not None:
            console.show("\n" + paragraph(f"Searched: {index.note}."))
        console.finish(payload, _next(data, hits[0], sae))


def _firing(
    index: FeatureIndex,
    prompt: str,
    sae: str | None,
    sae_id: str | None,
    host: str | None,
    order: Order,
    limit: int,
    filters: Filters,
) -> list[Hit]:
    known = index.dataset.saes
    if sae_id is None and len(known) == 1:
        sae_id = next(iter(known))
    if sae_id not in known:
        fail(f"--by-prompt reads one autoencoder: add --sae-id, one of {', '.join(map(repr, known))}.")
    source = known[sae_id]
    if sae is None and source.repo_id is None:
        fail(f"the dataset does not say where {sae_id!r} lies: add --sae REPO_OR_PATH.")
    own = (source.subfolder or "", source.commit) if sae is None else ("", None)
    autoencoder, model, tokenizer = load_pair(sae or str(source.repo_id), host, *own)
    return index.by_prompt(prompt, model, tokenizer, autoencoder, sae_id, order, limit, filters)


def _order(sort: Sort) -> Order:
    from ..features.search.firing import Maximum, Mean, TfIdf, Total

    return {Sort.max: Maximum(), Sort.sum: Total(), Sort.mean: Mean(), Sort.tf_idf: TfIdf()}[sort]


def _card(hit: Hit, data: FeatureDataset) -> str:
    """One feature: which, its label with its score, why it was found, and its strongest contexts."""
    from ..terminal import WIDTH, Strip, shorten, visible

    rate = f"1 in {1 / hit.density:,.0f} tokens" if hit.density > 0 else "never fired"
    lines = [shorten(f"{visible(hit.sae_id)} {hit.feature}  {rate}, maximum {hit.max_act:.3g}", WIDTH)]
    if hit.label is not None:
        score = "" if hit.label_score is None else f", score {hit.label_score:.2f}"
        lines.append(shorten(f'  "{visible(hit.label)}" by {visible(hit.label_method or "")}{score}', WIDTH))
    lines += [_why(reason) for reason in hit.reasons]
    for context in _contexts(hit, data):
        special = set(context["special_pos"])
        maximum = abs(hit.max_act) or None
        tokens = [shorten(visible(token), WIDTH // 2) for token in context["tokens"]]
        strip = Strip(tokens, context["acts"], maximum, context["max_pos"], special=special, width=WIDTH - 4)
        lines.append(textwrap.indent(str(strip), "    "))
    return "\n".join(lines)


def _contexts(hit: Hit, data: FeatureDataset) -> list[dict[str, Any]]:
    """The strongest contexts of a feature."""
    top = [row for row in data.feature(hit.sae_id, hit.feature).examples if row["kind"] == "top"]
    return sorted(top, key=lambda row: row["rank"])[:_CONTEXTS]


def _why(reason: Reason) -> str:
    """Kind, value and the text that matched, with brackets around what did: one line."""
    from ..terminal import WIDTH, shorten, visible

    value = "" if reason.value is None else f" {reason.value:.3g}"
    head = f"  {reason.kind}{value}: "
    start = max(0, reason.spans[0][0] - 24) if reason.spans else 0
    cells, place = ["…"] if start else [], start
    for begin, end in reason.spans:
        cells += [visible(reason.snippet[place:begin]), "[", visible(reason.snippet[begin:end]), "]"]
        place = end
    return shorten(head + "".join([*cells, visible(reason.snippet[place:])]), WIDTH)


def _next(data: FeatureDataset, hit: Hit, sae: str | None) -> str:
    source = data.saes[hit.sae_id]
    folder = f" --subfolder {source.subfolder}" if source.subfolder and sae is None else ""
    return f'hf-sae steer {sae or source.repo_id or "SAE"}{folder} --feature {hit.feature}=2x --prompt "…"'


def _suggestions(words: bool, query: str, filters: Filters) -> list[str]:
    """What to try after an empty result."""
    from ..features.search.filters import Filters as NoFilters
    from ..features.search.terms import Terms

    bounded = ["fewer bounds on density, score, layer or autoencoder"] if filters != NoFilters() else []
    if not words:
        return [*bounded, "a longer text: BOS is not read", "words instead: hf-sae search DATASET QUERY"]
    single = ["one of its words alone"] if len(Terms.of(query).terms) > 1 else []
    others = [
        "a word of the text itself, since contexts are searched too",
        'features that promote a token: --promotes " word"',
        'features that fire on a text: --by-prompt "…"',
    ]
    return [*bounded, *single, *others][:3]
