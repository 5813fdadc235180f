"""`hf-sae train --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..models import SAEConfig
    from .console import Console


def rehearse(options: Any, console: Console, config: SAEConfig, args: Any, stream: Any) -> None:
    """What the run will cost, from a probe of two seconds."""
    from ..training.estimate import Job, estimate, probe

    reader = getattr(stream, "reader", None)  # a stream from disk has no host to run
    batch = None if reader is None else next(iter(stream.rows))
    device = "cpu" if reader is None else reader.devices()[config.places_in[0]]
    job = Job.of(
        config,
        args,
        reader=reader,
        ring_bytes=getattr(stream, "ring_bytes", 0),
        cached=reader is None,
        eval_tokens=options.eval_tokens,
        device=device,
    )
    found = estimate(job, probe(config, args, reader=reader, host_batch=batch, device=device))
    console.show(found.to_table())
    for line in found.advice:
        console.say(line)
    console.finish(found.to_dict(), "the same command without --dry-run trains.")
