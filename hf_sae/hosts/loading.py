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
            the last two the host stays where they put it.

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
    if "device_map" not in kwargs and "quantization_config" not in kwargs and torch.cuda.is_available():
        host.to("cuda")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **own)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    return host, tokenizer
