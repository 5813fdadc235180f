"""Training steps on one GPU at the sizes A to D, beside the step that a near-limit implementation would take.

python -m benchmarks.gpu --results benchmarks/results/gpu.md      # under ten minutes
python -m benchmarks.gpu --device cpu --tiny                      # the same code at toy sizes

The modelled step is one bfloat16 encoder product, three gathers of `k` rows a token and one pass of 18 bytes a parameter for
the optimiser, at the rates that this very device shows for a large product and a large copy.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .floor import milliseconds
from .implementations import Implementation, Ours, PlainTorch, Task
from .peers import DictionaryLearning, SAELens, Sparsify
from .report import align, machine, markdown_table


NOT_YET, BUDGET = "not yet measured", 540.0
COLUMNS = ("size", "tokens per step", "implementation", "tokens/s", "ms", "x modelled step", "memory GB")
GOAL = 1.35


@dataclass(frozen=True)
class Size:
    """A size of the table."""

    name: str
    d: int
    d_sae: int
    k: int
    batches: tuple[int, ...]
    steps: int
    peers: bool = True

    def __str__(self) -> str:
        return f"{self.name}: d={self.d} F={self.d_sae} k={self.k}"


SIZES = (
    Size("A", 768, 24_576, 32, (4096, 16_384), 60),
    Size("B", 2304, 65_536, 64, (8192, 16_384), 30),
    Size("C", 4096, 131_072, 64, (8192, 16_384), 20),
    Size("D", 4096, 1_048_576, 64, (16_384,), 10, peers=False),  # 103 GB of dense gradients and float32 state
)
TINY = (Size("A", 16, 64, 4, (32, 64), 3), Size("D", 16, 128, 4, (64,), 2, peers=False))
OURS: dict[str, Any] = {"bf16": True, "max_grad_norm": None, "aux_coefficient": 0}
BUILDERS: dict[str, tuple[Callable[[Task], Implementation], dict[str, Any]]] = {
    "hf_sae": (Ours, OURS),
    "torch, dense, bf16": (PlainTorch, {"bf16": True, "fused": True}),
    "sparsify": (Sparsify, {"optimizer": "adam", "lr": 1e-3, "fused": True}),
    "saelens": (SAELens, {"autocast": True, "fused": True}),
    "dictionary_learning": (DictionaryLearning, {"bf16": True, "fused": True}),
}


class Rates:
    """FLOP/s of a large bfloat16 product and bytes per second of a large copy."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        side, n_bytes = (128, 2**16) if tiny else (8192, 2**30)
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        source = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        a @ b
        self.flops = 2 * side**3 / milliseconds(lambda: a @ b, 5) * 1e3
        self.bandwidth = 2 * n_bytes / milliseconds(lambda: target.copy_(source), 5) * 1e3

    def step_ms(self, size: Size, batch: int) -> float:
        """The modelled near-limit step."""
        product = 2 * batch * size.d * size.d_sae / self.flops
        gathers = 3 * 2 * batch * size.k * size.d / self.bandwidth
        update = 18 * 2 * size.d * size.d_sae / self.bandwidth
        return (product + gathers + update) * 1e3


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")


def _to(implementation: Implementation, device: torch.device) -> None:
    implementation.module.to(device)
    if isinstance(implementation, Sparsify):
        implementation.since_fired = implementation.since_fired.to(device)


def measure(name: str, size: Size, batch: int, device: torch.device) -> dict[str, Any]:
    """Median milliseconds of a step after a warm-up, and the most memory."""
    build, options = BUILDERS[name]
    options = dict(options)
    if name in ("saelens", "dictionary_learning"):
        options["device"] = str(device)
    try:
        _release(device)
        implementation = build(Task(size.d, size.d_sae, size.k, batch, 2 * size.steps + 10, options=options))
        _to(implementation, device)
        x, times = torch.randn(batch, size.d, device=device), []
        for step in range(size.steps + 5):
            _synchronize(device)
            start = time.perf_counter()
            implementation.step(x)
            _synchronize(device)
            if step >= min(5, size.steps):
                times.append(time.perf_counter() - start)
        return {"ms": sorted(times)[len(times) // 2] * 1e3, "memory": _peak(device)}
    except ImportError:
        return {"note": "not installed"}
    except (RuntimeError, AssertionError, ValueError, TypeError, KeyError) as error:
        return {"note": "out of memory" if "memory" in str(error).lower() else f"failed: {type(error).__name__}"}


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def steps(sizes: tuple[Size, ...], device: torch.device, rates: Rates, deadline: float) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for every size, batch and implementation; what the time does not reach stays unmeasured."""
    rows = []
    for size in sizes:
        for batch in size.batches:
            model = rates.step_ms(size, batch)
            rows.append(
                (str(size), f"{batch:,}", "modelled", f"{batch / model * 1e3:,.0f}", f"{model:.2f}", "1.00", "")
            )
            for name in BUILDERS:
                if not size.peers and name != "hf_sae":
                    continue
                found = {"note": NOT_YET} if time.monotonic() > deadline else measure(name, size, batch, device)
                if "note" in found:
                    rows.append((str(size), f"{batch:,}", name, found["note"], "", "", ""))
                    continue
                ms, memory = found["ms"], found["memory"]
                figures = (f"{batch / ms * 1e3:,.0f}", f"{ms:.2f}", f"{ms / model:.2f}", f"{memory:.1f}")
                rows.append((str(size), f"{batch:,}", name, *figures))
    return rows


def memory_sweep(size: Size, device: torch.device, limit: int) -> list[tuple[str, ...]]:
    """The largest batch, in powers of two up to `limit`, that each implementation takes a step with."""
    rows = []
    for name in BUILDERS:
        batch, last = min(1024, limit), "none"
        while batch <= limit:
            found = measure(name, Size(size.name, size.d, size.d_sae, size.k, (batch,), 1), batch, device)
            if "note" in found:
                last = last if found["note"] == "out of memory" else found["note"]
                break
            last, batch = f"{batch:,}", 2 * batch
        rows.append((str(size), name, last))
    return rows


def revival(device: torch.device, tiny: bool) -> list[tuple[str, ...]]:
    """AuxK on planted dead latents, ours beside sparsify."""
    from .revival import cells, compare

    sizes = (16, 64, 4, 64, 8) if tiny else (256, 4096, 32, 2048, 300)
    return cells(compare(["hf_sae", "sparsify"], Task(*sizes), device=device))


HOSTS = {  # width, layers, heads, keys and values, inner width, layer that is read
    "GPT-2 shape": (768, 12, 12, 12, 3072, 8),
    "Gemma-2-2B shape": (2304, 26, 8, 4, 9216, 12),
    "Llama-3.1-8B shape": (4096, 32, 32, 8, 14_336, 16),
}


def hosts(device: torch.device, tiny: bool) -> list[tuple[str, ...]]:
    """Tokens per second of a language model of random weights, whole and stopped behind a layer."""
    from transformers import AutoModel, LlamaConfig

    from hf_sae.hooks import read

    rows = []
    for name, (width, layers, heads, keys, inner, layer) in HOSTS.items():
        if tiny:
            width, layers, heads, keys, inner, layer = 32, 3, 4, 4, 64, 1
        config = LlamaConfig(
            vocab_size=1024,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            intermediate_size=inner,
        )
        try:
            _release(device)
            with torch.device(device):
                model = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
            ids = torch.randint(0, 1024, (2, 16) if tiny else (8, 1024), device=device)
            with torch.no_grad():
                whole = milliseconds(lambda m=model, i=ids: m(i, use_cache=False), 3)
                early = milliseconds(lambda m=model, i=ids, n=layer: read(m, f"resid_post.{n}", input_ids=i), 3)
            speeds = (f"{ids.numel() / whole * 1e3:,.0f}", f"{ids.numel() / early * 1e3:,.0f}")
        except torch.OutOfMemoryError:
            speeds = ("out of memory", "")
        rows.append((name, f"{layer} of {layers}", *speeds))
    return rows


def kernels(device: torch.device, tiny: bool) -> str:
    """What `benchmarks/kernels.py` prints, where it is there and the device is a GPU."""
    if device.type != "cuda" or tiny or importlib.util.find_spec("benchmarks.kernels") is None:
        return NOT_YET
    command = [sys.executable, "-m", "benchmarks.kernels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout if not done.returncode else f"failed: {done.stderr.strip().splitlines()[-1:]}"


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = ["# One GPU", "", f"Machine: {facts}. Goal: at most {GOAL} of the modelled step at B and C.", ""]
    lines += markdown_table(COLUMNS, report["steps"], left=3)
    tables = (
        ("Largest batch", ("size", "implementation", "tokens per step"), report["memory"]),
        ("AuxK", ("library", "planted dead", "fire in the end", "revived", "without AuxK", "FVU"), report["revival"]),
        ("Hosts of random weights", ("host", "layers", "whole, tokens/s", "to the layer, tokens/s"), report["hosts"]),
    )
    for title, header, rows in tables:
        lines += ["", f"## {title}", "", *markdown_table(header, rows, left=2)]
    return "\n".join([*lines, "", "## Kernels", "", "```", report["kernels"].strip(), "```", ""])


def main(argv: list[str] | None = None) -> None:
    """Runs everything and prints one table after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the code")
    parser.add_argument("--sizes", nargs="+", choices=[size.name for size in SIZES], default=[s.name for s in SIZES])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="write a page of Markdown to this file")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2, "There is no CUDA device here. Try the code with: python -m benchmarks.gpu --device cpu --tiny\n"
        )
    if args.device == "cpu" and not args.tiny:
        parser.exit(2, "These sizes are for a GPU. On a CPU give --tiny as well.\n")
    device, deadline = torch.device(args.device), time.monotonic() + BUDGET
    sizes = tuple(size for size in (TINY if args.tiny else SIZES) if size.name in args.sizes)
    rates = Rates(device, args.tiny)
    args.threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    found: dict[str, Any] = {
        "machine": machine(args) | {"gpu": name, "product TFLOP/s": f"{rates.flops / 1e12:.1f}"},
        "revival": revival(device, args.tiny),
        "hosts": hosts(device, args.tiny),
        "kernels": kernels(device, args.tiny),
        # the long part last, with whatever time is left
        "memory": memory_sweep(sizes[0], device, 128 if args.tiny else 2**17),
        "steps": steps(sizes, device, rates, deadline),
    }
    print(json.dumps(found, indent=1) if args.json else align([COLUMNS, *found["steps"]]))
    if not args.json:
        print("\n" + page(found).split("## Largest batch", 1)[1])
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
