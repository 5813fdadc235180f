"""Where products in bfloat16 are faster than in float32."""

from __future__ import annotations

import functools

import torch


@functools.cache
def bfloat16_pays(device_type: str) -> bool:
    """Whether devices of this type multiply bfloat16 faster than float32.

    Processors without instructions for it compute such products one conversion at a time, several times slower.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
