"""`train_sae`: the whole way from two names to a trained SAE, for a notebook cell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..activations import ActivationStream
from ..errors import HookPointError
from ..hosts import width_of
from ..loading import load_host
from ..models import SAE, AutoSAE, SAEConfig, TopKConfig
from .arguments import SAETrainingArguments
from .trainer import SAETrainer


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_sae(
    host: str | PreTrainedModel,
    dataset: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layer: int | None = None,
    hook_in: str | None = None,
    hook_out: str | None = None,
    expansion: int = 16,
    k: int = 32,
    config: SAEConfig | None = None,
    args: SAETrainingArguments | None = None,
    total_tokens: int = 10_000_000,
    output_dir: str | None = None,
    seed: int = 0,
    **stream_options: Any,
) -> SAE:
    """Trains a TopK SAE on a host's activations, saves it and returns it in `eval()` mode.

    Args:
        host (`str` or model): Hub id, folder or a loaded model (then give its `tokenizer`).
        dataset: Hub id, folder, file, `datasets` object or list of texts.
        layer (`int`, *optional*): short for `hook_in=f"resid_post.{layer}"`.
        hook_in, hook_out (`str`, *optional*): places to read and write; two places make a transcoder.
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
    hook_in = (
        hook_in
        or (config.hook_in if config is not None else None)
        or (f"resid_post.{layer}" if layer is not None else None)
    )
    if hook_in is None:
        raise HookPointError(
            "train_sae needs a place: layer=8, or hook_in='mlp_in.8' (with hook_out= for a transcoder)."
        )
    config = config or TopKConfig(
        d_in=width_of(host, hook_in), d_sae=width_of(host, hook_in) * expansion, k=k, input_norm="scalar"
    )
    fields = config.to_dict() | {"hook_in": hook_in, "hook_out": hook_out or config.hook_out}
    fields |= {"d_in": width_of(host, hook_in), "d_out": width_of(host, fields["hook_out"] or hook_in)}
    config = type(config)(**fields)
    points = list(dict.fromkeys([hook_in, config.hook_out or hook_in]))
    folder = output_dir or f"sae-{re.sub(r'[^A-Za-z0-9.]+', '-', f'{host.config._name_or_path}-{hook_in}').strip('-')}"
    args = args or SAETrainingArguments(output_dir=folder, total_tokens=total_tokens, seed=seed)
    stream = ActivationStream(host, tokenizer, dataset, points, seed=args.seed, **({"repeat": True} | stream_options))
    sae = AutoSAE.from_config(config)
    SAETrainer(sae, args, stream).train()
    return sae.eval()
