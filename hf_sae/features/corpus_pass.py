"""The pass over text: batches are dealt to the processes in turns, every latent's activations go into its state.

Every process reads and tokenises all of the text, and runs the host on its share of the batches. So rows of tokens, and with
them every activation, are those of one process, and what is gathered does not depend on how many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..activations.reading import HostReader
from ..data import TokenBatch
from ..errors import DataError
from ..evaluation.samples import EvalBatch, place_positions, trim
from .latent_state import LatentState
from .ranks import Ranks
from .saved_pass import Progress, SavedPass


if TYPE_CHECKING:
    from ..models.modeling_sae import SAE

_ENTRIES_AT_ONCE = 1 << 25  # of dense latents, which some encoders make on the way
_SAMPLED = 256  # numbers of each parameter of a host


class CorpusPass:
    """Reads text and gathers what the latents do.

    Args:
        source (`Iterator` of [`EvalBatch`]): the text from its beginning, the same in every process.
        reader ([`HostReader`]): of all places.
        saes (`dict[str, SAE]`), states (`dict[str, LatentState]`): by name.
        ranks ([`Ranks`]): the processes that share the work.
        saved ([`SavedPass`]): where states are saved.
    """

    def __init__(
        self,
        source: Iterator[EvalBatch],
        reader: HostReader,
        saes: Mapping[str, SAE],
        states: Mapping[str, LatentState],
        ranks: Ranks,
        saved: SavedPass,
    ) -> None:
        self.source, self.reader, self.saes, self.states = source, reader, saes, states
        self.ranks, self.saved = ranks, saved

    def run(self, n_tokens: int, begun: Progress, progress: bool) -> int:
        """Reads `n_tokens` tokens, of which `begun` were read before, and the rest of the last row.

        Returns:
            `int`: tokens that were read in all. The states of the first process are then those of all.

        Raises:
            DataError: if there is no text, or it is other text than that of `begun`.
        """
        read, digest, past, batches = 0, hashlib.sha256(), not begun.batches, 0
        show = progress and self.ranks.is_first
        with tqdm(total=n_tokens, desc="activations", unit="tok", disable=not show) as bar:
            for number, drawn in enumerate(self.source):
                batch = _tokens(trim(drawn, n_tokens - read))
                kept = batch.keep.flatten().nonzero().squeeze(1)
                digest.update(_bytes(batch.input_ids[batch.attention_mask != 0]))
                before, read, batches = read, read + len(kept), number + 1
                if past and number % self.ranks.size == self.ranks.rank and len(kept):
                    self._add(batch, kept)
                bar.update(min(read, n_tokens) - bar.n)
                if batches == begun.batches:
                    past = self._is_same(begun, Progress(read, batches, digest.hexdigest()))
                elif past and read < n_tokens and self.saved.is_due(before, read):
                    self.saved.save(self.states, Progress(read, batches, digest.hexdigest()))
                if read >= n_tokens:
                    break
        if not read:
            raise DataError("the dataset gave no token: it is empty, or positions= leaves nothing in.")
        if not past:
            self._is_same(begun, Progress(read, batches, digest.hexdigest()))
        self.ranks.merge(self.states, digest.hexdigest())
        return read

    def _add(self, batch: TokenBatch, kept: Tensor) -> None:
        hidden = self.reader(batch, kept)
        for name, sae in self.saes.items():
            tokens, latents, values = _encode(sae, hidden[str(sae.config.hook_in)])
            self.states[name].add(batch, kept[tokens], latents, values)

    def _is_same(self, begun: Progress, now: Progress) -> bool:
        if begun != now:
            raise DataError(
                f"the first {now.tokens:,} tokens are not those of the pass that was saved: the dataset or its order has changed. "
                "Give the same text, or start afresh with overwrite=True (--overwrite)."
            )
        return True


def weights_sha256(module: nn.Module, sampled: bool = False) -> str:
    """A hash of the parameters and buffers with their names; of a large model, of the first numbers of each.

    Args:
        module (`nn.Module`): which.
        sampled (`bool`): 256 numbers of each are enough.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        if isinstance(tensor, Tensor) and not tensor.is_meta:
            flat = tensor.detach().flatten()
            digest.update(_bytes(flat[:_SAMPLED] if sampled else flat))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _tokens(batch: EvalBatch) -> TokenBatch:
    ids = batch.inputs.get("input_ids")
    if ids is None:
        raise DataError(f"the dataset gives {', '.join(batch.inputs)}: features are harvested from text.")
    placed = place_positions(batch, tuple(ids.shape))
    mask = torch.ones_like(ids) if placed.attention_mask is None else placed.attention_mask
    return TokenBatch(ids.cpu(), mask.cpu(), placed.keep_known, placed.documents_known)


def _encode(sae: SAE, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, latent and value of the non-zero latents of activations `[n, d_in]`, on the CPU, rows ascending."""
    rows, parts = max(1, _ENTRIES_AT_ONCE // sae.config.d_sae), []
    for start in range(0, len(hidden), rows):
        row, latent, value = sae.encode_sparse(hidden[start : start + rows].to(sae.device)).flat()
        parts.append((row.cpu() + start, latent.cpu(), value.cpu()))
    row, latent, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return row, latent, value
