"""`Job`: the numbers of a training run that its cost depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...activations.reading import HostReader
from ...hosts.towers import unwrap
from ...models import SAE, AutoSAE, SAEConfig
from ..arguments import SAETrainingArguments


PARAMETER_BYTES = 4  # weights and Adam's two moments are float32
RING_OVERHEAD = 8  # the order of the ring, bytes per token


@dataclass(kw_only=True)
class Job:
    """One run.

    Args:
        d_in, d_out, d_sae (`int`): widths.
        k (`int`, *optional*): active latents per token of an architecture with sparse gradients; `None` is dense.
        parameters (`int`): numbers of one autoencoder.
        encoder_weights (`int`): entries of the matrices that encode, which are multiplied with every token.
        served (`int`): numbers per token that a stream serves: what is read, what is written elsewhere, gradients.
        places (`int`): places that are written.
        k_aux (`int`): latents per token in AuxK; 0 without.
        total_tokens, tokens_per_batch, parts_per_batch (`int`): length, size of a step, parts it is computed in.
        bf16 (`bool`): encoder products in bfloat16.
        n_saes (`int`): autoencoders of this kind in one pass over the host.
        dead_share (`float`): share of dead latents that AuxK is assumed to work on.
        ring_bytes (`int`): shuffle buffer of activations.
        cached (`bool`): activations come from disk.
        activation_bytes (`int`): of one number of an activation, in the ring and on disk.
        host_parameters, host_bytes (`int`): size of the host; 0 without one.
        host_share (`float`): share of the host's parameters that lie before the last place.
        save_steps, save_total_limit (`int`, *optional*): checkpoints.
        eval_tokens (`int`): tokens that the result is measured on.
    """

    d_in: int
    d_out: int
    d_sae: int
    k: float | None = None
    parameters: int
    encoder_weights: int
    served: int
    places: int = 1
    k_aux: int = 0
    total_tokens: int
    tokens_per_batch: int
    parts_per_batch: int = 1
    bf16: bool = False
    n_saes: int = 1
    dead_share: float = 0.05
    ring_bytes: int = 0
    cached: bool = False
    activation_bytes: int = 4
    host_parameters: int = 0
    host_bytes: int = 0
    host_share: float = 1.0
    save_steps: int | None = None
    save_total_limit: int | None = None
    eval_tokens: int = 0

    @classmethod
    def of(
        cls,
        config: SAEConfig,
        args: SAETrainingArguments,
        *,
        reader: HostReader | None = None,
        ring_bytes: int = 0,
        cached: bool = False,
        eval_tokens: int = 0,
        n_saes: int = 1,
        device: torch.device | str = "cpu",
    ) -> Job:
        """The run of a config under training arguments, on a host as a stream reads it."""
        k, d_out = getattr(config, "k", None), config.d_out or config.d_in
        aux = getattr(config, "aux_coefficient", 0)
        host = {} if reader is None else _host(reader)
        with torch.device("meta"):  # sizes only: nothing is allocated
            sae = AutoSAE.from_config(config)
        return cls(
            d_in=config.d_in,
            d_out=d_out,
            d_sae=config.d_sae,
            k=k,
            parameters=sum(p.numel() for p in sae.parameters()),
            encoder_weights=_encoder_weights(sae),
            served=config.d_in + d_out * (config.is_transcoder + len(sae.needs)),
            places=len(config.places_out),
            k_aux=(getattr(config, "k_aux", None) or max(d_out // 2, 1)) if aux else 0,
            total_tokens=args.total_tokens,
            tokens_per_batch=args.tokens_per_batch,
            parts_per_batch=args.gradient_accumulation_steps,
            bf16=args.computes_in_bf16(torch.device(device)),
            n_saes=n_saes,
            ring_bytes=ring_bytes,
            cached=cached,
            activation_bytes=4 if reader is None else reader.dtype.itemsize,
            save_steps=args.save_steps,
            save_total_limit=args.save_total_limit,
            eval_tokens=eval_tokens,
            **host,
        )

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return math.ceil(self.total_tokens / self.tokens_per_batch)

    @property
    def checkpoints(self) -> int:
        """Checkpoints written in the whole run."""
        return self.steps // self.save_steps if self.save_steps else 0

    @property
    def kept_checkpoints(self) -> int:
        """Checkpoints on disk at its end."""
        return min(self.checkpoints, self.save_total_limit or self.checkpoints)

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint: weights, Adam's moments, the ring."""
        return 3 * PARAMETER_BYTES * self.parameters * self.n_saes + self.ring_bytes


def _encoder_weights(sae: SAE) -> int:
    """Entries of the encoder's matrices; of the decoder's, where those encode."""
    encoder = sae.decoder if sae.encoder is None else sae.encoder
    return sum(p.numel() for p in encoder.parameters() if p.dim() > 1)


def _host(reader: HostReader) -> dict[str, Any]:
    model = unwrap(reader.host)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total = sum(sizes.values())
    # an embedding is looked up, and its rows take no product
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    products = total - (embedding.weight.numel() if isinstance(embedding, nn.Embedding) else 0)
    return {
        "host_parameters": products,
        "host_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "host_share": _share_before(reader, model),
    }


def _share_before(reader: HostReader, model: nn.Module) -> float:
    """Share of the blocks up to the last place, by the numbers in the places; 1 where a place has none."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    n_layers = getattr(text, "num_hidden_layers", 0)
    layers = [int(tail) for point in reader.widths if (tail := point.rpartition(".")[2]).isdigit()]
    if not n_layers or len(layers) < len(reader.widths):
        return 1.0
    return min(1.0, (max(layers) + 1) / n_layers)
