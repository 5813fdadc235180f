"""Loading a host by name, as transformers would, with the language-model head where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..access import explained
from ..models.pinning import is_commit, pin


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_host(name: str, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model and tokenizer behind a Hub id or folder, in `eval()` mode on the best device; no code of theirs is run.

    Args:
        name (`str`): Hub id or local folder.
        kwargs: for `from_pretrained` of the model, such as `dtype`, `revision`, `device_map`, `quantization_config`. With
            the last two, or a quantised checkpoint, the host stays where it was put.

    Returns:
        `(host, tokenizer)`; the tokenizer is `None` where the repo has none (vision, audio).

    Raises:
        OSError: if there is no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    own = {key: kwargs[key] for key in ("revision", "token", "subfolder", "local_files_only") if key in kwargs}
    # one commit for weights and tokenizer, recorded: transformers 5 no longer leaves it in the config
    commit = pin(name, **{key: own[key] for key in own if key != "subfolder"})
    if commit is not None and not Path(name).exists():
        own["revision"] = kwargs["revision"] = commit
    with explained(name):
        config = AutoConfig.from_pretrained(name, **own)
        causal = type(config) in AutoModelForCausalLM._model_mapping and not config.is_encoder_decoder
        host = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(name, **kwargs).eval()
    if is_commit(commit):
        host.config._commit_hash = commit
    if torch.cuda.is_available() and not _is_placed(host, kwargs):
        host.to("cuda")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **own)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    return host, tokenizer


def _is_placed(host: Any, kwargs: dict[str, Any]) -> bool:
    """Whether somebody decided where its weights are; a checkpoint says by itself that it is quantised."""
    asked = any(kwargs.get(key) is not None for key in ("device_map", "quantization_config"))
    return asked or bool(getattr(host, "is_quantized", False) or getattr(host, "hf_device_map", None))
