"""Activations whose dictionary is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import SAE, TopKConfig, TopKSAE
from hf_sae.training import SAETrainer, SAETrainingArguments


def planted(n: int, d: int = 16, features: int = 32, active: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`[n, d]` sums of `active` of the features with strengths in [1, 2], off-centre; and the unit features `[features, d]`."""
    dictionary = F.normalize(torch.randn(features, d, generator=torch.Generator().manual_seed(99)), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, features, generator=generator).topk(active, dim=-1).indices
    strength = 1 + torch.rand(n, active, generator=generator)
    return (strength.unsqueeze(-1) * dictionary[chosen]).sum(1) + 0.5, dictionary


def topk(d: int = 16, d_sae: int = 48, k: int = 2, seed: int = 0, **changes) -> TopKSAE:
    torch.manual_seed(seed)
    return TopKSAE(TopKConfig(**{"d_in": d, "d_sae": d_sae, "k": k, "hook_in": "resid_post.0"} | changes))


def trainer(model: SAE | dict[str, SAE], folder, x: Tensor | None = None, size: int = 256, **args) -> SAETrainer:
    batches = None if x is None else list(x.split(size))
    tokens = 0 if x is None else len(x)
    defaults = {"total_tokens": tokens or 1, "tokens_per_batch": size, "disable_tqdm": True, "learning_rate": 3e-3}
    return SAETrainer(model, SAETrainingArguments(output_dir=str(folder), **defaults | args), batches)


def weights(sae: SAE) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in sae.parameters()])
