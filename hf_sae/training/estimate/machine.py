"""`Machine`: how fast this one does what a step consists of, found out in less than two seconds."""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ...activations.reading import HostReader
from ...data import TokenBatch
from ...errors import DataError
from ...models import SAE, AutoSAE, SAEConfig, TopKConfig, TrainingState
from ...models.precision import bfloat16_pays
from ...models.sparse_ops import top_k
from ..arguments import SAETrainingArguments


SHARE = 0.2  # seconds for each of the seven measurements
MAX_TOKENS, MAX_LATENTS, MAX_FLOPS, DISK_BYTES = 1024, 8192, 4e9, 16 * 2**20
MAX_PARAMETERS = 2**23


@dataclass
class Machine:
    """Rates of one machine.

    Args:
        product (`float`): FLOP/s of the encoder product, in the run's precision.
        top_k (`float`): pre-activations per second.
        decode (`float`): bytes gathered per second (sparse) or FLOP/s (dense) in decoding and all gradients.
        optimizer (`float`): bytes per second of a fused Adam step.
        host (`float`): tokens per second up to the last place.
        disk (`float`): bytes written per second.
        overhead (`float`): seconds per step that do not depend on sizes.
        bfloat16 (`bool`): products in bfloat16 are faster here than in float32.
        memory, free_disk (`int`): bytes that are there; 0 where unknown.
    """

    product: float
    top_k: float
    decode: float
    optimizer: float
    host: float
    disk: float
    overhead: float = 0.0
    bfloat16: bool = False
    memory: int = 0
    free_disk: int = 0

    def to_dict(self) -> dict[str, float]:
        """All fields."""
        return asdict(self)


def probe(
    config: SAEConfig,
    args: SAETrainingArguments,
    *,
    reader: HostReader | None = None,
    host_batch: TokenBatch | None = None,
    device: torch.device | str = "cpu",
) -> Machine:
    """Measures a [`Machine`] with an autoencoder of the run's kind and widths, at most 8,192 latents of it.

    Args:
        reader, host_batch (*optional*): the host and one batch of its input; without them the host takes no time.
    """
    from .cost import ADAM_BYTES, decode_work
    from .job import Job

    device = torch.device(device)
    small, n_tokens = _reduced(config, args)
    sae = AutoSAE.from_config(small).train().to(device)
    x, target = (torch.randn(n_tokens, width, device=device) for width in (small.d_in, small.d_out or small.d_in))
    dtype = torch.bfloat16 if args.computes_in_bf16(device) else torch.float32
    encode, rows = _encoder(sae, dtype), x.to(dtype)
    product = _fastest(lambda: encode(rows), device)
    selection, k = 0.0, getattr(small, "k", None)
    if k is not None:
        pre = encode(rows)
        selection = _fastest(lambda: top_k(pre, math.ceil(k)), device)
    both = _fastest(lambda: _gradients(sae, x, target, args.computes_in_bf16(device)), device)
    job = Job.of(small, args)
    # as large as the run's, where caches do not hold it
    n_parameters = min(Job.of(config, args).parameters, MAX_PARAMETERS)
    return Machine(
        product=2 * n_tokens * job.encoder_weights / product,
        top_k=n_tokens * small.d_sae / max(selection, 1e-9),
        # what is left of a step beside the product and the selection, a tenth of it at the least
        decode=decode_work(job, n_tokens) / max(both - product - selection, both / 10),
        optimizer=ADAM_BYTES * n_parameters / _optimizer_seconds(n_parameters, device),
        host=_host_rate(reader, host_batch, device),
        disk=DISK_BYTES / _disk_seconds(Path(args.output_dir)),
        overhead=_overhead(),
        bfloat16=bfloat16_pays(device.type),
        memory=_memory(device),
        free_disk=_free(Path(args.output_dir)),
    )


def _reduced(config: SAEConfig, args: SAETrainingArguments) -> tuple[SAEConfig, int]:
    """A config of the same kind with few latents, and tokens for which the encoder product takes `MAX_FLOPS`."""
    n_tokens = min(MAX_TOKENS, -(-args.tokens_per_batch // args.gradient_accumulation_steps))
    d_sae = config.d_sae
    least = max(math.ceil(getattr(config, "k", None) or 1), 64)
    while d_sae // 2 >= least and (d_sae > MAX_LATENTS or 2 * n_tokens * d_sae * config.d_in > MAX_FLOPS):
        d_sae //= 2
    places = len(config.places_in)  # which may share the latents out among them
    d_sae = min(-(-d_sae // places) * places, config.d_sae)
    small = copy.deepcopy(config)
    changes = {"d_sae": d_sae, "provenance": None}
    for name in ("k_aux", "k_start"):
        if getattr(small, name, None) is not None:
            changes[name] = min(getattr(small, name), d_sae)
    if getattr(small, "group_bounds", None) is not None:  # of the latents there were; the default ones cost as much
        changes["group_bounds"] = None
    # factors of d_sae, which follow from it where they are left open
    changes |= {name: None for name in ("heads", "base", "extension") if hasattr(small, name)}
    return small.replace(**changes), n_tokens


def _encoder(sae: SAE, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product that encodes, without gradients: the encoder's, or that with the decoder's rows."""
    if sae.encoder is None:
        rows = sae.decoder.weight.detach().to(dtype)
        return lambda x: F.linear(x, rows)
    return copy.deepcopy(sae.encoder).to(dtype).requires_grad_(False)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call of those that fit into `SHARE`; the first one is not counted where there are several."""
    best, began = float("inf"), time.perf_counter()
    call()
    first = time.perf_counter() - began
    while time.perf_counter() - began < SHARE:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return min(best, first) if device.type == "cpu" else min(best, 10 * first)


def _gradients(sae: SAE, x: torch.Tensor, target: torch.Tensor, bf16: bool) -> None:
    state = TrainingState(total_steps=1, dead_after_tokens=10**9)
    state.tokens_since_fired = torch.zeros(sae.config.d_sae, dtype=torch.long, device=x.device)
    state.given = {name: torch.randn_like(target) for name in sae.needs}
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        loss = sae(x, target=target, state=state).loss
    loss.backward()
    for parameter in sae.parameters():
        parameter.grad = None
        getattr(parameter, "row_gradients", []).clear()  # gradients that are not written out as matrices


def _optimizer_seconds(n_parameters: int, device: torch.device) -> float:
    weight = torch.zeros(n_parameters, device=device, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    fused = device.type in ("cpu", "cuda", "xpu")
    return _fastest(torch.optim.Adam([weight], fused=fused).step, device)


def _host_rate(reader: HostReader | None, batch: TokenBatch | None, device: torch.device) -> float:
    if reader is None or batch is None:
        return float("inf")
    kept = torch.arange(batch.input_ids.numel())
    return batch.input_ids.numel() / _fastest(lambda: reader(batch, kept), device)


def _overhead() -> float:
    """Seconds of an optimiser step whose arithmetic is next to nothing."""
    from ..trainer import SAETrainer

    args = SAETrainingArguments(output_dir="", total_tokens=800, tokens_per_batch=8, disable_tqdm=True)
    trainer = SAETrainer(AutoSAE.from_config(TopKConfig(d_in=4, d_sae=16, k=2)), args)
    x = torch.randn(8, 4)
    return _fastest(lambda: trainer.training_step(x), trainer.accelerator.device)


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _disk_seconds(folder: Path) -> float:
    data = os.urandom(DISK_BYTES)
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return time.perf_counter() - start
    except OSError as error:
        raise DataError(
            f"cannot write to {str(folder)!r}: {error}. Choose another output_dir, or free space."
        ) from error


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free
