"""PEFT adapters (LoRA and its kin) on an SAE: found, saved, loaded strictly, merged.

* An adapted SAE is the SAE itself with PEFT's layers in place of its own, however it was adapted (`get_peft_model(sae,
  ...)` changes the SAE that it wraps), so that everything which takes an SAE takes an adapted one.
* An adapter's folder has PEFT's files and names: `adapter_config.json` and `adapter_model.safetensors`. The base is found
  by `base_model_name_or_path` and `revision`. PEFT has no key for a subfolder: `user/repo/folder` names one.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from .checkpoint import atomic_folder, read_feature_stats
from .errors import CheckpointError


logger = logging.getLogger(__name__)
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names in an adapter's file, as PEFT writes them
_QUIET = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def has_adapter(sae: nn.Module) -> bool:
    """Whether PEFT's layers are in place of some of the SAE's own."""
    return bool(getattr(sae, "peft_config", None))


def merged(layer: Any) -> Any:
    """The layer with its active adapters merged into `weight` and `bias`, as a copy; itself if it has none."""
    if not hasattr(layer, "get_base_layer"):
        return layer
    layer = copy.deepcopy(layer)
    if layer.disable_adapters and layer.merged:
        layer.unmerge()
    elif not layer.disable_adapters and not layer.merged:
        layer.merge()
    return layer.get_base_layer()


def merge_adapter(sae: Any) -> None:
    """Merges the active adapters of an SAE into its weights, in place; see [`SAE.merge_and_unload`]."""
    replaced: list[str] = []
    for name, layer in list(sae.named_modules()):
        if any(name.startswith(f"{outer}.") for outer in replaced):
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):  # a copy that was trained whole (`modules_to_save`)
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        elif hasattr(layer, "get_base_layer"):
            plain = merged(layer)
        else:
            continue
        sae.set_submodule(name, plain)
        replaced.append(name)
    if has_adapter(sae):
        del sae.peft_config
    sae._hf_peft_config_loaded = False
    sae.name_or_path = sae.config.name_or_path = ""  # another adapter must not name the unmerged SAE as its base
    sae.requires_grad_(True)


def remember_place(sae: Any, name: str, hub_kwargs: dict[str, Any]) -> None:
    """Keeps on a loaded SAE what an adapter on it must record: PEFT reads `name_or_path`."""
    subfolder = hub_kwargs.get("subfolder")
    sae.name_or_path = f"{name.rstrip('/')}/{subfolder}" if subfolder else name


def _place_of(recorded: str) -> tuple[str, str | None]:
    """Repo and subfolder of a name that [`remember_place`] made; a folder or another library's name is left whole."""
    parts = recorded.split("/")
    if Path(recorded).exists() or ":" in recorded or recorded.startswith((".", "/", "~")) or len(parts) < 3:
        return recorded, None
    return "/".join(parts[:2]), "/".join(parts[2:])


def save_adapter(sae: Any, save_directory: str | Path) -> None:
    """Writes the one adapter of an SAE, and nothing of its base.

    Raises:
        CheckpointError: if there are several adapters, or the folder cannot be written.
    """
    name = _only_adapter(sae)
    config = copy.deepcopy(sae.peft_config[name])
    config.base_model_name_or_path = config.base_model_name_or_path or getattr(sae, "name_or_path", None) or None
    config.revision = config.revision or getattr(sae.config, "_commit_hash", None)
    config.inference_mode = True
    if config.base_model_name_or_path is None:
        logger.warning(
            "The adapter's base has no name: AutoSAE.from_pretrained(%r) will not find it. Save the base, load it with "
            "from_pretrained and adapt that one.",
            str(save_directory),
        )
    with atomic_folder(save_directory) as folder:
        config.save_pretrained(str(folder))
        tensors = {PREFIX + key: value.detach().cpu().contiguous() for key, value in _tensors(sae, name).items()}
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def _only_adapter(sae: Any) -> str:
    names = list(sae.peft_config)
    if len(names) != 1:
        raise CheckpointError(
            f"this SAE has the adapters {', '.join(names)}: one can be saved or trained. Delete or merge the others."
        )
    return names[0]


def _tensors(sae: Any, name: str) -> dict[str, Tensor]:
    try:
        from peft import get_peft_model_state_dict
    except ImportError as error:
        raise CheckpointError("adapters need PEFT: pip install peft.") from error
    return get_peft_model_state_dict(sae, adapter_name=name, save_embedding_layers=False)


def find_adapter(name: str, kwargs: dict[str, Any]) -> Path | None:
    """The `adapter_config.json` behind a folder or Hub id that holds an adapter and no whole model, or `None`.

    Args:
        name (`str`): folder or `user/repo`.
        kwargs (`dict`): of `from_pretrained`; what concerns the Hub is used.
    """
    place = _hub_kwargs(kwargs)
    try:
        found = cached_file(name, CONFIG, **place, **_QUIET)
        # with a whole model beside it the adapter is transformers' to attach
        whole = found is not None and cached_file(name, "config.json", **place, **_QUIET) is not None
    except (OSError, ValueError):  # no such repo, or no repo's name: whoever loads the model says so
        return None
    return None if found is None or whole else Path(found)


def _hub_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    keys = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")
    return {key: kwargs[key] for key in keys if kwargs.get(key) is not None}


def load_adapted(load: Any, name: str, file: Path, *args: Any, **kwargs: Any) -> Any:
    """The base that an adapter names, with the adapter on it, in `eval()` mode.

    Args:
        load (`Callable`): the `from_pretrained` that the base is loaded with.
        name (`str`): the adapter's folder or Hub id.
        file (`Path`): its `adapter_config.json`.
        args: for `load`.
        kwargs: for `load`; and `is_trainable` (`bool`, *optional*), to train the adapter further.

    Raises:
        CheckpointError: if PEFT or the base is missing, or tensors are missing, unexpected, misshapen or not finite.
    """
    config, trainable = read_adapter_config(name, file), kwargs.pop("is_trainable", False)
    if not config.base_model_name_or_path:
        raise CheckpointError(
            f"{name!r} is an adapter that names no base (base_model_name_or_path in {CONFIG}). Load the base yourself "
            f"and give both: peft.PeftModel.from_pretrained(base, {name!r})."
        )
    base_name, subfolder = _place_of(str(config.base_model_name_or_path))
    own = {key: value for key, value in kwargs.items() if key not in ("subfolder", "revision")}
    own |= {"subfolder": subfolder} if subfolder else {}
    own |= {"revision": config.revision} if config.revision else {}
    want_info = own.pop("output_loading_info", False)
    try:
        sae = load(base_name, *args, **own)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name!r} is an adapter on {config.base_model_name_or_path!r}, which cannot be loaded: {error} Put the "
            f"base there, or change base_model_name_or_path in {CONFIG}."
        ) from error
    config.inference_mode = not trainable
    try:
        add_adapter(sae, config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the adapter {name!r} does not fit {type(sae).__name__}: {error}") from error
    if not trainable:
        sae.requires_grad_(False)  # PEFT has made the adapter trainable
    _upcast(sae)
    load_adapter_tensors(sae, name, kwargs)
    # the base's statistics are not the adapted one's
    sae.feature_stats = read_feature_stats(name, sae.config.d_sae, _hub_kwargs(kwargs))
    sae.eval()
    info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    return (sae, info) if want_info else sae


def read_adapter_config(name: str, file: Path) -> Any:
    """The `PeftConfig` of an adapter, without running what it names.

    Raises:
        CheckpointError: if PEFT is missing, or the file is damaged or of an unknown kind.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise CheckpointError(f"{name!r} is an adapter: pip install peft.") from error
    try:
        return PeftConfig.from_pretrained(str(file.parent))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{CONFIG} of {name!r} cannot be read: {error}") from error


def add_adapter(sae: Any, config: Any, name: str | None = None) -> None:
    """Puts a new adapter on an SAE and makes it the active one; see [`SAE.add_adapter`]."""
    try:
        from peft import PeftConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise CheckpointError("adapters need PEFT: pip install peft.") from error
    name = name or "default"
    if not isinstance(config, PeftConfig):
        raise TypeError(f"adapter_config is a {type(config).__name__}: give a config of PEFT, such as LoraConfig.")
    if has_adapter(sae) and name in sae.peft_config:
        raise ValueError(f"there is an adapter {name!r} already: give another adapter_name.")
    config.base_model_name_or_path = getattr(sae, "name_or_path", None)
    inject_adapter_in_model(config, sae, name)
    for layer in sae.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(name)
    sae._hf_peft_config_loaded = True


def _upcast(sae: Any) -> None:
    """Adapters of a half-precision base are float32, as `get_peft_model` makes them."""
    for key, parameter in sae.named_parameters():
        if "lora_" in key and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def load_adapter_tensors(sae: Any, name: str | Path, kwargs: dict[str, Any] | None = None) -> None:
    """Fills the adapter of an SAE from the folder or Hub id of one of the same shape.

    Args:
        sae ([`SAE`]): with an adapter.
        name (`str` or `Path`): folder or `user/repo`.
        kwargs (`dict`, *optional*): of `from_pretrained`; what concerns the Hub is used.

    Raises:
        CheckpointError: for a missing or damaged file, and for tensors that are missing, unexpected, misshapen or not
            finite; the SAE is then as before.
    """
    adapter = _only_adapter(sae)
    try:
        from peft import set_peft_model_state_dict

        found = load_file(str(cached_file(str(name), TENSORS, **_hub_kwargs(kwargs or {}))))
    except ImportError as error:
        raise CheckpointError("adapters need PEFT: pip install peft.") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the adapter {str(name)!r}: {error} Needed: {CONFIG} and {TENSORS} (pickles are not read)."
        ) from error
    found = {key.removeprefix(PREFIX): value for key, value in found.items()}
    wanted = _tensors(sae, adapter)
    wrong = [f"{key} is missing" for key in sorted(wanted.keys() - found.keys())]
    wrong += [f"{key} is not the SAE's" for key in sorted(found.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & found.keys()):
        if found[key].shape != wanted[key].shape:
            wrong.append(f"{key} is {list(found[key].shape)}, wanted {list(wanted[key].shape)}")
        elif not torch.isfinite(found[key]).all():
            wrong.append(f"{key} has NaN or infinite values")
    if wrong:
        raise CheckpointError(f"the adapter {str(name)!r} does not fit: {'; '.join(wrong)}. Is this another base's?")
    set_peft_model_state_dict(sae, found, adapter_name=adapter)
