"""Whether codes are as long as what they code for: approximate feature activation.

Lee et al. 2025, "Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality" (arXiv 2503.24277): the
length of a code in a dictionary of nearly orthogonal unit rows is close to that of the activation. As in the authors' code,
latents count with the lengths of their decoder rows, and the decoder bias is one more row. A token whose code is shorter is
under-activated, one whose code is longer over-activated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..hosts.fingerprints import warn_of_another_host
from ..models.kernels import bag_sum
from ..models.modeling_sae import SAE
from .core import DEFAULT_CONTEXT, recorded
from .passes import first_pass, inference
from .samples import open_source
from .trial import Trial, places_of
from .writing import json_safe


@dataclass(frozen=True)
class CodeNorms:
    """Lengths of tokens and of their codes, in the units of the hook point.

    Args:
        dense (`Tensor`): `[tokens]`, `‖x‖` of what is coded for.
        code (`Tensor`): `[tokens]`, `‖f‖`: the root of the sum of squares of latents times decoder row, and of the decoder bias.
        n_rows (`int`): rows of the dictionary, the bias counted.
    """

    dense: Tensor
    code: Tensor
    n_rows: int

    @classmethod
    def joined(cls, parts: list[CodeNorms]) -> CodeNorms:
        """Of all tokens of some parts with one dictionary."""
        return cls(
            torch.cat([part.dense for part in parts]), torch.cat([part.code for part in parts]), parts[0].n_rows
        )

    @property
    def epsilon(self) -> Tensor:
        """`[tokens]`: the least ε for which rows that overlap by ε at most allow such a pair of lengths.

        `|‖x‖² - ‖f‖²| / ((n_rows - 1) ‖f‖²)`, from the bound of the theorem; which normalisation the paper's ε_LBO has was not
        found. Infinite for a code of length 0, as no ε explains it.
        """
        dense, code = self.dense.double().square(), self.code.double().square()
        gap = (dense - code).abs()
        return torch.where(gap == 0, 0.0, gap / ((self.n_rows - 1) * code))

    def to_dict(self) -> dict[str, Any]:
        """Shares of under- and over-activated tokens, mean lengths and gaps, as JSON values."""
        dense, code = self.dense.double(), self.code.double()
        gap = (code - dense) / dense.clamp_min(torch.finfo(torch.float32).tiny)
        epsilon = self.epsilon
        spread = dense.std(correction=0) * code.std(correction=0)
        product = ((dense - dense.mean()) * (code - code.mean())).mean()
        return json_safe(
            {
                "tokens": len(dense),
                "n_rows": self.n_rows,
                "mean_dense_norm": dense.mean(),
                "mean_code_norm": code.mean(),
                "median_relative_gap": gap.median(),
                "under_activated": (code < dense).double().mean(),
                "over_activated": (code > dense).double().mean(),
                "correlation": product / spread if spread > 0 else None,
                "median_epsilon_lbo": epsilon.median(),
                "largest_epsilon_lbo": epsilon.max(),
            }
        )


@torch.no_grad()
def norms_of(sae: SAE, x: Tensor, target: Tensor | None = None, **besides: Any) -> CodeNorms:
    """Lengths of some activations and of their codes, for any SAE or transcoder.

    What is coded for is the target without what needs no code: the mean of a token that decoding adds back, and the skip term.

    Args:
        sae ([`SAE`]): whose latents may have any sign.
        x (`Tensor`): `[tokens, d_in]`.
        target (`Tensor`, *optional*): `[tokens, d_out]`, needed by a transcoder; an SAE's is its input.
        besides: what else `encode_sparse` takes of each token, such as `gradient` `[tokens, d_out]`.

    Raises:
        ValueError: for a transcoder without targets.
    """
    if target is None:
        if sae.config.is_transcoder:
            raise ValueError("the codes of a transcoder stand for its targets: pass norms_of(sae, x, target).")
        target = x
    normalised, norm = sae.normalize(x)
    code = sae.encode_sparse(x, **besides)
    dense = sae.comparable(target).to(normalised)
    if norm is not None and sae.config.undoes_norm_per_token:
        dense = dense - norm[0]
    if sae.skip is not None:
        dense = dense - sae.skip(normalised)
    rows, latents, values = code.flat()
    squares = sae.W_dec.float().square().sum(-1, keepdim=True)
    offsets = nn.functional.pad(torch.bincount(rows, minlength=len(x)).cumsum(0), (1, 0))
    energy = bag_sum(latents, squares, offsets, values.float().square()).squeeze(1)
    length = (energy + sae.b_dec.float().square().sum()).sqrt().unsqueeze(1)
    per_token = None if norm is None else (norm[0].float(), norm[1].float())
    length = sae.to_output_units(length, per_token).squeeze(1).abs()
    return CodeNorms(torch.linalg.vector_norm(dense.float(), dim=-1).cpu(), length.cpu(), sae.config.d_sae + 1)


@dataclass
class _NormTrial(Trial):
    """Keeps the lengths of the first pass."""

    found: list[CodeNorms] = field(default_factory=list)

    def survey(self, activations: Mapping[str, Tensor], keep: Tensor) -> None:
        x, y = self.inputs(activations, keep)
        start = 0
        for part, besides in self.parts(x, activations, keep):
            if len(part):
                target = y[start : start + len(part)].to(part.device)
                self.found.append(norms_of(self.sae, part, target, **besides))
                start += len(part)


def code_norms(
    sae: SAE,
    host: nn.Module,
    tokenizer: Any = None,
    dataset: Any = None,
    *,
    n_tokens: int = 20_000,
    context_length: int | None = None,
    batch_size: int = 16,
    positions: Any = None,
    column: str | None = None,
    split: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CodeNorms:
    """[`norms_of`] the tokens of a text, read by the host as far as the autoencoder's places.

    Args are those of [`evaluate`][hf_sae.evaluation.evaluate].

    Raises:
        ValueError: for `n_tokens` or `batch_size` below 1.
        HookPointError: for a place that is missing or has another width than the autoencoder.
        DataError: for a dataset without tokens, or activations that are not finite.
    """
    for name, value in (("n_tokens", n_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    trial = _NormTrial(sae, *places_of(sae))
    warn_of_another_host(sae, host, tokenizer)
    source, _ = open_source(
        dataset,
        tokenizer,
        context_length=context_length or recorded({"sae": sae}, "context_length", DEFAULT_CONTEXT),
        batch_size=batch_size,
        positions=positions if positions is not None else recorded({"sae": sae}, "positions", "all"),
        column=column,
        split=split,
        seed=seed,
    )
    with inference(host, sae):
        first_pass(source, host, [trial], n_tokens, progress)
    return CodeNorms.joined(trial.found)
