"""Every registered architecture in every kind: what the common battery is parametrised over."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_sae.models import SAE, AutoSAE, SAEConfig, TrainingState, registered


D_IN, D_OUT, D_SAE = 12, 10, 32
KINDS = {
    "sae": {"hook_in": "resid_post.1"},
    "sae-scalar": {"hook_in": "resid_post.1", "input_norm": "scalar", "input_scale": 0.5},
    "sae-layer_norm": {"hook_in": "resid_post.1", "input_norm": "layer_norm"},
    "sae-center": {"hook_in": "resid_post.1", "input_norm": "center"},
    "sae-unit_ln": {"hook_in": "resid_post.1", "input_norm": "unit_ln"},
    "sae-unit_rms": {"hook_in": "resid_post.1", "input_norm": "unit_rms", "norm_eps": 0.0},
    "transcoder-unit_ln": {
        "hook_in": "resid_mid.1",
        "hook_out": "mlp_out.1",
        "d_out": D_OUT,
        "input_norm": "unit_ln",
        "center_target": True,
    },
    "transcoder": {"hook_in": "mlp_in.1", "hook_out": "mlp_out.1", "d_out": D_OUT},
    "skip": {"hook_in": "mlp_in.1", "hook_out": "mlp_out.1", "d_out": D_OUT, "skip": True},
}
# Architectures of several places have kinds of their own; their widths are shares of the same d_in and d_out.
TWO, WRITERS = ["resid_post.0", "resid_post.1"], ["mlp_out.0", "mlp_out.1"]
READERS = ["mlp_in.0", "mlp_in.1"]
OWN_KINDS = {
    "hf_sae_crosscoder": {
        "two-l1": {"hook_in": TWO, "k": None},
        "two-topk": {"hook_in": TWO, "widths": [5, 7]},
        "two-scales": {"hook_in": TWO, "input_norm": "scalar", "input_scales": [0.5, 2.0]},
    },
    "hf_sae_cross_layer": {
        "one-to-one": {"hook_in": "mlp_in.1", "hook_out": "mlp_out.1", "d_out": D_OUT, "skip": True},
        "one-to-two": {"hook_in": "mlp_in.0", "hook_out": WRITERS, "d_out": D_OUT, "input_norm": "unit_ln"},
        "two-to-two": {"hook_in": READERS, "hook_out": WRITERS, "d_out": D_OUT, "input_norm": "layer_norm"},
        "two-scales": {
            "hook_in": READERS,
            "hook_out": WRITERS,
            "d_out": D_OUT,
            "input_norm": "scalar",
            "input_scales": [0.5, 2.0],
            "output_scales": [3.0, 0.25],
            "center_target": True,
        },
    },
}
# What the kinds differ in is the base class's business: the first architectures stand for it, others take these.
FEWER_KINDS = ("sae", "sae-layer_norm", "skip")
ALL_KINDS = ("hf_sae_topk", "hf_sae_standard", "hf_sae_jumprelu")
# A small k where an architecture has one: the default of 32 would keep every latent. No noise where an architecture samples:
# two passes would differ in it; its own tests have it.
SMALL = {"k": 4, "target_l0": 4, "sigma": 0.0}


@dataclass
class Case:
    model_type: str
    kind: str

    def __str__(self) -> str:
        return f"{self.model_type.removeprefix('hf_sae_')}-{self.kind}"

    @property
    def fields(self) -> dict[str, Any]:
        """Of the config: places and norm."""
        return OWN_KINDS.get(self.model_type, KINDS)[self.kind]

    def config(self, **changes) -> SAEConfig:
        config_class, _ = registered()[self.model_type]
        small = {k: v for k, v in SMALL.items() if hasattr(config_class, k)}
        return config_class(**{"d_in": D_IN, "d_sae": D_SAE} | small | self.fields | changes)

    def build(self, seed: int = 0, **changes) -> SAE:
        torch.manual_seed(seed)
        sae = AutoSAE.from_config(self.config(**changes))
        with torch.no_grad():  # no parameter keeps a value that would hide a mistake, such as a zero bias
            for name, parameter in (*sae.named_parameters(), *sae.named_buffers()):
                if "threshold" in name:
                    parameter.uniform_(0.05, 0.2)
                elif parameter.ndim == 1 or "skip" in name:
                    parameter.normal_(std=0.1)
        return sae

    def exact(self) -> dict[str, Any]:
        """Fields under which all of the code has a gradient in training; what a solver's have instead is in its own tests."""
        return {"adaptive_steps": False} if hasattr(registered()[self.model_type][0], "adaptive_steps") else {}

    def batch(self, n: int = 40, seed: int = 1) -> tuple[Tensor, Tensor | None]:
        """Input and target; an SAE's target is its input."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, D_IN, generator=generator)
        return x, torch.randn(n, D_OUT, generator=generator) if "d_out" in self.fields else x

    def state(self, sae: SAE) -> TrainingState:
        state = TrainingState(total_steps=10, normaliser=7.0, dead_after_tokens=100)
        state.tokens_since_fired = torch.zeros(sae.config.d_sae, dtype=torch.long)
        return state

    def exists(self, sae: SAE, name: str) -> Tensor | float:
        """A mask of the entries of a parameter that are parameters: a causal decoder stores zeros beside them."""
        masked = name == "decoder.weight" and hasattr(sae.decoder, "exists")
        return sae.decoder.exists() if masked else 1.0

    def given(self, sae: SAE, n: int = 40, seed: int = 2) -> dict[str, Tensor]:
        """What the architecture needs of each token besides its activation."""
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(n, sae.config.d_out, generator=generator) for name in sae.needs}

    def whole_gradients(
        self, sae: SAE, x: Tensor, target: Tensor
    ) -> tuple[TrainingState, dict[str, Tensor], list[Tensor | None]]:
        """The gradients of all parameters for a whole batch, with the state and what was given: shares of it are compared with them."""
        state = self.state(sae)
        state.given = given = self.given(sae)
        sae.before_step(state)
        sae(x, target=target, state=state).loss.backward()
        whole = [None if p.grad is None else p.grad.clone() for p in sae.parameters()]
        sae.zero_grad()
        return state, given, whole

    def permuted(self, sae: SAE, seed: int = 3) -> tuple[SAE, Tensor]:
        """A copy with its latents in another order, and that order `[d_sae]`.

        Latents that share parameters move together, as the heads of a factorised encoder; each stays among those that read
        the same place.
        """
        blocks = sae.config.shape[0] if hasattr(sae.config, "shape") else sae.config.d_sae
        generator, readers = torch.Generator().manual_seed(seed), getattr(sae.config, "n_readers", 1)
        share = blocks // readers
        order = torch.cat([share * r + torch.randperm(share, generator=generator) for r in range(readers)])
        other = copy.deepcopy(sae)
        with torch.no_grad():
            latents = torch.arange(sae.config.d_sae).view(blocks, -1)[order].flatten()
            for name, tensor in other.state_dict().items():
                if blocks < sae.config.d_sae and name.startswith("encoder."):
                    tensor.copy_(tensor.unflatten(0, (blocks, -1))[order].flatten(0, 1))
                for dim, size in enumerate(tensor.shape):  # a matrix from latents to latents has two such dimensions
                    if size == sae.config.d_sae:
                        tensor.copy_(tensor.index_select(dim, latents))
        return other, latents


def encoder_layers(sae: SAE) -> list[str]:
    """The linear maps that an architecture reads with, which LoRA may adapt; none where it reads with the decoder's rows."""
    named = sae.named_modules()
    return [name for name, layer in named if "encoder" in name.split(".") and type(layer) is nn.Linear]


def forget(config_class: type[SAEConfig]) -> None:
    """Takes an architecture out of the registries again: other tests run over them."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    del AutoSAE._model_mapping._extra_content[config_class], AutoModel._model_mapping._extra_content[config_class]
    del CONFIG_MAPPING._extra_content[config_class.model_type]
    assert config_class.model_type not in registered()


def kinds_of(model_type: str) -> list[str]:
    """The kinds that an architecture is tested in."""
    if model_type in OWN_KINDS:
        return list(OWN_KINDS[model_type])
    kinds = KINDS if model_type in ALL_KINDS else FEWER_KINDS
    tied = registered()[model_type][0].tied
    return [kind for kind in kinds if not (tied and "hook_out" in KINDS[kind])]


CASES = [Case(model_type, kind) for model_type in sorted(registered()) for kind in kinds_of(model_type)]
