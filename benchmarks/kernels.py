"""Each GPU kernel by itself beside torch's way of doing the same and the floor that memory or the matrix product sets.

    python -m benchmarks.kernels --size A B C --tokens 16384

A floor is what the same machine does in the same run: the encoder's product by cuBLAS, or the bytes that a kernel has to move at
the rate of a large copy. Share is floor / time. A gather of k rows is also given as the cost model has it, `balance * k / d_sae`
products, with the balance of FLOP and bytes measured here in place of the 184 of an H200's data sheet. Rows are in bfloat16;
which latents fire is uniform but for one that fires on every token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hf_sae.models import sparse_ops, triton_ops
from hf_sae.models.triton_top_k import encode_top_k, top_k


@dataclass(frozen=True)
class Size:
    name: str
    d: int
    d_sae: int
    k: int


SIZES = {
    "A": Size("A", 768, 24576, 32),
    "B": Size("B", 2304, 65536, 64),
    "C": Size("C", 4096, 131072, 64),
    "D": Size("D", 4096, 1048576, 64),
}
COLUMNS = ("size", "kernel", "ms", "ns/token", "GB", "GB/s", "floor ms", "share", "first call s")


@dataclass
class Result:
    """One row: milliseconds are a median; `floor` is in milliseconds too, None where the row is a floor or a comparison."""

    size: str
    name: str
    milliseconds: float
    first_seconds: float
    tokens: int
    bytes_moved: float
    floor: float | None = None

    def cells(self) -> tuple[str, ...]:
        share = "" if self.floor is None else f"{self.floor / self.milliseconds:.0%}"
        rate = self.bytes_moved / self.milliseconds / 1e6
        return (
            self.size,
            self.name,
            f"{self.milliseconds:.3f}",
            f"{1e6 * self.milliseconds / self.tokens:.1f}",
            f"{self.bytes_moved / 1e9:.2f}",
            f"{rate:,.0f}",
            "" if self.floor is None else f"{self.floor:.3f}",
            share,
            f"{self.first_seconds:.2f}",
        )


def timed(run: Callable[[], Any], device: str, repeats: int) -> tuple[float, float]:
    """The median in milliseconds of `repeats` calls, and the seconds of the first, which compiles."""
    start = time.perf_counter()
    run()
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    first = time.perf_counter() - start
    if device != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start), first
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for before, after in events:
        before.record()
        run()
        after.record()
    wait()
    return statistics.median(before.elapsed_time(after) for before, after in events), first


class Inputs:
    """Random activations, a decoder and a code for it. The product and the copy that set the floors are timed first."""

    def __init__(self, size: Size, tokens: int, device: str, repeats: int) -> None:
        self.size, self.tokens, self.device, self.repeats = size, tokens, device, repeats
        torch.manual_seed(0)
        half = {"dtype": torch.bfloat16, "device": device}
        self.x, self.error = torch.randn(tokens, size.d, **half), torch.randn(tokens, size.d, **half)
        self.weight, self.bias = torch.randn(size.d_sae, size.d, **half), torch.zeros(size.d_sae, **half)
        self.indices = torch.randint(1, size.d_sae, (tokens, size.k), device=device)
        self.indices[:, 0] = 0
        self.values = torch.randn(tokens, size.k, device=device)
        self.order, self.offsets = triton_ops.transpose(self.indices, size.d_sae)
        self.firing, self.weights = self.order // size.k, self.values.reshape(-1)[self.order]
        # of the pre-activations only as many rows as fit in 4 GB in float32
        self.few = max(1, min(tokens, 2**30 // size.d_sae))
        self.product = 0.0
        self.bytes_per_ms = 0.0

    def row(self, name: str, run: Callable[[], Any], moved: float, floor: float | None, tokens: int = 0) -> Result:
        try:
            median, first = timed(run, self.device, self.repeats)
        except torch.OutOfMemoryError:
            median = first = float("nan")
        return Result(self.size.name, name, median, first, tokens or self.tokens, moved, floor)


def measure(size: Size, tokens: int, device: str = "cuda", repeats: int = 20) -> list[Result]:
    """Every row of the table for one size."""
    inputs = Inputs(size, tokens, device, repeats)
    rows = list(_floors(inputs))
    for part in (_selections, _gathers, _sums):
        rows += part(inputs)
    return rows


def _floors(i: Inputs) -> Iterator[Result]:
    source = torch.empty(2**28 if i.device == "cuda" else 2**10, dtype=torch.float32, device=i.device)
    target = torch.empty_like(source)
    copied = i.row("copy", lambda: target.copy_(source), 2 * source.nbytes, None)
    i.bytes_per_ms = copied.bytes_moved / copied.milliseconds
    yield copied
    out = torch.empty(i.few, i.size.d_sae, dtype=torch.bfloat16, device=i.device)
    moved = out.nbytes + i.weight.nbytes + i.few * i.size.d * 2
    product = i.row("encoder product", lambda: torch.mm(i.x[: i.few], i.weight.T, out=out), moved, None, i.few)
    i.product = product.milliseconds / i.few * i.tokens
    yield product


def _selections(i: Inputs) -> Iterator[Result]:
    """Selection alone, on as many tokens as there is room for, then encoder and selection in one."""
    for dtype in (torch.bfloat16, torch.float32):
        pre = torch.randn(i.few, i.size.d_sae, dtype=dtype, device=i.device)
        word = str(dtype).removeprefix("torch.")
        variants: dict[str, Callable[[Tensor, int], Any]] = {
            "torch.topk": lambda p, k: p.topk(k, sorted=False),
            "top-k, two stages": sparse_ops.top_k,
            "top-k, kernel": top_k,
        }
        for name, select in variants.items():
            run = _bound(select, pre, i.size.k)
            yield i.row(f"{name}, {word}", run, pre.nbytes, pre.nbytes / i.bytes_per_ms, i.few)
        del pre
    scratch = 4.0 * i.tokens * i.size.d_sae
    yield i.row("encoder and top-k", lambda: encode_top_k(i.x, i.weight, i.bias, i.size.k), scratch, i.product)


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _gathers(i: Inputs) -> Iterator[Result]:
    gather = 2.0 * i.tokens * i.size.k * i.size.d
    floor, code = gather / i.bytes_per_ms, (i.values, i.indices, i.weight)
    yield i.row("decode", lambda: triton_ops.decode(*code), gather, floor)
    yield i.row("decode, embedding_bag", lambda: sparse_ops.decode(*code), gather, floor)
    yield i.row("error and d(values)", lambda: triton_ops.error_and_dots(*code, i.x), gather, floor)
    yield i.row("d(values) alone", lambda: triton_ops.dots(i.error, i.indices, i.weight), gather, floor)


def _sums(i: Inputs) -> Iterator[Result]:
    size = i.size
    listed = 100.0 * i.tokens * size.k
    transposing = {
        "transpose": lambda: triton_ops.transpose(i.indices, size.d_sae),
        "transpose, torch.sort": lambda: sparse_ops.Transposed(i.indices, size.d_sae),
    }
    for name, run in transposing.items():
        yield i.row(name, run, listed, listed / i.bytes_per_ms)
    gather, written = 2.0 * i.tokens * size.k * size.d, 4.0 * size.d_sae * size.d
    one = (i.firing, i.offsets, i.weights, i.error)
    floor = (gather + written) / i.bytes_per_ms
    yield i.row("row sums", lambda: triton_ops.sum_rows(*one), gather + written, floor)
    both = lambda: triton_ops.sum_two_rows(*one, i.weights, i.x)  # noqa: E731
    yield i.row("two row sums", both, 2 * (gather + written), 2 * floor)


def modelled_gather(results: list[Result], size: Size) -> str:
    """What a gather costs in encoder products: as modelled from the two floors, and as measured."""
    by_name = {result.name: result for result in results if result.size == size.name}
    product, copied = by_name["encoder product"], by_name["copy"]
    per_token = product.milliseconds / product.tokens
    balance = (2 * size.d * size.d_sae / per_token) / (copied.bytes_moved / copied.milliseconds)
    decode = by_name["decode"]
    measured = decode.milliseconds / decode.tokens / per_token
    return (
        f"{size.name}: a gather is {balance * size.k / size.d_sae:.3f} products by the model, {measured:.3f} measured."
    )


def table(results: list[Result]) -> str:
    """The results as one Markdown table, its columns aligned."""
    rows = [COLUMNS, *(result.cells() for result in results)]
    widths = [max(len(row[c]) for row in rows) for c in range(len(COLUMNS))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["A", "B", "C"])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON list in place of the table")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available() or not triton_ops.available(torch.zeros(1, device="cuda")):
        raise SystemExit(
            "The kernels need a CUDA device and triton, and there is none here. "
            "On a CPU, run: python -m benchmarks.train_step"
        )
    results: list[Result] = []
    for name in arguments.size:
        results += measure(SIZES[name], arguments.tokens, repeats=arguments.repeats)
        torch.cuda.empty_cache()
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.tokens} tokens\n")
    print(table(results))
    print(*(modelled_gather(results, SIZES[name]) for name in arguments.size), sep="\n")
    print("Next: python -m benchmarks.train_step times a whole step.")


if __name__ == "__main__":
    main()
