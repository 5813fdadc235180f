"""`harvest`: one pass over text, and everything a dashboard shows of the latents of any number of autoencoders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..activations.reading import HostReader
from ..corpus import stdlib_files
from ..errors import HookPointError
from ..evaluation.core import DEFAULT_CONTEXT, recorded
from ..evaluation.passes import inference
from ..evaluation.samples import open_source
from ..hooks import one_place
from ..hosts import unwrap
from ..hosts.fingerprints import fingerprint, warn_of_another_host
from .corpus_pass import CorpusPass, weights_sha256
from .harvest_rows import Gathered, Rows, TokenTexts
from .latent_state import ExampleCounts, LatentState
from .logit_effects import LogitEffects
from .manifest import SAESource
from .neighbours import DecoderNeighbours
from .ranks import Ranks
from .saved_pass import SavedPass
from .writing import FeatureWriter


if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.modeling_sae import SAE
    from .reading import FeatureDataset

_LATENTS_AT_ONCE = 256  # rows that are made before they are written
EXACT, AT_LEAST = "exact", "at least: rare pairs were forgotten on the way"


def harvest(
    saes: SAE | Mapping[str, SAE],
    host: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    folder: str | Path,
    *,
    n_tokens: int = 1_000_000,
    examples: ExampleCounts | None = None,
    n_logits: int = 10,
    n_related: int = 10,
    context_length: int | None = None,
    batch_size: int = 16,
    positions: Any = None,
    column: str | None = None,
    split: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    accelerator: Accelerator | None = None,
    save_tokens: int | None = 1_000_000,
    resume: bool = False,
) -> FeatureDataset:
    """Reads text once and writes a feature dataset: statistics, contexts, logit effects and related latents.

    A *context* is the part of a row of tokens that is of one document, with a window around its strongest token.

    * `top`: contexts with the strongest peaks. `random`: a uniform sample of the contexts where the latent fires. `quantile`:
      further ones of that sample, by intervals of the peak's activation that hold about equal shares of the contexts;
      the ends of the intervals are edges of a histogram of all peaks, so that `bin_share` is exact. `zero`: windows from
      anywhere in the text in which the latent fires nowhere, from one sample of `examples.pool` windows. Equal windows
      count once in each kind.
    * Neighbours compare every pair of decoder rows. Co-activation counts are exact up to 16,384 latents; beyond, they may be lower
      bounds (see [`hf_sae.features.coactivation`]); `data["coactivation"]` of the dataset says which.
    * Logit effects are direct ones; `data["logit_effects"]` says how the final norm was handled
      ([`hf_sae.features.logit_effects`]), or why there are none.

    Nothing depends on `batch_size`. Memory does not grow with `n_tokens`: per latent
    `(top + reservoir) * (20 + 8 * (2 * window + 1)) + pool + 2200` bytes and for co-activation `4 * d_sae` up to 16,384
    latents, 4096 beyond ([`kept_bytes`][hf_sae.features.latent_state.kept_bytes]): 1.4 GB for 16,384 latents by default.
    Beside it stand one batch (some hundred bytes for each non-zero latent of it) and, while a batch is merged, copies
    of the contexts that change.

    Args:
        saes ([`SAE`] or `dict[str, SAE]`): one, called `"sae"`, or several by the `sae_id` of their rows.
        host (`PreTrainedModel`): the model that they read.
        tokenizer: of the host.
        dataset: as in [`hf_sae.evaluate`]; `None` is the test split of the standard-library corpus.
        folder (`str` or `Path`): where to write.
        n_tokens (`int`): tokens to read, BOS and padding not counted; the last row is read whole.
        examples ([`ExampleCounts`], *optional*): how many contexts of each kind, and how wide.
        n_logits (`int`): promoted and suppressed tokens of each latent.
        n_related (`int`): neighbours, and partners in co-activation.
        context_length (`int`, *optional*), batch_size (`int`), positions (*optional*), column (`str`, *optional*), split (`str`, *optional*): as
            in [`hf_sae.evaluate`].
        seed (`int`): of the order of documents and of the random contexts.
        overwrite (`bool`): replace a feature dataset that is there.
        progress (`bool`): show bars.
        accelerator (`Accelerator`, *optional*): its processes share the pass, and every one of them has to make this call, with
            its own copy of the host on its device and a folder that all of them see. The dataset is that of one process.
        save_tokens (`int`, *optional*): tokens between two saves of what was gathered, in `{folder}.unfinished`, which is
            removed at the end; `None` saves nothing. Each needs the memory stated above once more on disk, for a moment twice.
        resume (`bool`): go on from what was saved, by any number of processes; where nothing was, from the beginning. The
            text is tokenised again up to there and compared. The dataset is that of a run that was not interrupted.

    Returns:
        [`FeatureDataset`]: of the folder.

    Raises:
        ValueError: for `n_tokens` or `save_tokens` below 1, and counts that are negative.
        HookPointError: if the host has no such place, or it has another width.
        DataError: if the dataset has no tokens, an activation is not finite, the folder holds something else, an unfinished pass
            is there and neither `resume` nor `overwrite` given, what was saved is of another pass, or a process has ended.
    """
    if n_tokens < 1 or min(n_logits, n_related) < 0 or (save_tokens is not None and save_tokens < 1):
        raise ValueError(
            f"n_tokens={n_tokens}, save_tokens={save_tokens}, n_logits={n_logits}, n_related={n_related}: give at least 1, 1 or "
            "None, 0 and 0."
        )
    named = dict(saes) if isinstance(saes, Mapping) else {"sae": saes}
    counts, ranks = examples or ExampleCounts(), Ranks(accelerator)
    FeatureWriter(folder, {name: SAESource.of(sae) for name, sae in named.items()}, overwrite=overwrite)  # may refuse
    reader = _reader(named, host, tokenizer)
    context_length = context_length or recorded(named, "context_length", DEFAULT_CONTEXT)
    positions = positions if positions is not None else recorded(named, "positions", "all")
    reader.check_length(context_length)
    options = {"batch_size": batch_size, "positions": positions, "column": column, "split": split, "seed": seed}
    source, info = open_source(dataset, tokenizer, context_length=context_length, **options)
    settings = {
        "the autoencoders": {name: weights_sha256(sae) for name, sae in named.items()},
        "the host": [fingerprint(unwrap(host), tokenizer), weights_sha256(host, sampled=True)],
        "the data": info,
        "the options": [context_length, batch_size, seed, asdict(counts)],
    }
    saved = SavedPass(folder, settings, ranks, save_tokens)
    begun = saved.begin(resume, overwrite, n_tokens)
    states = {name: LatentState(sae.config.d_sae, counts, seed) for name, sae in named.items()}
    saved.load(states)
    with inference(host, *named.values()):
        read = CorpusPass(source, reader, named, states, ranks, saved).run(n_tokens, begun, progress)
        if ranks.is_first:
            data = info | {"n_tokens": read, "context_length": context_length, "seed": seed, "window": counts.window}
            rows = Rows(TokenTexts(tokenizer), counts, n_logits, n_related, _name_of(dataset))
            _write(named, states, host, len(tokenizer), rows, data, folder, overwrite, progress)
            saved.remove()
    ranks.wait()
    from .reading import FeatureDataset

    return FeatureDataset.open(folder)


def _reader(saes: Mapping[str, SAE], host: PreTrainedModel, tokenizer: Any) -> HostReader:
    """Reads every place once; widths are compared before anything runs."""
    for name, sae in saes.items():
        warn_of_another_host(sae, host, tokenizer, stacklevel=4)
        one_place(sae, "hook_in", f"a harvest of {name!r}")
    reader = HostReader(host, list(dict.fromkeys(str(sae.config.hook_in) for sae in saes.values())), None)
    for name, sae in saes.items():
        width = reader.widths[str(sae.config.hook_in)]
        if width != sae.config.d_in:
            raise HookPointError(
                f"{sae.config.hook_in!r} of {type(host).__name__} is {width} wide, and {name!r} has d_in={sae.config.d_in}. "
                f"Use the host it was trained on ({sae.config.base_model or 'not recorded in its config'})."
            )
    return reader


def _write(
    saes: Mapping[str, SAE],
    states: dict[str, LatentState],
    host: PreTrainedModel,
    vocabulary: int,
    rows: Rows,
    data: dict[str, Any],
    folder: str | Path,
    overwrite: bool,
    progress: bool,
) -> None:
    """The dataset; states are let go as they are written."""
    effects = {name: LogitEffects(sae, host, vocabulary) for name, sae in saes.items()}
    data |= {
        "logit_effects": _said({name: effect.note for name, effect in effects.items()}),
        "coactivation": _said({name: EXACT if state.pairs.exact else AT_LEAST for name, state in states.items()}),
    }
    sources = {name: SAESource.of(sae, n_tokens=data["n_tokens"]) for name, sae in saes.items()}
    total = sum(state.d_sae for state in states.values())
    with (
        FeatureWriter(folder, sources, data=data, overwrite=overwrite) as writer,
        tqdm(total=total, desc="writing", unit="latent", disable=not progress) as bar,
    ):
        for name in sorted(saes):
            gathered = Gathered(name, states.pop(name), DecoderNeighbours(saes[name].W_dec), effects[name])
            for latents in torch.arange(gathered.state.d_sae).split(_LATENTS_AT_ONCE):
                writer.append("features", rows.features(gathered, latents))
                writer.append("examples", rows.examples(gathered, latents))
                bar.update(len(latents))


def _name_of(dataset: Any) -> Callable[[int], str | None]:
    """The name of a record by its number, where the data has them as a column `path`.

    Each is looked up once: in a table that takes longer than all else about a context, and a document has many.
    """
    names = None
    if dataset is None:
        names = [path for path, _ in stdlib_files("test")]
    elif "path" in (getattr(dataset, "column_names", None) or ()) and len(dataset):
        names = dataset["path"]
    return functools.cache(lambda number: None if names is None else str(names[number]))


def _said(notes: Mapping[str, str]) -> str:
    """One sentence where it is the same for all."""
    if len(set(notes.values())) == 1:
        return next(iter(notes.values()))
    return "; ".join(f"{name}: {note}" for name, note in notes.items())
