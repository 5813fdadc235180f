"""`explain_features`: labels for the latents of a feature dataset, each with a score on contexts that it was not made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ...errors import ConfigError
from .choosing import chosen, most_active
from .detection import detect
from .judge_labeller import Estimate, JudgeLabeller
from .labels import Detector, Label, Labeller
from .latent import Latent
from .latents import Key, Latents
from .ngram import NGramLabeller, RuleDetector
from .report import Explained, ExplainReport
from .saving import LabelStore


if TYPE_CHECKING:
    from ..search.embedders import Embedder
    from .judges.protocol import Judge

_SAVE_EVERY = 60.0  # seconds: what a crash may cost
_LOOKED_AT = 16  # latents that an estimate is made from


def explain_features(
    folder: str | Path,
    labeller: Labeller | None = None,
    judge: Judge | None = None,
    *,
    sae_id: str | None = None,
    features: Sequence[int] | None = None,
    n_features: int | None = None,
    overwrite: bool = False,
    embedder: Embedder | None = None,
    seed: int = 0,
    confirm: Callable[[Estimate], bool] | None = None,
    progress: bool = True,
) -> ExplainReport:
    """Labels latents of a feature dataset, scores each label, and writes both into the dataset.

    The contexts of a latent are split by document: from one part a label is made, on the other it is tested
    ([`hf_sae.features.explaining.detection`]). A label whose score lies near 0.5 says nothing, however well it reads.
    Labels that are there stay; latents that have one of the same method and model are left out, so that a run which was
    interrupted goes on where it was saved last. The folder holds the old dataset or a whole new one at every moment.

    Args:
        folder (`str` or `Path`): of a feature dataset.
        labeller ([`Labeller`], *optional*): makes the labels. Default: [`NGramLabeller`], rules about tokens without any model.
        judge ([`Judge`], *optional*): a language model that makes the labels and is asked where they hold, instead of `labeller`.
        sae_id (`str`, *optional*): only latents of this autoencoder.
        features (`list` of `int`, *optional*): only these.
        n_features (`int`, *optional*): at most so many, those that fire most often.
        overwrite (`bool`): replace labels of the same method and model.
        embedder ([`Embedder`], *optional*): makes vectors of labels for search. Default: what made those that are there, where that is
            [`HashingEmbedder`], and it where there are none.
        seed (`int`): of the split.
        confirm (`Callable`, *optional*): is told what a judge would have to read and write, and says whether to go on.
        progress (`bool`): show a bar.

    Returns:
        [`ExplainReport`]: the new labels.

    Raises:
        ConfigError: for a choice of latents that there are not.
        DataError: if the folder holds no feature dataset, or one without contexts, or vectors by another model.
    """
    if labeller is not None and judge is not None:
        raise ConfigError("labeller= and judge= are both given: a judge makes the labels itself; give one of them.")
    made: Labeller = labeller or (NGramLabeller() if judge is None else JudgeLabeller(judge))
    store = LabelStore(folder, made, embedder)
    latents = Latents(store.dataset, seed)
    report = ExplainReport(Path(folder), made.method, made.model)
    fired = latents.fired()
    widths = {name: source.d_sae for name, source in store.dataset.saes.items()}
    keys = chosen(fired, widths, sae_id, features)
    known = set() if overwrite else store.known()
    wanted = [key for key in keys if key in fired and key not in known]
    report.silent, report.known = sum(key not in fired for key in keys), sum(key in known for key in keys)
    if n_features is not None:
        wanted = most_active(wanted, fired, n_features)
    if confirm is not None and isinstance(made, JudgeLabeller) and not confirm(_estimate(made, latents, wanted)):
        return report
    if overwrite:
        store.replace(wanted)
    found = _explained(latents.of(set(wanted)), made, report)
    with tqdm(total=len(wanted), desc="Labelling", unit="latent", delay=2, disable=not progress) as bar:
        _saved(store, _counted(found, bar))
    if judge is not None:
        report.usage = judge.usage()
    return report


def _estimate(labeller: JudgeLabeller, latents: Latents, wanted: list[Key]) -> Estimate:
    """From a few latents that are spread over all."""
    some = wanted[:: max(len(wanted) // _LOOKED_AT, 1)][:_LOOKED_AT]
    return labeller.estimate(list(latents.of(set(some)))).times(len(wanted) / max(len(some), 1))


def _saved(store: LabelStore, found: Iterator[Explained]) -> None:
    """Writes labels from time to time, and at the end."""
    waiting: list[Explained] = []
    since = time.monotonic()
    for one in found:
        waiting.append(one)
        if time.monotonic() - since > _SAVE_EVERY:
            store.add(waiting)
            waiting, since = [], time.monotonic()
    if waiting:
        store.add(waiting)


def _counted(found: Iterable[Explained], bar: tqdm) -> Iterator[Explained]:
    for one in found:
        bar.update()
        yield one


def _explained(latents: Iterator[Latent], labeller: Labeller, report: ExplainReport) -> Iterator[Explained]:
    other: Detector | None = None
    while batch := list(islice(latents, labeller.batch_size)):
        for latent, label in zip(batch, labeller.label(batch), strict=True):
            if label is None:
                report.unlabelled += 1
                continue
            one = _scored(latent, label)
            report.labelled.append(one)
            other = _control(latent, label, other, report)
            yield one


def _scored(latent: Latent, label: Label) -> Explained:
    found = detect(label.detector, latent.held_out)
    return Explained(latent.sae_id, latent.feature, label.text, latent.density, found)


def _control(latent: Latent, label: Label, other: Detector | None, report: ExplainReport) -> Detector | None:
    """How the rule of the latent before fares on this one; a judge is not asked a second time."""
    if isinstance(other, RuleDetector) and (score := detect(other, latent.held_out).score) is not None:
        report.control.append(score)
    return label.detector
