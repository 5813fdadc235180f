"""The least that any TopK step on this machine can take: one encoder product and the choice of the k largest."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def milliseconds(call: Callable[[], object], repeats: int = 15) -> float:
    """Fastest time of a call: whatever else runs on the machine only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


@torch.no_grad()
def floor(x: Tensor, d_sae: int, k: int, dtype: torch.dtype = torch.float32, repeats: int = 15) -> dict[str, float]:
    """Milliseconds of the encoder product of `x` `[tokens, d]` in `dtype`, and of the fastest exact top-k of its result."""
    from hf_sae.models.sparse_ops import top_k

    x = x.to(dtype)
    weight = torch.randn(d_sae, x.shape[1], dtype=dtype, device=x.device)
    bias = torch.zeros(d_sae, dtype=dtype, device=x.device)
    pre = F.linear(x, weight, bias)
    selections = (lambda: pre.topk(k, dim=-1, sorted=False), lambda: top_k(pre, k))
    product = milliseconds(lambda: F.linear(x, weight, bias), repeats)
    return {"product": product, "top_k": min(milliseconds(call, repeats) for call in selections)}
