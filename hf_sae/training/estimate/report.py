"""`Estimate`: time, memory and disk of a run as a table, a dict and a sentence of advice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .advice import advice
from .cost import Part, disk, memory, parts
from .job import Job
from .machine import Machine


UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass
class Estimate:
    """What a run costs on a machine."""

    job: Job
    machine: Machine
    parts: list[Part]
    memory: dict[str, int]
    disk: dict[str, int]
    advice: list[str]

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(part.seconds for part in self.parts)

    @property
    def training_seconds(self) -> float:
        """The same without evaluation and checkpoints."""
        return sum(part.seconds for part in self.parts if part.name not in ("evaluation", "checkpoints"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values: seconds, FLOP, bytes."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.job.total_tokens / max(self.training_seconds, 1e-12),
            "flops": sum(part.flops for part in self.parts),
            "parts": [asdict(part) for part in self.parts],
            "memory": {**self.memory, "total": sum(self.memory.values())},
            "disk": self.disk,
            "advice": self.advice,
            "machine": {name: value for name, value in self.machine.to_dict().items() if value != float("inf")},
            "job": asdict(self.job),
        }

    def to_table(self) -> str:
        """Three aligned tables: time by part, memory, disk."""
        total = max(self.seconds, 1e-12)
        rows = [("part", "time", "share", "FLOP", "bytes moved")]
        for part in self.parts:
            if part.seconds > 0 or part.flops:
                flops = f"{part.flops:.2g}" if part.flops else ""
                moved = size(part.moved) if part.moved else ""
                rows.append((part.name, duration(part.seconds), f"{part.seconds / total:.0%}", flops, moved))
        rows.append(("all", duration(self.seconds), "100%", f"{sum(p.flops for p in self.parts):.2g}", ""))
        held = [("memory", ""), *((name, size(n)) for name, n in self.memory.items() if n)]
        held.append(("all", size(sum(self.memory.values()))))
        kept = [("disk", ""), *((name, size(n)) for name, n in self.disk.items() if n and name != "cache")]
        kept.append(("a cache would take", size(self.disk["cache"])))
        speed = f"{self.job.total_tokens / max(self.training_seconds, 1e-12):,.0f} tokens per second while training"
        return "\n\n".join((_align(rows), _align(held), _align(kept), speed))


def estimate(job: Job, machine: Machine) -> Estimate:
    """The cost of a job on a machine."""
    found = parts(job, machine)
    return Estimate(job, machine, found, memory(job), disk(job), advice(job, machine, found))


def duration(seconds: float) -> str:
    """Two units at most: `0.4 s`, `12 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for large, small, factor, inner in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if seconds < {"min": 3600, "h": 86400, "d": float("inf")}[large]:
            whole = int(seconds // factor)
            return f"{whole} {large} {int((seconds - whole * factor) // inner)} {small}"
    return f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """In units of 1000 bytes: `12 MB`, `3.4 GB`."""
    power = 0
    while n_bytes >= 999.5 and power < len(UNITS) - 1:
        n_bytes, power = n_bytes / 1000, power + 1
    return f"{n_bytes:.0f} {UNITS[power]}" if n_bytes >= 10 or not power else f"{n_bytes:.1f} {UNITS[power]}"


def _align(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
