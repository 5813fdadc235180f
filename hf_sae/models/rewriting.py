"""The same function as another architecture, or with other weights: what thresholded autoencoders are published as.

* A latent that is its pre-activation above a threshold, however the two were trained, is a JumpReLU latent.
* Rectified and thresholded latents scale with their encoder row, so that the length of a decoder row can move there.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .configuration_sae import SAEConfig
from .errors import ConfigError
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_sae import SAE
from .modeling_standard import StandardSAE


@torch.no_grad()
def as_jumprelu(
    sae: SAE,
    threshold: Tensor,
    encoder_weight: Tensor | None = None,
    encoder_bias: Tensor | None = None,
    target_l0: float | None = None,
) -> JumpReLUSAE:
    """The [`JumpReLUSAE`] with the decoder, units and places of another model, in `eval()` mode; tensors are copied.

    Args:
        sae ([`SAE`]): whose latents are pre-activations above a threshold.
        threshold (`Tensor`): `[d_sae]`, or a scalar for all; 0 or more.
        encoder_weight (`Tensor`, *optional*): `[d_sae, d_in]`; the model's own otherwise.
        encoder_bias (`Tensor`, *optional*): `[d_sae]`; the model's own otherwise.
        target_l0 (`float`, *optional*): what further training would aim at.
    """
    shared = {field.name for field in fields(SAEConfig)} - {field.name for field in fields(PreTrainedConfig)}
    values = {name: getattr(sae.config, name) for name in shared}
    values["provenance"] = {**(sae.config.provenance or {}), "rewritten_from": sae.config.model_type}
    kept = torch.promote_types(sae.dtype, torch.float32)
    tensors = {
        "encoder.weight": sae.W_enc.T if encoder_weight is None else encoder_weight,
        "encoder.bias": sae.b_enc if encoder_bias is None else encoder_bias,
        "threshold": threshold.to(kept).expand(sae.config.d_sae),
    }
    built = _built(JumpReLUSAE, JumpReLUConfig(target_l0=target_l0, **values), sae, tensors)
    built.feature_stats = sae.feature_stats
    return built


@torch.no_grad()
def fold_decoder_norms(sae: SAE) -> SAE:
    """The same function with decoder rows of unit norm: encoder rows, biases and thresholds take their lengths over.

    A model with `to_jumprelu` is rewritten by it first. Latents are in other units afterwards, so that feature statistics
    are dropped. A decoder row of zeros stays.

    Raises:
        ConfigError: for an architecture whose choice of latents depends on how long their rows are.
    """
    rewrite: Any = getattr(sae, "to_jumprelu", None)
    if rewrite is not None:
        sae = rewrite()
    if type(sae) not in (StandardSAE, JumpReLUSAE):
        raise ConfigError(
            f"{type(sae).__name__} compares latents with each other, and with longer encoder rows it would choose others. "
            "Norms are folded into StandardSAE, JumpReLUSAE and what has to_jumprelu()."
        )
    kept = torch.promote_types(sae.dtype, torch.float32)
    norms = torch.linalg.vector_norm(sae.W_dec.to(kept), dim=-1)
    norms = torch.where(norms > 0, norms, 1.0)
    tensors = {
        "encoder.weight": sae.W_enc.T.to(kept) * norms.unsqueeze(1),
        "encoder.bias": sae.b_enc.to(kept) * norms,
        "decoder.weight": sae.W_dec.to(kept) / norms.unsqueeze(1),
    }
    tensors = {name: tensor.to(sae.dtype) for name, tensor in tensors.items()}
    if isinstance(sae, JumpReLUSAE):
        tensors["threshold"] = sae.threshold * norms.to(sae.threshold.dtype)
    return _built(type(sae), sae.config.replace(), sae, tensors)


def _built(model_class: type[Any], config: SAEConfig, sae: SAE, tensors: Mapping[str, Tensor]) -> Any:
    """A model of given tensors, with the decoder and skip of another where they are not given."""
    ours = {"decoder.weight": sae.decoder.weight, "decoder.bias": sae.decoder.bias}
    if sae.skip is not None:
        ours["skip.weight"] = sae.skip.weight
    with torch.device("meta"):
        built = model_class(config)
    built.load_state_dict({name: t.detach().clone() for name, t in {**ours, **tensors}.items()}, assign=True)
    built.fitted = sae.fitted
    return built.requires_grad_().eval()
