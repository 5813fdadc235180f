"""Steering: edits of latents as differences, per row, position and place; and an engine that serves many people at once."""

from .context import steer
from .edits import Edit, OfMax, OfNorm, Strength, ablate, add, clamp, scale, when
from .engine import EngineBusyError, Sampling, SteeringEngine, SteeringRequest, SteeringRun, Stream, Variant, sweep
from .plan import SteeringPlan


__all__ = [
    "Edit",
    "EngineBusyError",
    "OfMax",
    "OfNorm",
    "Sampling",
    "SteeringEngine",
    "SteeringPlan",
    "SteeringRequest",
    "SteeringRun",
    "Stream",
    "Strength",
    "Variant",
    "ablate",
    "add",
    "clamp",
    "scale",
    "steer",
    "sweep",
    "when",
]
