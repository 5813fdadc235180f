"""The strongest latents on each token of a text."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError, HookPointError
from ..hooks import one_place, read
from ..hosts.fingerprints import warn_of_another_host
from ..terminal import WIDTH, Strip, columns, shorten, visible
from ..views import notebook, token_grid, token_strip
from .tokens import special_ids, token_texts


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.modeling_sae import SAE


_TOKENS_AT_ONCE = 256
_TOKEN_COLUMNS = 14


@dataclass(frozen=True)
class TopFeatures:
    """Tokens and their strongest latents; prints as a table in a terminal and renders as one in a notebook.

    Args:
        tokens (`list` of `str`): text of each token.
        token_ids (`list` of `int`): their ids.
        latents (`list` of `list` of `int`): per token, strongest first; those that do not fire are left out, BOS has none.
        activations (`list` of `list` of `float`): of these latents, in latent units.
        special (`set` of `int`): positions of special tokens.
        maxima (`dict`): the activation of full shade for each latent named above.
        scale (`str`): what full shade means, in words.
    """

    tokens: list[str]
    token_ids: list[int]
    latents: list[list[int]]
    activations: list[list[float]]
    special: frozenset[int]
    maxima: dict[int, float]
    scale: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: one entry per token with its latents and their activations."""
        rows = zip(self.tokens, self.token_ids, self.latents, self.activations, strict=True)
        return {
            "scale": self.scale,
            "tokens": [
                {
                    "position": position,
                    "token": token,
                    "id": index,
                    "special": position in self.special,
                    "latents": [{"latent": j, "activation": a} for j, a in zip(latents, activations, strict=True)],
                }
                for position, (token, index, latents, activations) in enumerate(rows)
            ],
        }

    def _share(self, latent: int, activation: float) -> float:
        return activation / (self.maxima[latent] or 1.0)

    def _shares(self) -> list[float]:
        """Of the strongest latent of each token."""
        return [self._share(j[0], a[0]) if j else 0.0 for j, a in zip(self.latents, self.activations, strict=True)]

    def __str__(self) -> str:
        note = textwrap.fill(f"Shade: the strongest latent of each token; {self.scale}.", WIDTH)
        lines = [str(Strip(self.tokens, self._shares(), maximum=1.0, special=self.special)), "", note, ""]
        digits = len(str(len(self.tokens)))
        label = f"{'':>{digits}}  {'token':<{_TOKEN_COLUMNS}}  "
        lines.append(f"{label}latent:activation, strongest first")
        for position, token in enumerate(self.tokens):
            text = visible(token)
            text = shorten(f"⟨{text}⟩" if position in self.special else text, _TOKEN_COLUMNS)
            head = f"{position:>{digits}}  {text}{' ' * (_TOKEN_COLUMNS - columns(text))}  "
            pairs = zip(self.latents[position], self.activations[position], strict=True)
            lines += _cells(head, [f"{latent}:{activation:.3g}" for latent, activation in pairs])
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from .showing import grid_view

        strongest = [row[0] if row else 0.0 for row in self.activations]
        maxima = [self.maxima[row[0]] if row else 0.0 for row in self.latents]
        pairs = (
            zip(latents, activations, strict=True)
            for latents, activations in zip(self.latents, self.activations, strict=True)
        )
        notes = [", ".join(f"latent {j} {a:.3g}" for j, a in row) for row in pairs]
        strip = token_strip(
            self.tokens, strongest, maximum=maxima, token_ids=self.token_ids, special=self.special, notes=notes
        )
        note = '<p class="hs-note">Shade: the strongest latent of each token.</p>'
        return notebook(f'<div class="hs">{strip}{note}{token_grid(grid_view(self))}</div>')


def _cells(head: str, cells: list[str]) -> list[str]:
    """`head` and cells in aligned columns, continued on further lines where they pass the width."""
    lines, line = [], head
    for cell in cells:
        cell = f"{cell:<12} "
        if columns(line) + len(cell.rstrip()) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * columns(head)
        line += cell
    return [*lines, line.rstrip()]


def top_features(
    sae: SAE, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, k: int = 5
) -> TopFeatures:
    """The `k` strongest latents on each token of a text, by absolute activation.

    BOS is shown without latents: autoencoders are not trained on it. Full shade is a latent's recorded maximum where the
    autoencoder has feature statistics, otherwise the strongest activation in this text.

    Args:
        sae ([`SAE`]): the autoencoder; its `hook_in` is read.
        host (`PreTrainedModel`): the model it belongs to.
        tokenizer: of the host; its special tokens are added to the text.
        text (`str`): what to read.
        k (`int`): latents per token.

    Raises:
        DataError: for an empty text, or one that is longer than the host reads.
        HookPointError: if the host has no such place, or it has another width.
        ValueError: if `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k}: give the number of latents per token, at least 1.")
    warn_of_another_host(sae, host, tokenizer)
    ids = text_ids(tokenizer, host, text)
    hidden = hidden_at(host, sae, input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    is_bos = [index == tokenizer.bos_token_id for index in ids[0].tolist()]
    latents, activations = [], []
    for values, indices in _strongest(sae, hidden, min(k, sae.config.d_sae)):
        fires = [] if is_bos[len(latents)] else [place for place, value in enumerate(values) if value != 0]
        latents.append([indices[place] for place in fires])
        activations.append([values[place] for place in fires])
    maxima, scale = _maxima(sae, latents, activations)
    token_ids = ids[0].tolist()
    special = frozenset(i for i, index in enumerate(token_ids) if index in special_ids(tokenizer))
    return TopFeatures(token_texts(tokenizer, token_ids), token_ids, latents, activations, special, maxima, scale)


def text_ids(tokenizer: Any, host: PreTrainedModel, text: str) -> torch.Tensor:
    """`[1, tokens]`: a text as ids, special tokens added.

    Raises:
        DataError: for an empty text, or one that is longer than the host reads.
    """
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"].long()
    limit = getattr(host.config.get_text_config(), "max_position_embeddings", None)
    if not text or ids.shape[1] == 0:
        raise DataError("the text is empty. Give at least one token.")
    if limit is not None and ids.shape[1] > limit:
        raise DataError(f"the text has {ids.shape[1]} tokens, and the host reads {limit} at most. Give a part of it.")
    return ids


def hidden_at(host: PreTrainedModel, sae: SAE, **inputs: torch.Tensor) -> torch.Tensor:
    """What the autoencoder reads of these inputs, `[batch, tokens, d_in]`, on its device.

    Raises:
        HookPointError: if the place is not known, not there, or has another width.
    """
    point = one_place(sae, "hook_in", "this")
    hidden = read(host, [point], **inputs)[point]
    if hidden.shape[-1] != sae.config.d_in:
        raise HookPointError(
            f"{point!r} of {type(host).__name__} is {hidden.shape[-1]} wide, and the autoencoder has d_in={sae.config.d_in}. "
            f"Use the host it was trained on ({sae.config.base_model or 'not recorded in its config'})."
        )
    return hidden.to(sae.device)


@torch.no_grad()
def _strongest(sae: SAE, hidden: torch.Tensor, k: int) -> list[tuple[list[float], list[int]]]:
    found = []
    for part in hidden.split(_TOKENS_AT_ONCE):
        dense = sae.encode(part).float()
        indices = dense.abs().topk(k, dim=-1).indices
        found += zip(dense.gather(-1, indices).tolist(), indices.tolist(), strict=True)
    return found


def _maxima(sae: SAE, latents: list[list[int]], activations: list[list[float]]) -> tuple[dict[int, float], str]:
    strongest = max((abs(a) for row in activations for a in row), default=0.0)
    named = sorted({latent for row in latents for latent in row})
    stats = sae.feature_stats
    if stats is None:
        return dict.fromkeys(named, strongest), f"full = {strongest:.3g}, the strongest activation in this text"
    recorded = stats["maximum"].abs()[named].tolist() if named else []
    maxima = {j: float(m) if m > 0 else strongest for j, m in zip(named, recorded, strict=True)}
    tokens = f" over {int(stats['tokens']):,} tokens" if "tokens" in stats else ""
    return maxima, f"full = the maximum of the latent{tokens}"
