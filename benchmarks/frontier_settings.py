"""Which config fields give an architecture its sparsity, what stands beside them, and which places it reads and writes."""

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
    "several": "several places",
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
        further (`tuple`): L0s besides `TARGETS`, to compare such architectures with.
        reads (`tuple`), writes (`tuple`): places; none is the one that the activations were taken at, and what is read.
    """

    family: str
    name: str = "k"
    between: tuple[float, float] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    free: bool = False
    further: tuple[int, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[int, ...]:
        """The L0s that are asked for."""
        return TARGETS[:1] if self.free else (*TARGETS, *self.further)

    @property
    def several(self) -> bool:
        """Whether it reads or writes several places, which is another task than that of the rest."""
        return max(len(self.reads), len(self.writes)) > 1

    def places(self, hook: str) -> tuple[list[str], list[str]]:
        """What is read and what is written, where the activations were taken at `hook`."""
        reads = list(self.reads) or [hook]
        return reads, list(self.writes) or reads

    def latents(self, d_sae: int) -> int:
        """At most `d_sae`: readers that have writers of their own share the latents out equally."""
        return d_sae - d_sae % len(self.reads) if self.reads and self.writes else d_sae

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
    "batch_topk": Setting("batch", further=(96,)),  # top-AFA takes about 75
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
    "crosscoder": Setting("several", reads=("resid_post.0", "resid_post.1", "resid_post.2")),
    "cross_layer": Setting(
        "several", reads=("mlp_in.0", "mlp_in.1", "mlp_in.2"), writes=("mlp_out.0", "mlp_out.1", "mlp_out.2")
    ),
}


def names() -> list[str]:
    """Architectures that are registered, as `hf-sae train --arch` takes them."""
    return sorted(model_type.removeprefix("hf_sae_") for model_type in registered())


def left_out(name: str) -> str | None:
    """Why an architecture has no row; `None` if it has one."""
    if f"hf_sae_{name}" not in registered():
        return "not in this version"
    return None if name in SETTINGS else "benchmarks/frontier_settings.py does not say what gives it its sparsity"


def further_places(hook: str) -> list[str]:
    """All that some architecture reads or writes besides `hook`."""
    found = [place for setting in SETTINGS.values() for places in setting.places(hook) for place in places]
    return [place for place in dict.fromkeys(found) if place != hook]


def config_of(
    name: str, widths: Mapping[str, int], d_sae: int, hook: str, target: float, found: float | None = None
) -> SAEConfig:
    """The config of a run.

    Args:
        name (`str`): of the architecture.
        widths (`dict`): by place, of those that it reads and writes.
        d_sae (`int`): latents at most.
        hook (`str`): the place that the activations were taken at.
        target (`float`): the L0 that is wanted.
        found (`float`, *optional*): the coefficient that gives it, where there is one.

    Raises:
        ConfigError: if the architecture does not have the fields of its setting.
    """
    config_class, _ = registered()[f"hf_sae_{name}"]
    setting = SETTINGS[name]
    reads, writes = setting.places(hook)
    fields: dict[str, Any] = {"d_in": sum(widths[place] for place in reads), "d_sae": setting.latents(d_sae)}
    fields |= {"hook_in": reads, "input_norm": "scalar"}
    if writes != reads:
        fields |= {"d_out": sum(widths[place] for place in writes), "hook_out": writes}
    return config_class(**fields | setting.fields(target, found))
