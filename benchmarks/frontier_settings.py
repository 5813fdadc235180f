"""Which config fields give an architecture its sparsity, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_sae.models import SAEConfig, registered


TARGETS = (16, 32, 64)  # latents per token
FAMILIES = {
    "selection": "k of the latents",
    "batch": "k on average",
    "penalty": "penalty or threshold",
    "encoder": "another encoder",
}


@dataclass(frozen=True)
class Setting:
    """How an architecture is made as sparse as it is asked to be.

    Args:
        family (`str`): its panel of the plot, a key of `FAMILIES`.
        name (`str`): the field. The L0 that is asked for is its value.
        between (`tuple`, *optional*): the field is a coefficient whose value is found by bisection between one that gives too
            many latents and one that gives too few.
        fixed (`dict`): further fields.
        free (`bool`): the architecture finds its own L0; one run stands for all.
    """

    family: str
    name: str = "k"
    between: tuple[float, float] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    free: bool = False

    def fields(self, target: float, found: float | None) -> dict[str, Any]:
        """The config fields for an L0 of `target`; `found` is the coefficient of an architecture that has one."""
        if self.free:
            return dict(self.fixed)
        value = target if self.between is None else found
        return {**self.fixed, self.name: value}


SETTINGS = {
    "topk": Setting("selection"),
    "abs_topk": Setting("selection"),
    "k_sparse": Setting("selection"),
    "multi_topk": Setting("selection"),
    "hierarchical_topk": Setting("selection"),
    "top_afa": Setting("selection", free=True),
    "gradient": Setting("selection"),
    "variational": Setting("selection"),
    "batch_topk": Setting("batch"),
    "matryoshka": Setting("batch"),
    "feature_choice": Setting("batch"),
    "standard": Setting("penalty", "l1_coefficient", between=(1e-3, 10.0)),
    "gated": Setting("penalty", "target_l0"),
    "p_anneal": Setting("penalty", "l1_coefficient", between=(1e-3, 10.0)),
    "jumprelu": Setting("penalty", "target_l0"),
    # targets are upper bounds, which not all latents reach: the highest one is found
    "gba": Setting("penalty", "highest_frequency", between=(0.9, 2e-3)),
    "matching_pursuit": Setting("encoder"),
    "ista": Setting("encoder", "l1_coefficient", between=(1e-3, 10.0)),
    "lista": Setting("encoder"),
    "kron": Setting("encoder"),
    "bilinear": Setting("encoder"),
}
SEVERAL_PLACES = ("crosscoder", "cross_layer")


def names() -> list[str]:
    """Architectures that are registered, as `hf-sae train --arch` takes them."""
    return sorted(model_type.removeprefix("hf_sae_") for model_type in registered())


def left_out(name: str) -> str | None:
    """Why an architecture has no row; `None` if it has one."""
    if f"hf_sae_{name}" not in registered():
        return "not in this version"
    if name in SEVERAL_PLACES:
        return "reads or writes several places"
    return None if name in SETTINGS else "benchmarks/frontier_settings.py does not say what gives it its sparsity"


def config_of(name: str, d_in: int, d_sae: int, hook: str, target: float, found: float | None = None) -> SAEConfig:
    """The config of a run.

    Raises:
        ConfigError: if the architecture does not have the fields of its setting.
    """
    config_class, _ = registered()[f"hf_sae_{name}"]
    fields: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "hook_in": hook, "input_norm": "scalar"}
    return config_class(**fields | SETTINGS[name].fields(target, found))
