"""What the process tests train: every way of using a dictionary that is shared out, with its options and its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_sae import models
from hf_sae.models import SAE
from tests.training.planted import planted


STEPS, TOKENS, WIDTH, LATENTS = 20, 64, 16, 50  # 50 rows on 4 processes: unequal ranges
POINT = {"d_in": WIDTH, "d_sae": LATENTS, "hook_in": "resid_post.0"}
SCALE_OF_DEAD, BIAS_OF_DEAD = 1e-3, -50.0
DEAD = {"dead_after_tokens": 2 * TOKENS}

Build = Callable[[], SAE | dict[str, SAE]]


def batches(transcoder: bool) -> list[Any]:
    x, _ = planted(STEPS * TOKENS)
    x = x.double()
    y = x @ torch.randn(WIDTH, 10, generator=torch.Generator().manual_seed(1)).double() / 4
    pairs = zip(x.split(TOKENS), y.split(TOKENS), strict=True)
    return list(pairs) if transcoder else list(x.split(TOKENS))


def make(kind: str, dead: str | None = None, **changes: Any) -> SAE:
    """An SAE of `{kind}Config`; of every fourth latent, so that some are in each range, the parameter `dead` lets none fire at first."""
    torch.manual_seed(3)
    sae = getattr(models, f"{kind}SAE")(getattr(models, f"{kind}Config")(**POINT | changes)).double()
    with torch.no_grad():
        if dead is not None and (rows := sae.get_parameter(dead)).ndim == 2:
            rows[::4] *= SCALE_OF_DEAD
        elif dead is not None:
            rows[::4] = BIAS_OF_DEAD
    return sae


def transcoder() -> SAE:
    return make("TopK", d_out=10, hook_in="mlp_in.0", hook_out="mlp_out.0", skip=True, k=4)


def several() -> dict[str, SAE]:
    places = {"resid_post.0": {}, "resid_post.1": {"d_sae": 24}}
    saes = {f"k{k}": make("TopK", k=k) for k in (2, 4)}
    return saes | {place: make("Standard", hook_in=place, **changes) for place, changes in places.items()}


def thresholds() -> dict[str, SAE]:
    """What is saved beside the weights, of several SAEs: not all of them are in the first process."""
    small = make("Matryoshka", d_sae=24, k=2, group_bounds=[3, 14, 24])
    return {"batch_topk": make("BatchTopK", k=3), "matryoshka": small}


def crosscoder(dead: str | None = None, **changes: Any) -> SAE:
    places = {"d_in": 2 * WIDTH, "hook_in": ["resid_post.0", "resid_post.1"], "input_norm": "scalar"}
    return make("Crosscoder", dead, **places | changes)


BIAS = "encoder.bias"
CASES: dict[str, tuple[Build, dict[str, Any]]] = {
    "topk": (lambda: make("TopK", BIAS, k=3, k_aux=10), DEAD),
    "topk-norm": (lambda: make("TopK", BIAS, k=3, input_norm="layer_norm", k_start=9), DEAD),
    "accumulation": (
        lambda: make("TopK", BIAS, k=3),
        {"gradient_accumulation_steps": 3, "dead_after_tokens": TOKENS},
    ),
    "jumprelu": (lambda: make("JumpReLU", BIAS, target_l0=4), DEAD),
    "standard": (lambda: make("Standard"), {"max_grad_norm": 0.05}),
    "p_anneal": (lambda: make("PAnneal"), {}),
    "gated": (lambda: make("Gated", "b_mag", target_l0=4), DEAD),  # gates are fitted, what they let through is not
    "gated-joint": (
        lambda: make("Gated", target_l0=4, frozen_decoder=False, weighted_l1=True),
        {"max_grad_norm": 0.05},
    ),
    "abs_topk": (lambda: make("AbsTopK", "encoder.weight", k=3, k_aux=5), DEAD),
    "gradient": (lambda: make("Gradient", BIAS, k=3, k_aux=5), DEAD),
    "k_sparse": (lambda: make("KSparse", k=3), {"max_grad_norm": 0.05}),
    "multi_topk": (lambda: make("MultiTopK", BIAS, k=3), DEAD),
    "bilinear": (lambda: make("Bilinear", "encoder.left.weight", k=3), DEAD | {"max_grad_norm": 0.05}),
    "crosscoder": (crosscoder, {}),
    "crosscoder-topk": (lambda: crosscoder(BIAS, k=3), DEAD),
    "batch_topk": (lambda: make("BatchTopK", BIAS, k=2.5), DEAD),
    "thresholds": (thresholds, {}),
    "transcoder": (transcoder, {"max_grad_norm": 0.01}),
    "several": (several, {}),
}
COUPLED = ("batch_topk", "thresholds")  # a share of a batch is not selected as in the whole: see `couples_tokens`


def schemes_of(case: str) -> list[str]:
    """In which several processes equal one."""
    return ["latents", "saes"] if case in COUPLED else ["data", "latents", "saes"]


def feed(case: str) -> list[Any]:
    if case == "several" or case.startswith("crosscoder"):
        x = batches(False)
        return [{"resid_post.0": a, "resid_post.1": b, "resid_post.2": b} for a, b in zip(x, reversed(x), strict=True)]
    if case == "gradient":
        x = batches(False)
        return [{"resid_post.0": a, "resid_post.0/gradient": b} for a, b in zip(x, reversed(x), strict=True)]
    return batches(case == "transcoder")
