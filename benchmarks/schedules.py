"""Arriving at a target soonest: how long a run is, its user chooses, and the last fall of the rate brings much of the quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .report import crossing


SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)


def soonest(
    result: dict[str, Any], target: float, steps: int, shares: Iterable[float], train: Callable[[int], dict[str, Any]]
) -> None:
    """Trains again with whole schedules of fewer steps, for as long as they reach the target.

    Args:
        result (`dict`): of the run of all steps, from `time_to`. Where a shorter one arrives sooner, `seconds_to_target` is
            its, and `target_steps` its steps. A row that never reached the target stays as it is.
        target (`float`): FVU.
        steps (`int`): of the whole run.
        shares (`Iterable[float]`): of them to try.
        train (`Callable`): makes the result of a run of so many steps.
    """
    if result.get("seconds_to_target") is None:
        return
    for share in sorted(shares, reverse=True):
        fewer = max(1, round(share * steps))
        curve = train(fewer).get("curve")
        seconds = crossing(curve, target) if curve else None
        if seconds is None:
            return
        if seconds < result["seconds_to_target"]:
            result["seconds_to_target"], result["target_steps"] = seconds, fewer
