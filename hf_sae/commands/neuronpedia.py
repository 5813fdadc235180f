"""`hf-sae neuronpedia`: a feature dataset as the files that Neuronpedia imports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Revision, did_you_mean, fail


if TYPE_CHECKING:
    from ..features.manifest import SAESource
    from ..features.neuronpedia import NeuronpediaSource
    from ..features.reading import FeatureDataset

_KINDS = {"resid": "res", "mlp": "mlp", "attn": "att"}


def neuronpedia(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="Folder or Hub id of a feature dataset.")],
    output_dir: Annotated[Path, typer.Option(help="Folder that {model}/{layer}-{source-set} is made in.")],
    sae: Annotated[list[str] | None, typer.Option(help="sae_id to export; repeatable. Default: all.")] = None,
    model: Annotated[str | None, typer.Option(help="Neuronpedia's id of the host. Default: the host's name.")] = None,
    source_set: Annotated[
        str | None, typer.Option(help="Name of the set without the layer. Default: place and width, such as res-16k.")
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Layer. Default: that of the place that is read.")] = None,
    release: Annotated[str | None, typer.Option(help="Id of the release. Default: the name of FEATURES.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the release. Default: its id.")] = None,
    creator: Annotated[str, typer.Option(help="Author, as shown.")] = "unknown",
    creator_id: Annotated[
        str | None, typer.Option(help="Neuronpedia's id of the account. Default: the author.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Of a paper or page.")] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Export a feature dataset as the gzipped JSON lines that Neuronpedia imports.

    Example: `hf-sae neuronpedia ./sae-features --output-dir ./neuronpedia --model gpt2-small --creator "Ada"`
    """
    from ..features.neuronpedia import NeuronpediaSource, export_neuronpedia
    from ..hub import load_features

    console = Console(as_json)
    dataset = load_features(features, revision)
    chosen = _chosen(dataset, sae)
    name = release or Path(features).resolve().name if Path(features).is_dir() else release or features.split("/")[-1]
    sources: dict[str, NeuronpediaSource] = {}
    for sae_id in chosen:
        about = dataset.saes[sae_id]
        sources[sae_id] = NeuronpediaSource(
            model=model or _model(sae_id, about),
            source_set=source_set or _source_set(about),
            layer=_layer(sae_id, about) if layer is None else layer,
            release=name,
            title=title or name,
            creator=creator,
            creator_id=creator_id or creator,
            url=url,
        )
    _all_apart(sources)
    folders = {}
    for sae_id, source in sources.items():
        folders[sae_id] = str(export_neuronpedia(dataset, sae_id, source, output_dir))
        console.show(f"{sae_id}: {folders[sae_id]}")
    console.finish(
        {"folders": folders}, "send the folders to Neuronpedia, or import them into an instance of your own"
    )


def _chosen(dataset: FeatureDataset, wanted: list[str] | None) -> list[str]:
    for sae_id in wanted or ():
        if sae_id not in dataset.saes:
            fail(f"--sae {sae_id!r} is not in {dataset.name!r}. {did_you_mean(sae_id, dataset.saes)}")
    return list(dict.fromkeys(wanted or dataset.saes))


def _model(sae_id: str, about: SAESource) -> str:
    if about.base_model is None:
        fail(f"the dataset does not say which host {sae_id!r} reads: give --model, such as --model gpt2-small.")
    return about.base_model.split("/")[-1].lower()


def _layer(sae_id: str, about: SAESource) -> int:
    from ..features.search.filters import layer_of

    found = layer_of(about.hook_in)
    return (
        found
        if found is not None
        else fail(f"the place of {sae_id!r} ({about.hook_in}) has no layer: give --layer 8.")
    )


def _source_set(about: SAESource) -> str:
    place = (about.hook_in or "").split("_")[0]
    width = f"{about.d_sae // 1024}k" if about.d_sae >= 1024 else str(about.d_sae)
    return f"{_KINDS.get(place, 'sae')}-{width}"


def _all_apart(sources: dict[str, Any]) -> None:
    """No two autoencoders may be written to one folder."""
    seen: dict[tuple[str, str], str] = {}
    for sae_id, source in sources.items():
        other = seen.setdefault((source.model, source.id), sae_id)
        if other != sae_id:
            fail(
                f"{other!r} and {sae_id!r} would both be {source.model}/{source.id}: export them one by one, with --sae and "
                "--source-set."
            )
