"""A feature dataset as Neuronpedia imports it: gzipped lines of JSON in batches of 128 latents.

```
{folder}/{model}/{layer}-{source_set}/release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
                                      features/batch-0.jsonl.gz …  activations/batch-0.jsonl.gz …
```

* `top` and `quantile` examples are written; Neuronpedia has no place for `random` and `zero` ones. Labels and decoder rows are
  left out.
* Bars of a histogram are named by the middle of their bin: Neuronpedia wants as many values as heights.

The layout is that of Neuronpedia's own converter (https://github.com/hijohnnylin/neuronpedia, utils/neuronpedia-utils).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..errors import DataError
from ..models.checkpoint import atomic_folder


if TYPE_CHECKING:
    from .reading import FeatureDataset

BATCH = 128
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_UNUSED = (
    "topkCosSimIndices", "topkCosSimValues", "vector", "decoder_weights_dist",
    *(f"neuron_alignment_{kind}" for kind in ("indices", "values", "l1")),
    *(f"correlated_{of}_{kind}" for of in ("neurons", "features") for kind in ("indices", "pearson", "l1")),
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class NeuronpediaSource:
    """What Neuronpedia calls one autoencoder, and who made it.

    Args:
        model (`str`): Neuronpedia's id of the host, such as `gpt2-small`.
        source_set (`str`): name of the set without the layer, such as `res-16k`.
        layer (`int`): of the place.
        release (`str`): id of the release.
        title (`str`): of the release, for people.
        creator (`str`): its author.
        creator_id (`str`): Neuronpedia's id of the account that it will belong to.
        url (`str`, *optional*): of a paper or page.
    """

    model: str
    source_set: str
    layer: int
    release: str
    title: str
    creator: str
    creator_id: str
    url: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "source_set", "release"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise DataError(
                    f"{name}={getattr(self, name)!r}: give letters, digits, '-', '_' and '.', as in 'gemma-2-2b'."
                )
        if self.layer < 0:
            raise DataError(f"layer={self.layer}: give the number of the layer, from 0.")

    @property
    def id(self) -> str:
        """Of the source within the model."""
        return f"{self.layer}-{self.source_set}"


def export_neuronpedia(
    dataset: FeatureDataset, sae_id: str, source: NeuronpediaSource, folder: str | Path, *, progress: bool = True
) -> Path:
    """Writes the latents of one autoencoder in Neuronpedia's layout; 128 latents are in memory at a time.

    Args:
        dataset ([`FeatureDataset`]): what [`harvest`][hf_sae.features.harvest.harvest] wrote.
        sae_id (`str`): one of `dataset.saes`.
        source ([`NeuronpediaSource`]): what it is called there.
        folder (`str` or `Path`): where `{model}/{layer}-{source_set}` is made.
        progress (`bool`): show a bar.

    Returns:
        `Path`: the folder of the source.

    Raises:
        DataError: if the dataset is not about `sae_id`, its rows are not as the schema says, or the folder of the source is not
            empty.
        CheckpointError: if it cannot be written; nothing is left behind then.
    """
    if sae_id not in dataset.saes:
        raise DataError(f"{dataset.name!r} is not about {sae_id!r}, but {', '.join(map(repr, dataset.saes))}.")
    target = Path(folder, source.model, source.id)
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{str(target)!r} is not empty: give another folder.")
    now = datetime.now(UTC).isoformat()
    same = {"modelId": source.model, "layer": source.id, "creatorId": source.creator_id, "createdAt": now}
    examples = _ByFeature(_rows(dataset, "examples", sae_id))
    latents = _rows(dataset, "features", sae_id)
    with (
        atomic_folder(target) as place,
        tqdm(total=dataset.saes[sae_id].d_sae, desc="neuronpedia", unit="latent", disable=not progress) as bar,
    ):
        for name, row in _descriptions(dataset, sae_id, source, now).items():
            (place / f"{name}.jsonl").write_text(_lines([row]), encoding="utf-8")
        for folder_name in ("features", "activations"):
            (place / folder_name).mkdir()
        number = 0
        while batch := list(islice(latents, BATCH)):
            acts = [_activation(example, same) for row in batch for example in examples.of(row["feature"])]
            for name, rows in (("features", [_feature(row, same) for row in batch]), ("activations", acts)):
                packed = gzip.compress(_lines(rows).encode(), mtime=0)
                (place / name / f"batch-{number}.jsonl.gz").write_bytes(packed)
            number += 1
            bar.update(len(batch))
    return target


class _ByFeature:
    """Rows that come sorted by feature, handed out feature by feature."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows, self._next = rows, next(rows, None)

    def of(self, feature: int) -> Iterator[Row]:
        while self._next is not None and self._next["feature"] <= feature:
            row, self._next = self._next, next(self._rows, None)
            if row["feature"] == feature and row["kind"] in ("top", "quantile"):
                yield row


def _rows(dataset: FeatureDataset, table: str, sae_id: str) -> Iterator[Row]:
    return (row for rows in dataset.batches(table) for row in rows.to_pylist() if row["sae_id"] == sae_id)


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _descriptions(dataset: FeatureDataset, sae_id: str, source: NeuronpediaSource, now: str) -> dict[str, Row]:
    about, data = dataset.saes[sae_id], dataset.data
    made = {"creatorId": source.creator_id, "createdAt": now}
    length = data.get("context_length")
    prompts = about.n_tokens // length if about.n_tokens and isinstance(length, int) and length else None
    return {
        "release": {
            "name": source.release,
            "description": source.title,
            "descriptionShort": source.title,
            "urls": [source.url] if source.url else [],
            "creatorNameShort": source.creator,
            "creatorName": source.creator,
            **made,
        },
        "model": {
            "id": source.model,
            "displayNameShort": source.model,
            "displayName": source.model,
            "instruct": source.model.endswith("-it"),
            "updatedAt": now,
            **made,
        },
        "sourceset": {
            "modelId": source.model,
            "name": source.source_set,
            "creatorName": source.creator,
            "releaseName": source.release,
            "description": source.title,
            "visibility": "PUBLIC",
            **made,
        },
        "source": {
            "modelId": source.model,
            "setName": source.source_set,
            "visibility": "PUBLIC",
            "dataset": data.get("name"),
            "id": source.id,
            "num_prompts": prompts,
            "num_tokens_in_prompt": length,
            "hfRepoId": about.repo_id,
            "hfFolderId": about.subfolder,
            "creatorId": source.creator_id,
        },
    }


def _feature(row: Row, same: Row) -> Row:
    return {
        **same,
        "index": row["feature"],
        "maxActApprox": row["max_act"],
        "frac_nonzero": row["density"],
        "pos_str": row["pos_tokens"],
        "pos_values": row["pos_logits"],
        "neg_str": row["neg_tokens"],
        "neg_values": row["neg_logits"],
        "freq_hist_data_bar_heights": row["hist_counts"],
        "freq_hist_data_bar_values": _middles(row["hist_edges"]),
        "logits_hist_data_bar_heights": row["logit_hist_counts"],
        "logits_hist_data_bar_values": _middles(row["logit_hist_edges"]),
        "hasVector": False,
        "vectorLabel": None,
        "hookName": None,
        **{name: [] for name in _UNUSED},
    }


def _activation(row: Row, same: Row) -> Row:
    acts, peak = row["acts"], row["max_pos"]
    top = row["kind"] == "top"
    key = json.dumps([same["modelId"], same["layer"], *(row[name] for name in ("feature", "kind", "bin", "rank"))])
    return {
        **same,
        "id": "c" + hashlib.sha256(key.encode()).hexdigest()[:24],
        "index": row["feature"],
        "tokens": row["tokens"],
        "values": acts,
        "maxValue": acts[peak],
        "maxValueTokenIndex": peak,
        "minValue": min(acts),
        "binMin": -1 if top else row["bin_min"],
        "binMax": acts[peak] if top else row["bin_max"],
        "binContains": -1 if top else row["bin_share"],
        "qualifyingTokenIndex": peak,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
        "dataIndex": str(row["doc_id"]),
        "dataSource": row["doc_name"],
    }


def _middles(edges: list[float]) -> list[float]:
    return [(low + high) / 2 for low, high in pairwise(edges)]
