"""What a run will cost before it starts: a cost model, calibrated by a short probe of the machine."""

from .advice import advice
from .cost import Part, memory, parts
from .job import Job
from .machine import Machine, probe
from .report import Estimate, estimate


__all__ = ["Estimate", "Job", "Machine", "Part", "advice", "estimate", "memory", "parts", "probe"]
