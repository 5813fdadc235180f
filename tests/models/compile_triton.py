"""Compiles every kernel for the compute capabilities given (80, 90), which needs no GPU: `python -m tests.models.compile_triton 90`.

A kernel can run in the interpreter and still be refused by the compiler.
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_sae.models import triton_kernels as kernels
from hf_sae.models.triton_selection import merge_top_k_kernel


# by the name of the argument; what is not here is a number
POINTERS = {
    "*bf16": "weight target error rows rows_2",
    "*fp32": "values out out_2 dots weights weights_2 partial partial_2 scores bias",
    "*i64": "indices tokens offsets owners firsts state thresholds",
    "*i32": "keys counts order ends keys_out order_out",
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names.split()}
SORT = {"BINS": 512, "CHUNK": 512, "BLOCK": 128}
SUMS = {"TWO": True, "SEGMENT": 256, "BLOCK_T": 8, "BLOCK_D": 256}
SELECTION = {"HAS_BIAS": True, "BLOCK_C": 1024, "BLOCK_K": 64}
KERNELS = [
    (kernels.decode_kernel, {"BLOCK_K": 16, "BLOCK_D": 256}, 4),
    (kernels.error_and_dots_kernel, {"BLOCK_K": 64, "BLOCK_D": 128}, 8),
    (kernels.dots_kernel, {"BLOCK_K": 32, "BLOCK_D": 128}, 4),
    (kernels.count_kernel, SORT, 4),
    (kernels.place_kernel, {**SORT, "FIRST": False, "STEP": 32}, 4),
    (kernels.sum_segments_kernel, SUMS, 2),
    (kernels.sum_rows_kernel, SUMS, 2),
    (merge_top_k_kernel, {**SELECTION, "FIRST": False}, 4),
]


def compile_for(capability: int, kernel, constants: dict, warps: int) -> None:
    at = {name: i for i, name in enumerate(kernel.arg_names)}
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in at}
    source = ASTSource(kernel, signature, {(at[name],): value for name, value in constants.items()})
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    if not compiled.asm["cubin"]:
        raise SystemExit(f"{kernel} has no code for sm_{capability}")


if __name__ == "__main__":
    for capability in sys.argv[1:]:
        for kernel in KERNELS:
            compile_for(int(capability), *kernel)
    sys.stdout.write(f"{len(sys.argv) - 1} targets, {len(KERNELS)} kernels\n")
