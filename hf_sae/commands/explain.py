"""`hf-sae explain`: labels for the latents of a feature dataset, each with a score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Revision, aligned, columns, fail, paragraph


if TYPE_CHECKING:
    from collections.abc import Callable

    from ..features.explaining.judge_labeller import Estimate
    from ..features.explaining.judges.protocol import Judge
    from ..features.explaining.report import Explained

_NO_JUDGE = "none"


def explain(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder of a feature dataset, or its Hub id.")],
    judge: Annotated[
        str,
        typer.Option(
            metavar="none|local:MODEL|hf:MODEL",
            help="none: rules about tokens. local: a model on this machine. hf: one behind an API; the key is that of "
            "`hf auth login` or HF_TOKEN, and HF_SAE_JUDGE_KEY with --judge-url.",
        ),
    ] = _NO_JUDGE,
    judge_url: Annotated[
        str | None, typer.Option(help="With hf: a server of your own, such as http://127.0.0.1:8000/v1.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="With hf: inference provider. Default: the Hub chooses.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Only these, such as 0-99 or 0-99,205.")] = None,
    n_features: Annotated[int | None, typer.Option(min=1, help="At most so many, those that fire most.")] = None,
    sae_id: Annotated[str | None, typer.Option("--sae-id", help="Only features of this autoencoder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace labels of the same method.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Folder to download a dataset of the Hub to.")] = None,
    price_in: Annotated[float, typer.Option(min=0, help="With hf: price of a million tokens that are read.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="And of a million that are written.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With hf: do not ask before spending.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Labels shown.")] = 20,
    seed: Annotated[int, typer.Option(help="Of which contexts a label is made from, and which it is tested on.")] = 0,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Label features in plain words, and measure on other contexts whether each label tells where the feature fires.

    Labels that are there stay. A run that was interrupted goes on when it is started again.

    Example: `hf-sae explain ./sae-features`
    """
    from ..features.explaining import explain_features
    from ..features.explaining.choosing import parse_features

    console = Console(as_json)
    asked = _judge(judge, judge_url, provider)
    chosen = None if features is None else parse_features(features)
    folder = _folder(dataset, output_dir, revision)
    pays = judge.startswith("hf:") and not yes
    report = explain_features(
        folder,
        judge=asked,
        sae_id=sae_id,
        features=chosen,
        n_features=n_features,
        overwrite=overwrite,
        seed=seed,
        confirm=_confirmation(console, price_in, price_out) if pays else None,
    )
    payload = report.to_dict()
    if report.usage and (price_in or price_out):
        read, written = (report.usage.get(name, 0) for name in ("tokens_in", "tokens_out"))
        payload["cost"] = (read * price_in + written * price_out) / 1e6
    if report.labelled and limit:
        console.show(_table(report.labelled, limit))
    console.show("\n" + paragraph(_summary(payload)))
    shown = f'hf-sae search {folder} "words of a label"'
    console.finish(payload, shown if report.labelled or report.known else f"hf-sae explain {folder} --overwrite")


def _judge(name: str, url: str | None, provider: str | None) -> Judge | None:
    kind, _, model = name.partition(":")
    if (url or provider) and kind != "hf":
        fail(f"--judge-url and --provider go with --judge hf:MODEL, and it is {name!r}.")
    if name == _NO_JUDGE:
        return None
    if kind not in ("local", "hf") or not model:
        fail(f"--judge {name!r}: write none, local:MODEL or hf:MODEL, such as hf:Qwen/Qwen3-8B.")
    from ..features.explaining.judges import InferenceClientJudge, TransformersJudge

    if kind == "hf":
        return InferenceClientJudge(model, provider, url)
    return TransformersJudge.load(model)


def _folder(dataset: str, output_dir: Path | None, revision: str | None) -> Path:
    """The dataset in a folder; one of the Hub is downloaded, where it was said whereto."""
    if Path(dataset).is_dir():
        if output_dir is not None:
            fail(f"--output-dir is where a dataset of the Hub goes, and {dataset!r} is a folder: leave it out.")
        return Path(dataset)
    if output_dir is None:
        fail(
            f"{dataset!r} is no folder here. Labels are written into a folder: add --output-dir FOLDER to download the dataset "
            "there from the Hub, and push it when you are done."
        )
    from ..features.copying import copy_dataset
    from ..hub import load_features

    copy_dataset(load_features(dataset, revision), output_dir)
    return output_dir


def _confirmation(console: Console, price_in: float, price_out: float) -> Callable[[Estimate], bool]:
    """Says what a run would take and asks whether to go on."""

    def confirm(estimate: Estimate) -> bool:
        priced = price_in or price_out
        cost = (
            f"about {estimate.cost(price_in, price_out):,.2f} by the prices given"
            if priced
            else ("the price is not known: give --price-in and --price-out")
        )
        console.say(
            f"About {estimate.requests:,} requests, {estimate.tokens_in:,} tokens to read and at most "
            f"{estimate.tokens_out:,} to write: {cost}. What is in the cache costs nothing."
        )
        if not typer.confirm("Go on?", err=True):
            fail("nothing was asked and nothing spent. Choose fewer with --n-features, or go on with --yes.")
        return True

    return confirm


def _table(labelled: list[Explained], limit: int) -> str:
    """The labels with the best scores first."""
    from ..terminal import shorten, visible

    several = len({one.sae_id for one in labelled}) > 1
    ranked = sorted(labelled, key=lambda one: (-(one.detection.score or 0), one.sae_id, one.feature))[:limit]
    head = [*(["sae_id"] if several else []), "feature", "score", "95 % interval", "contexts"]
    rows = [head]
    for one in ranked:
        found = one.detection
        score, interval = "-", ""
        if found.score is not None and found.low is not None and found.high is not None:
            score, interval = f"{found.score:.2f}", f"{found.low:.2f}-{found.high:.2f}"
        count = f"{found.firing}+{found.silent}"
        rows.append([*([visible(one.sae_id)] if several else []), str(one.feature), score, interval, count])
    facts = aligned(rows, "<" * several + ">>>>").splitlines()
    width = max(max(map(len, facts)) + 2, 20)
    texts = ["label", *(visible(one.text) for one in ranked)]
    return "\n".join(
        f"{fact:<{width}}{shorten(text, max(columns() - width, 10))}" for fact, text in zip(facts, texts, strict=True)
    )


def _summary(payload: dict[str, Any]) -> str:
    words = [f"Labelled {payload['labelled']:,} features by {payload['model'] or payload['method']}."]
    for key, what in (
        ("known", "had such a label already"),
        ("never_fired", "never fired"),
        ("unlabelled", "got no label that could be read, or have no context to make one from"),
    ):
        if payload[key]:
            words.append(f"{payload[key]:,} {what}.")
    if payload["scored"]:
        words.append(
            f"Detection score on contexts of other documents: mean {payload['mean_score']:.2f}, median {payload['median_score']:.2f}; "
            f"chance is {payload['chance']}"
            + ("" if payload["control"] is None else f", and labels of other features get {payload['control']:.2f}")
            + f". {payload['above_chance']:,} of {payload['scored']:,} lie above chance with their whole 95 % interval."
        )
    if payload["not_scored"]:
        reasons = "; ".join(f"{count:,} with {reason}" for reason, count in payload["not_scored"].items())
        words.append(f"Not scored: {reasons}.")
    if payload["failed_answers"]:
        words.append(f"{payload['failed_answers']:,} answers of the judge could not be read.")
    if payload["usage"]:
        words.append("Judge: " + ", ".join(f"{value:,} {name}" for name, value in payload["usage"].items()) + ".")
    if "cost" in payload:
        words.append(f"Cost by the prices given: {payload['cost']:,.2f}.")
    return " ".join(words)
