"""A host and its fine-tuned version: an adapter (LoRA and its kin) or a whole model, found, loaded strictly, switched off.

Only safetensors are read, and nothing that an adapter's config names is imported or fetched.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils.hub import cached_file

from ..access import explained
from ..errors import CheckpointError, ConfigError, DataError
from ..models.adapters import CONFIG, TENSORS, read_adapter_config
from ..models.modeling_sae import SAE
from ..models.pinning import is_commit, pin, split_name
from .fingerprints import compare_fingerprints, fingerprint, other_name
from .loading import load_host
from .towers import unwrap


PICKLE = "adapter_model.bin"
_QUIET = {"_raise_exceptions_for_missing_entries": False}


class Finetuned(NamedTuple):
    """A fine-tuned model and the commit it was loaded at, if it is known."""

    model: Any
    commit: str | None


def load_finetuned(host: Any, tokenizer: Any, name: str, revision: str | None = None) -> Finetuned:
    """The fine-tuned version of a host, in `eval()` mode.

    An adapter is put onto the host itself, which then runs with it: [`without_adapters`] switches it off again. A whole
    model is loaded beside the host.

    Args:
        host (`PreTrainedModel`): the model that was fine-tuned.
        tokenizer: the host's; a whole model has to have the same one.
        name (`str`): folder or Hub id of an adapter or a model; `user/repo:folder` for one in a folder.
        revision (`str`, *optional*): branch, tag or commit.

    Raises:
        CheckpointError: if there is neither, or the adapter is another host's, damaged, pickled or of a kind that cannot
            be compared.
        DataError: if the model has another tokenizer.
        OSError: if there is no such repo.
    """
    repo, subfolder = split_name(name)
    revision = pin(repo, subfolder, revision)
    place = {"subfolder": subfolder, "revision": revision or "main"}
    with explained(repo):
        config = cached_file(repo, CONFIG, **place, **_QUIET)
        if config is not None:
            tensors = cached_file(repo, TENSORS, **place, **_QUIET)
            adapted = _load_adapter(host, name, Path(config), tensors)
            return Finetuned(adapted, revision if is_commit(revision) else None)
        if cached_file(repo, "config.json", **place, **_QUIET) is None:
            raise CheckpointError(
                f"{name!r} has neither an adapter ({CONFIG} and {TENSORS}) nor a model (config.json): give the folder or "
                "Hub id of one of them."
            )
    tuned = _load_model(host, tokenizer, repo, **place)
    return Finetuned(tuned, getattr(tuned.config, "_commit_hash", None))


def _load_model(host: Any, tokenizer: Any, name: str, **place: Any) -> Any:
    tuned, own = load_host(name, use_safetensors=True, **place)
    if isinstance(tuned, SAE):
        raise CheckpointError(f"{name!r} is an autoencoder: give an adapter or a fine-tuned model here.")
    if tokenizer is None or own is None:
        raise DataError(f"{name!r} and its host need a tokenizer each, the same one.")
    recorded, found = fingerprint(host, tokenizer), fingerprint(tuned, own)
    del recorded["vocab_size"], found["vocab_size"]  # embeddings are padded for speed
    if wrong := compare_fingerprints(recorded, found):
        raise DataError(
            f"{name!r} is no fine-tuned version of this host: {'; '.join(wrong)}. The same text has to be the same tokens in "
            "models of one shape."
        )
    return tuned


def _load_adapter(host: Any, name: str, config_file: Path, tensors: str | None) -> Any:
    from peft import PeftModel

    config = read_adapter_config(name, config_file)
    _refuse_kinds(name, config)
    base, own = str(config.base_model_name_or_path or "unknown"), str(host.config._name_or_path)
    if tensors is None:
        raise CheckpointError(
            f"the adapter {name!r} has no {TENSORS}: a {PICKLE} is a pickle, which can run code and is not read. Load it where "
            "you trust it and save it again with save_pretrained()."
        )
    if other_name(base, own):
        raise CheckpointError(
            f"{name!r} is an adapter on {base!r}, and the host is {own!r}. Give its own host; if both are the same weights, "
            f"set base_model_name_or_path in {CONFIG} to {own!r}."
        )
    _check_tensors(name, tensors)
    fit = f"{name!r}, an adapter on {base!r}, does not fit the host {own!r}:"
    config.inference_mode = True
    adapted = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is missing is an error here
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT to transformers
            adapted = PeftModel(host, config)
            result = adapted.load_adapter(str(config_file.parent), "default")
        wrong = [f"{key} is missing" for key in result.missing_keys]
        wrong += [f"there is no place for {key}" for key in result.unexpected_keys]
        if wrong:
            raise CheckpointError(f"{fit} {'; '.join(wrong[:3])}{' …' * (len(wrong) > 3)}.")
    except BaseException as error:
        if adapted is not None and hasattr(adapted, "unload"):
            adapted.unload()
        if isinstance(error, ValueError | RuntimeError | KeyError | TypeError) and not isinstance(
            error, CheckpointError
        ):
            raise CheckpointError(f"{fit} {' '.join(str(error).split())[:300]}") from error
        raise
    return adapted.eval()


def _check_tensors(name: str, file: str) -> None:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{TENSORS} of {name!r} cannot be read: {error}") from error
    bad = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"the adapter {name!r} has NaN or infinite values in {bad[0]}.")


def _refuse_kinds(name: str, config: Any) -> None:
    """Raises for adapters that cannot be switched off to give the plain host, and for those that name code or other repos."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    reason = None
    if config.is_prompt_learning or config.is_adaption_prompt:
        reason = f"{kind} adds positions to the text instead of changing the host's layers"
    elif getattr(config, "megatron_config", None) or kind == "XLORA":
        reason = "its config names a module or other repos to load"
    elif getattr(config, "layer_replication", None) or getattr(config, "bias", None) not in (None, "none"):
        reason = "it changes the host's own biases or layers, which cannot be switched off"
    if reason is not None:
        raise CheckpointError(
            f"the adapter {name!r} cannot be compared with its host: {reason}. Merge it (merge_and_unload), save the model "
            "and give that instead."
        )


@contextmanager
def without_adapters(model: nn.Module) -> Generator[None]:
    """The plain host inside the `with`, to the bit; afterwards every adapter is on or off, and trainable, as it was.

    Args:
        model (`nn.Module`): with PEFT's layers in it, in any wrapper.

    Raises:
        ConfigError: if there is no adapter that can be switched off, or one is merged or off already.
    """
    layers = _switches(model)
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def _switches(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if not layers:
        raise ConfigError(
            f"{type(unwrap(model)).__name__} has no adapter that can be switched off: give the plain host and the adapted one "
            "as two models."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ConfigError(
            "the adapter is merged into the host: unmerge it (unmerge_adapter), or give the plain host too."
        )
    if any(layer.disable_adapters for layer in layers):
        raise ConfigError("the adapter is switched off, at least in part: switch it on (enable_adapter_layers).")
    configs = getattr(model, "peft_config", None) or getattr(unwrap(model), "peft_config", None) or {}
    for name, config in configs.items():
        _refuse_kinds(name, config)
    return layers
