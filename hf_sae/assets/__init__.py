"""What ships in the package: a small language model that everything can be tried on without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError


if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULT_HOST = "default_host"
"""The name under which configs, cards and the command line know the model that ships in the package."""


def default_host() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The language model that ships in the package and its tokenizer: float32, in `eval()` mode, no network.

    A 4-layer Llama of width 192 (2.6 M parameters, vocabulary 4,096, context 256), trained on the source code of
    Python's standard library by `hf_sae/assets/train_default_host.py`.

    Returns:
        `(host, tokenizer)`.

    Raises:
        DataError: if the installation lacks its files.
    """
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = Path(__file__).parent / DEFAULT_HOST
    missing = [
        name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()
    ]
    if missing:
        raise DataError(
            f"the default host's {', '.join(missing)} is not in {str(folder)!r}. Install the package again, train it with "
            "`python -m hf_sae.assets.train_default_host`, or name a host of your own."
        )
    host = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    # a path of this machine would end up in configs and cards
    host.name_or_path = host.config._name_or_path = tokenizer.name_or_path = DEFAULT_HOST
    return host, tokenizer
