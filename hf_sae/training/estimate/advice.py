"""What to do about the part of a run that takes the most time, and about what does not fit."""

from __future__ import annotations

from collections.abc import Callable

from .cost import Part, disk, memory
from .job import Job
from .machine import Machine


def _host(job: Job, machine: Machine) -> str:
    return (
        "cache the activations (hf-sae cache write) if more than one run will use them, train several autoencoders in one "
        "pass (a dict of models), or read an earlier layer."
    )


def _encoder(job: Job, machine: Machine) -> str:
    if job.bf16 and not machine.bfloat16:
        return "this machine has no instructions for bfloat16: --no-bf16 is several times faster."
    faster = "" if job.bf16 or not machine.bfloat16 else "--bf16 computes it in bfloat16; "
    return f"it is the least that a step can do: {faster}fewer latents (--d-sae) shrink it, several devices share it."


def _optimizer(job: Job, machine: Machine) -> str:
    return (
        f"it passes over all weights at every step: raise --tokens-per-batch above {job.tokens_per_batch:,} and the number "
        "of passes falls."
    )


def _decode(job: Job, machine: Machine) -> str:
    if job.k is None:
        return "every latent takes part in it: an architecture with few active latents (--arch topk) skips nearly all."
    return f"it grows with the active latents: a smaller --k than {job.k} shrinks it."


REMEDIES: dict[str, Callable[[Job, Machine], str]] = {
    "host forward": _host,
    "encoder product": _encoder,
    "optimiser": _optimizer,
    "decode + gradients": _decode,
    "top-k": lambda job, machine: (
        "it reads all pre-activations: fewer latents (--d-sae) shrink it"
        + (", and --bf16 halves the bytes." if machine.bfloat16 and not job.bf16 else ".")
    ),
    "AuxK": lambda job, _: (
        f"that is if {job.dead_share:.0%} of the latents are dead: --set aux_coefficient=0 leaves it out."
    ),
    "calls and counters": lambda job, _: "the steps are too small to be worth a call: raise --tokens-per-batch.",
    "evaluation": lambda job, _: f"lower --eval-tokens below {job.eval_tokens:,}, or give 0.",
    "checkpoints": lambda job, _: f"raise --save-steps above {job.save_steps}, or write to a faster disk.",
    "reading the cache": lambda job, _: "a faster disk, or a cache of int8, feeds it quicker.",
}


def advice(job: Job, machine: Machine, parts: list[Part]) -> list[str]:
    """Sentences: the part that dominates and its remedy, then whatever does not fit."""
    total = sum(part.seconds for part in parts)
    worst = max(parts, key=lambda part: part.seconds)
    lines = []
    if total > 0:
        lines.append(f"{worst.name} is {worst.seconds / total:.0%} of the time: {REMEDIES[worst.name](job, machine)}")
    needed = sum(memory(job).values())
    if machine.memory and needed > machine.memory:
        held = max(memory(job).items(), key=lambda item: item[1])
        lines.append(
            f"memory: {needed / 1e9:.1f} GB are needed and {machine.memory / 1e9:.1f} GB are free; {held[0]} takes most of "
            "it. Lower --d-sae or --tokens-per-batch, or shard the latents over devices."
        )
    sizes = disk(job)
    kept = sizes["model"] + sizes["checkpoints"]
    if machine.free_disk and kept > machine.free_disk:
        lines.append(
            f"disk: {kept / 1e9:.1f} GB will be written and {machine.free_disk / 1e9:.1f} GB are free. Give "
            "--save-total-limit, or another --output-dir."
        )
    return lines
