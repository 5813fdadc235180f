"""The steering engine: one thread that owns a host, and decodes the texts of many people in lock-step."""

from ...errors import EngineBusyError
from .engine import SteeringEngine
from .request import Sampling, SteeringRequest, Variant, sweep
from .run import SteeringRun
from .streams import Coherence, GeneratedToken, Stream, diverges_at


__all__ = [
    "Coherence",
    "EngineBusyError",
    "GeneratedToken",
    "Sampling",
    "SteeringEngine",
    "SteeringRequest",
    "SteeringRun",
    "Stream",
    "Variant",
    "diverges_at",
    "sweep",
]
