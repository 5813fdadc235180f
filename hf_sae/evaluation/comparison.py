"""One autoencoder in two hosts at once: what is accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import TokenBatch
from ..features.contexts import ContextStore
from ..hosts import unwrap
from ..hosts.adapters import without_adapters
from ..metrics import next_token_divergence, next_token_losses
from ..models.modeling_sae import SAE
from ..models.sparse_code import SparseCode
from .paired import PairedSums
from .passes import clean_run, points_of, predictions
from .samples import EvalBatch, Sample
from .trial import Trial


_EXAMPLES, _WINDOW = 5, 8


@dataclass
class Run(Trial):
    """One of the two hosts under the autoencoder; keeps the codes of the current batch."""

    codes: list[SparseCode] = field(default_factory=list)

    def record(self, code: SparseCode) -> None:
        """As in [`Trial`]; and keeps the code."""
        super().record(code)
        self.codes.append(code)

    def take(self) -> SparseCode:
        """The code of the current batch, `[tokens]`, as compressed rows on the CPU."""
        codes, self.codes = self.codes, []
        parts = [tuple(part.cpu() for part in code.flat()) for code in codes]
        counts = torch.cat([code.counts().cpu() for code in codes])
        offsets = nn.functional.pad(counts.cumsum(0), (1, 0))
        return SparseCode(
            torch.cat([values for _, _, values in parts]),
            torch.cat([latents for _, latents, _ in parts]),
            offsets,
            self.sae.config.d_sae,
            shape=(len(counts),),
        )


@dataclass
class Comparison:
    """What both runs gave: sums per document of each host, sums of each latent, the contexts where it changed most."""

    before: Run
    after: Run
    latents: PairedSums
    stores: tuple[ContextStore, ContextStore] | None


def change_stores(sae: SAE, sample: Sample) -> tuple[ContextStore, ContextStore] | None:
    """For the strongest increases and the strongest decreases of every latent."""
    if not sample.has_text:
        return None
    d_sae = sae.config.d_sae
    gained, lost = (ContextStore(torch.arange(d_sae), d_sae, _EXAMPLES, _WINDOW) for _ in range(2))
    return gained, lost


@contextmanager
def plain_host(host: nn.Module, finetuned: nn.Module) -> Generator[nn.Module]:
    """The host as it was before fine-tuning; an adapter on the same modules is off inside the `with`."""
    if unwrap(host) is not unwrap(finetuned):
        yield host
        return
    with without_adapters(finetuned):
        yield finetuned


def compare_runs(
    found: Comparison, sample: Sample, host: nn.Module, finetuned: nn.Module, language: bool, progress: bool
) -> None:
    """Both hosts over every batch; the autoencoder reads what each gives."""
    points = points_of([found.before])
    with tqdm(total=sample.kept, desc="comparison", unit="tok", disable=not progress) as bar:
        for batch in sample.batches:
            with plain_host(host, finetuned) as plain:
                old = clean_run(plain, batch, points, language)
            new = clean_run(finetuned, batch, points, language)
            keep, documents = batch.keep_known, batch.documents_known
            for run, (activations, _) in ((found.before, old), (found.after, new)):
                run.measure(activations, keep, documents)
            codes = found.before.take(), found.after.take()
            found.latents.add(documents[keep], *codes)
            if found.stores is not None:
                _add_contexts(found.stores, batch, *codes)
            if old[1] is not None and new[1] is not None:
                _add_losses(found, batch, old[1], new[1])
            bar.update(int(keep.sum()))


def _add_losses(found: Comparison, batch: EvalBatch, old: Tensor, new: Tensor) -> None:
    ids = batch.inputs["input_ids"]
    predicted, documents = predictions(batch)
    shared = min(old.shape[-1], new.shape[-1])  # embeddings may be padded in one of them
    divergence = next_token_divergence(old[..., :shared], new[..., :shared].to(old.device))
    for run, logits in ((found.before, old), (found.after, new)):
        losses = {"ce_clean": next_token_losses(logits, ids), "kl": divergence}
        flat = {key: value.cpu()[predicted] for key, value in losses.items()}
        run.sums["sae"].add(documents, {"predictions": torch.ones(len(documents)), **flat})


def _add_contexts(
    stores: tuple[ContextStore, ContextStore], batch: EvalBatch, before: SparseCode, after: SparseCode
) -> None:
    ids, keep = batch.inputs["input_ids"].cpu(), batch.keep_known
    mask = torch.ones_like(ids) if batch.attention_mask is None else batch.attention_mask.cpu()
    tokens = TokenBatch(ids, mask, keep, batch.documents_known)
    where = keep.flatten().nonzero().squeeze(1)
    keys, values = [], []
    for sign, code in ((-1, before), (1, after)):
        rows, latents, activations = code.flat()
        keys.append(rows * code.d_sae + latents)
        values.append(sign * activations.float())
    found, inverse = torch.cat(keys).unique(return_inverse=True)
    change = torch.zeros(len(found)).index_add_(0, inverse, torch.cat(values))
    rows, latents = found // before.d_sae, found % before.d_sae
    for store, chosen in zip(stores, (change > 0, change < 0), strict=True):
        store.add(tokens, where[rows[chosen]], latents[chosen], change[chosen])
