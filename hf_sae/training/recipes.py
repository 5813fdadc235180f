"""`train_sae`: the whole way from two names to a trained SAE, for a notebook cell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ..activations import ActivationStream
from ..errors import HookPointError
from ..hosts import width_of
from ..hosts.loading import load_host
from ..models import SAE, AutoSAE, CrosscoderConfig, CrossLayerConfig, SAEConfig, TopKConfig, registered
from .arguments import SAETrainingArguments
from .trainer import SAETrainer


RING_BYTES = 256 * 2**20

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_sae(
    host: str | PreTrainedModel,
    dataset: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layer: int | None = None,
    hook_in: str | Sequence[str] | None = None,
    hook_out: str | Sequence[str] | None = None,
    expansion: int = 16,
    k: int = 32,
    config: SAEConfig | None = None,
    args: SAETrainingArguments | None = None,
    total_tokens: int = 10_000_000,
    output_dir: str | None = None,
    seed: int = 0,
    **stream_options: Any,
) -> SAE:
    """Trains a TopK SAE (or crosscoder, or transcoder) on a host's activations, saves it and returns it in `eval()` mode.

    Args:
        host (`str` or model): Hub id, folder or a loaded model (then give its `tokenizer`).
        dataset: Hub id, folder, file, `datasets` object or list of texts.
        layer (`int`, *optional*): short for `hook_in=f"resid_post.{layer}"`.
        hook_in, hook_out (`str` or `list`, *optional*): places to read and write; an output makes a transcoder. Of several
            places without a `config`, a [`CrosscoderConfig`] is made, and with `hook_out` a [`CrossLayerConfig`].
        expansion (`int`): latents per input dimension.
        k (`int`): latents per token.
        config ([`SAEConfig`], *optional*): another architecture or any other field; its places and widths are filled in
            where they are missing.
        args ([`SAETrainingArguments`], *optional*): everything else about the run; replaces `total_tokens`, `output_dir`.
        stream_options: for [`ActivationStream`], such as `context_length`, `positions`, `column`, `split`.

    Raises:
        HookPointError: if no place is given, or it does not exist in the host.

    Example:
        ```python
        sae = train_sae("openai-community/gpt2", "roneneldan/TinyStories", layer=8, total_tokens=20_000_000)
        ```
    """
    if isinstance(host, str):
        host, loaded_tokenizer = load_host(host)
        tokenizer = tokenizer or loaded_tokenizer
    config = _complete(
        config, host, hook_in or (None if layer is None else f"resid_post.{layer}"), hook_out, expansion, k
    )
    name = "-".join([host.config._name_or_path, *config.places_in])
    folder = output_dir or f"sae-{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}"
    args = args or SAETrainingArguments(output_dir=folder, total_tokens=total_tokens, seed=seed)
    stream = open_stream(host, tokenizer, dataset, config, args, **stream_options)
    torch.manual_seed(args.seed)
    sae = AutoSAE.from_config(config)
    SAETrainer(sae, args, stream).train()
    return sae.eval() if sae.dictionary.whole else AutoSAE.from_pretrained(args.output_dir)


def open_stream(
    host: PreTrainedModel, tokenizer: Any, dataset: Any, config: SAEConfig, args: SAETrainingArguments, **options: Any
) -> ActivationStream:
    """The activations that a config asks for: this process's share, starting again where the data ends.

    The ring is at most an eighth of the run, since filling it comes before the first step. `options` go to
    [`ActivationStream`] and win.
    """
    process = Accelerator()
    _, model = registered()[config.model_type]
    points = model.keys_for(config)
    bytes_per_token = 4 * (config.d_in + (config.d_out or 0) * (config.is_transcoder + len(model.needs))) + 16
    tokens = max(args.total_tokens // 8, 4 * args.tokens_per_batch)
    chosen: dict[str, Any] = {
        "repeat": True,
        "seed": args.seed,
        "ring_bytes": min(RING_BYTES, tokens * bytes_per_token),
    }
    chosen |= {"rank": process.process_index, "world_size": process.num_processes}
    return ActivationStream(host, tokenizer, dataset, points, **chosen | options)


def _complete(
    config: SAEConfig | None,
    host: PreTrainedModel,
    hook_in: str | Sequence[str] | None,
    hook_out: str | Sequence[str] | None,
    expansion: int,
    k: int,
) -> SAEConfig:
    """A config whose places and widths are those of the host."""
    place = hook_in or (None if config is None else config.hook_in)
    if not place:
        raise HookPointError(
            "train_sae needs a place: layer=8, or hook_in='mlp_in.8' (with hook_out= for a transcoder)."
        )
    target = hook_out or (None if config is None else config.hook_out)
    places_in, places_out = _listed(place), _listed(target or ())
    widths_in, widths_out = (
        [width_of(host, point) for point in points] for points in (places_in, places_out or places_in)
    )
    changes: dict[str, Any] = {
        "hook_in": places_in,
        "hook_out": places_out or None,
        "d_in": sum(widths_in),
        "d_out": sum(widths_out),
    }
    if config is None:
        config_class: type[SAEConfig] = usual_architecture(places_in, places_out)
        fields: dict[str, Any] = {"d_sae": sum(widths_in) * expansion, "k": k, "input_norm": "scalar"}
    else:
        config_class, fields = type(config), config.to_dict()
    if config_class is CrosscoderConfig and len(set(widths_in)) > 1:
        changes["widths"] = widths_in
    return config_class(**fields | changes)


def usual_architecture(places_in: list[str], places_out: list[str]) -> type[SAEConfig]:
    """What is trained where no architecture is named: TopK of one place or of several; no `places_out` are those read."""
    if len(places_in) == 1 and len(places_out) <= 1:
        return TopKConfig
    return CrossLayerConfig if places_out else CrosscoderConfig


def _listed(points: str | Sequence[str]) -> list[str]:
    return [points] if isinstance(points, str) else list(points)
