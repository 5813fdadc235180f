"""The cost model: work and bytes of every part of a run, and the seconds they take on a [`Machine`].

A step has one encoder product; what follows the selection touches `k` of `d_sae` rows. The optimiser passes over all weights
whatever the size of the batch, so that its share falls with `tokens_per_batch`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .job import PARAMETER_BYTES, Job
from .machine import Machine


GATHERS = 4  # decode, gradient of the latents, gradients of both weights
DENSE_PRODUCTS = 4  # the same, where every latent takes part
ADAM_BYTES = 30  # read weight, gradient, two moments; write weight and moments; zero the gradient
AUXK_PRODUCTS = 8  # FLOP per token, dead latent and input dimension: there, back and both gradients
EVALUATION_PASSES = 4  # clean, spliced, zero and mean ablation


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Args:
        name (`str`): its name in the table.
        seconds (`float`): of the whole run.
        flops (`float`): floating-point operations of the whole run; 0 for what moves bytes.
        moved (`float`): bytes of the whole run; 0 for what computes.
    """

    name: str
    seconds: float
    flops: float = 0.0
    moved: float = 0.0


def decode_work(job: Job, n_tokens: int) -> float:
    """Work of decoding and all gradients of `n_tokens`: bytes gathered (sparse) or FLOP (dense)."""
    if job.k is None:
        return 2.0 * n_tokens * job.d_sae * (3 * job.d_out + job.d_in) * DENSE_PRODUCTS / 4
    # three gathers of decoder-sized rows or errors and one of inputs
    return float(PARAMETER_BYTES * n_tokens * job.k * ((GATHERS - 1) * job.d_out + job.d_in))


def parts(job: Job, machine: Machine) -> list[Part]:
    """The parts of the run in the order in which a batch meets them."""
    n, saes = job.total_tokens, job.n_saes
    encoder = 2.0 * n * job.encoder_weights * saes
    out = [_source(job, machine), Part("encoder product", encoder / machine.product, encoder)]
    if job.k is not None:
        out.append(Part("top-k", n * job.d_sae * saes / machine.top_k, moved=4.0 * n * job.d_sae * saes))
    work = decode_work(job, n) * saes
    sparse = job.k is not None
    out.append(
        Part("decode + gradients", work / machine.decode, 0.0 if sparse else work, moved=work if sparse else 0.0)
    )
    moved = float(ADAM_BYTES) * job.parameters * job.steps * saes
    out.append(Part("optimiser", moved / machine.optimizer, moved=moved))
    if job.k_aux:
        auxk = AUXK_PRODUCTS * n * job.dead_share * job.d_sae * job.d_in * saes
        out.append(Part("AuxK", auxk / machine.product, auxk))
    out.append(Part("calls and counters", machine.overhead * job.steps * saes))
    out.append(_evaluation(job, machine))
    written = float(job.checkpoint_bytes * job.checkpoints)
    out.append(Part("checkpoints", written / machine.disk, moved=written))
    return out


def _source(job: Job, machine: Machine) -> Part:
    if job.cached:
        moved = float(job.total_tokens * job.served * job.activation_bytes)
        return Part("reading the cache", moved / machine.disk, moved=moved)
    flops = 2.0 * job.host_parameters * job.host_share * job.total_tokens
    return Part("host forward", job.total_tokens / machine.host if flops else 0.0, flops)


def _evaluation(job: Job, machine: Machine) -> Part:
    n_passes = EVALUATION_PASSES + (job.places if job.places > 1 else 0)  # several are replaced one by one too
    encoder = 2.0 * job.eval_tokens * job.encoder_weights * job.n_saes
    passes = n_passes * job.eval_tokens / (machine.host * job.host_share) if job.host_parameters else 0.0
    flops = encoder + 2.0 * job.eval_tokens * n_passes * job.host_parameters * job.n_saes
    return Part("evaluation", encoder / machine.product + passes * job.n_saes, flops)


def memory(job: Job) -> dict[str, int]:
    """Bytes that are held at once, by what holds them."""
    weights = PARAMETER_BYTES * job.parameters * job.n_saes
    part = -(-job.tokens_per_batch // job.parts_per_batch)
    itemsize = 2 if job.bf16 else PARAMETER_BYTES
    # a dense architecture keeps latents and their gradient beside the pre-activations
    wide = part * job.d_sae * (itemsize if job.k is not None else 3 * PARAMETER_BYTES)
    batch = part * (3 * (job.d_in + job.d_out) + 6 * math.ceil(job.k or 0)) * PARAMETER_BYTES
    return {
        "weights": weights,
        "optimiser": 2 * weights,
        # of one autoencoder at a time; sparse ones stay the factors that they are made of
        "gradients": 0 if job.k is not None else PARAMETER_BYTES * job.parameters,
        "pre-activations": wide,
        "batch": batch,
        "ring": job.ring_bytes,
        "host": job.host_bytes,
    }


def disk(job: Job) -> dict[str, int]:
    """Bytes on disk at the end; `cache` is what `hf-sae cache write` would write of these activations."""
    return {
        "model": PARAMETER_BYTES * job.parameters * job.n_saes,
        "checkpoints": job.checkpoint_bytes * job.kept_checkpoints,
        "cache": job.total_tokens * job.served * job.activation_bytes,
    }
