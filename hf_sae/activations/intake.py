"""What comes from the host before it is served: counted, and rid of rows that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .interface import Rows


logger = logging.getLogger(__name__)
_OUTLIER_FACTOR = 10.0
_NON_FINITE_SHARE, _JUDGED_AFTER = 0.01, 8192  # tokens: one overflow can spoil the whole row of text behind it


class Intake:
    """The counts of a stream and the judgement over its rows.

    `counts` are in tokens: `seen` by the host, `masked` (left out), `non_finite` (left out too), `served`, `outliers`; and
    `host_batches`. An outlier is a token whose norm at one of the places is more than ten times the typical one there, which is
    the mean of the host batches' median norms.

    Args:
        places (`Sequence[str]`): where norms are looked at.
        dtype (`torch.dtype`): of the activations, for advice.
    """

    def __init__(self, places: Sequence[str], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.counts = dict.fromkeys(("seen", "masked", "non_finite", "served", "outliers", "host_batches"), 0)
        self.typical_norm = dict.fromkeys(places, 0.0)

    @property
    def none_kept(self) -> bool:
        """Whether every token so far was masked."""
        return self.counts["masked"] == self.counts["seen"]

    def see(self, seen: int, kept: int) -> None:
        """Counts a batch of `seen` tokens of which `kept` go through the host for their activations."""
        self.counts["seen"] += seen
        self.counts["masked"] += seen - kept
        self.counts["host_batches"] += kept > 0

    def admit(self, rows: Rows) -> Rows:
        """The rows that are finite at every place; the others, and norm outliers, are counted.

        Raises:
            DataError: if too many are not finite: a whole host batch, or more than 1 % after 8192 tokens.
        """
        rows = self._finite(rows)
        if rows.count:
            self._inspect(rows)
        return rows

    def _finite(self, rows: Rows) -> Rows:
        bad: dict[str, Tensor] = {}
        for point, x in rows.items():
            # one number says whether anything is wrong: the common case is one pass and one transfer
            if not torch.linalg.vector_norm(x, dtype=torch.float32).isfinite():
                bad[point] = (~x.isfinite()).any(dim=1).cpu()
        wrong = torch.stack([*bad.values()]).any(dim=0) if bad else torch.zeros(rows.count, dtype=torch.bool)
        count = int(wrong.sum())
        if not count:
            return rows
        self.counts["non_finite"] += count
        self._judge(count, rows.count, max(bad, key=lambda point: int(bad[point].sum())))
        kept = (~wrong).nonzero().squeeze(1)
        ids = None if rows.ids is None else rows.ids[kept]
        return Rows({point: x.index_select(0, kept.to(x.device)) for point, x in rows.items()}, ids)

    def _judge(self, count: int, of: int, point: str) -> None:
        """Whether that many rows that are not finite, of the latest host batch and of all, can be left out."""
        number, total = self.counts["host_batches"], self.counts["non_finite"]
        read = self.counts["seen"] - self.counts["masked"]
        advice = (
            f"Check the host's weights and dtype ({self.dtype} here): float16 overflows in many models, bfloat16 and "
            "float32 do not."
        )
        if count == of:
            raise DataError(f"all {of} tokens of host batch {number} are not finite at {point!r}. {advice}")
        if read >= _JUDGED_AFTER and total > _NON_FINITE_SHARE * read:
            raise DataError(
                f"{total:,} of {read:,} tokens are not finite, the latest at {point!r} in host batch {number}; more than "
                f"{_NON_FINITE_SHARE:.0%} are too many to leave out. {advice}"
            )
        if total == count:
            logger.warning("%d tokens are not finite at %r and are left out. %s", count, point, advice)

    def _inspect(self, rows: Rows) -> None:
        outliers = torch.zeros(rows.count, dtype=torch.bool)
        number = self.counts["host_batches"]
        for point in self.typical_norm:
            norms = torch.linalg.vector_norm(rows[point], dim=1, dtype=torch.float32).cpu()
            self.typical_norm[point] += (float(norms.median()) - self.typical_norm[point]) / number
            outliers |= norms > _OUTLIER_FACTOR * self.typical_norm[point]
        self.counts["outliers"] += int(outliers.sum())

    def state_dict(self) -> dict[str, Any]:
        """Counts and typical norms."""
        return {"counts": dict(self.counts), "typical_norm": dict(self.typical_norm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from those of a saved state, which may hold more."""
        self.counts, self.typical_norm = dict(state["counts"]), dict(state["typical_norm"])
