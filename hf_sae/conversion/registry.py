"""Which format a checkpoint is of, and reading it into one of our models."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

from ..access import explained
from ..errors import CheckpointError, ConfigError, ConversionError
from ..models import SAE, SAEConfig, registered
from . import (
    circuit_tracer,
    deepseek,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hook_z,
    llama_scope,
    llama_scope_r1,
    openai,
    pchlenski,
    qwen_scope,
    saelens,
    sparsify,
)
from .draft import Pair
from .files import Files, open_files
from .names import locate, resolve


# in the order in which they are asked; a format is a module with NAME, `matches(files)`, `read(files)` and, where a peer
# can read it back, `write(sae, path)`
FORMATS: tuple[ModuleType, ...] = (
    saelens,
    sparsify,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    qwen_scope,
    goodfire,
    deepseek,
    openai,
    circuit_tracer,
    pchlenski,
    hook_z,
)
HUB_KEYS = ("token", "cache_dir", "local_files_only", "force_download")
OWN_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_SHOWN = 12


class ElsewhereError(ConversionError):
    """Nothing is at the asked place, but autoencoders are elsewhere in the repo; they are listed."""


def identify(files: Files, name: str | None = None) -> ModuleType:
    """The format of the asked place.

    Args:
        files ([`Files`]): the listing.
        name (`str`, *optional*): the format it has to be.

    Raises:
        ConversionError: if it is of no known format, or not of the named one; what the repo holds is listed.
        OSError: if it may be, but is not in the cache, and the Hub cannot be reached.
    """
    for module in _candidates(name):
        if module.matches(files):
            return module
    where = f"{files.name!r}" + (f" at {files.place!r}" if files.place else "")
    found = members(files) or members(files.at(""))
    if files.root is not None and files.commit is not None:  # a cached repo: what is missing may only not be here
        raise OSError(f"{where} is not in the cache and the Hub cannot be reached. In the cache: {_list(found)}.")
    if found:
        nearest = difflib.get_close_matches(files.place, found, n=1)
        close = f"Did you mean {nearest[0]!r}? " if files.place and nearest else ""
        raise ElsewhereError(
            f"{where} is no autoencoder. {close}{files.name!r} holds {_list(found)}: give one as subfolder=."
        )
    raise ConversionError(
        f"{where} is no checkpoint of a known format ({', '.join(sorted(m.NAME for m in FORMATS))}). Its files are {_list(sorted(files.names))}."
    )


def _candidates(name: str | None) -> tuple[ModuleType, ...]:
    """All formats, or the named one."""
    found = tuple(module for module in FORMATS if name in (None, module.NAME))
    if not found:
        raise ConversionError(
            f"there is no format {name!r}. Known: {', '.join(sorted(module.NAME for module in FORMATS))}."
        )
    return found


def _of_whole_folder(files: Files, name: str | None) -> Files:
    """The folder of an asked file, where no format is of that file alone: `params.npz` stands for where it lies."""
    if files.place not in files.names or any(module.matches(files) for module in _candidates(name)):
        return files
    folder = files.at("" if (parent := str(PurePosixPath(files.place).parent)) == "." else parent)
    return folder if any(module.matches(folder) for module in _candidates(name)) else files


def members(files: Files) -> list[str]:
    """What can be asked for in a folder or repo, as `subfolder=`, by names alone."""
    places = {str(parent) for name in files.names for parent in PurePosixPath(name).parents} - {"."}
    places |= {
        name.removesuffix(s) for name in files.names for s in (".safetensors", ".pt", ".pth") if name.endswith(s)
    }
    inside = [place for place in places if not files.place or place.startswith(f"{files.place}/")]
    # formats that have to open a file to know it are not asked: this is a listing of thousands
    named = [module for module in FORMATS if not getattr(module, "OPENS_FILES", False)]
    return sorted(
        place for place in inside if _ours(files.at(place)) or any(m.matches(files.at(place)) for m in named)
    )


def _ours(files: Files) -> bool:
    return any(files.find(name) for name in OWN_WEIGHTS) and files.find("config.json") is not None


def _list(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "") if names else "nothing"


def read(files: Files, name: str | None = None) -> Pair:
    """Config and tensors of the asked place, with its origin in `config.provenance["conversion"]`.

    Raises:
        ConversionError: if the format is unknown or the files are damaged.
    """
    module = identify(files, name)
    try:
        config, state = module.read(files)
    except (CheckpointError, ConfigError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        # a config of another form than the format's can fail in any line that uses it
        raise ConversionError(
            f"{files.name!r} at {files.place!r} does not have the form of {module.NAME!r}: {type(error).__name__}: {error}."
        ) from error
    origin = {
        "format": module.NAME,
        "source": files.source,
        "place": files.place,
        "commit": files.commit,
        "sha256": files.hashes(),
    }
    provenance = config.provenance or {}
    config.provenance = {**provenance, "conversion": {**origin, **provenance.get("conversion", {})}}
    return config, state


def load_foreign(
    name: str,
    subfolder: str = "",
    revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """One of our models from a published checkpoint of another library.

    Args:
        name (`str`): folder, repo id, or a name with a prefix (`hf_sae.conversion.names`).
        subfolder (`str`): folder or file inside, with or without its extension.
        revision (`str`, *optional*): branch, tag or commit.
        kwargs: fields of the config to set by hand (such as `hook_in`), and what `from_pretrained` takes.

    Raises:
        ConversionError: if the format is unknown or the files are damaged.
        OSError: if the repo does not exist, is gated, or cannot be reached.
    """
    hub = {key: kwargs.pop(key) for key in HUB_KEYS if key in kwargs}
    repo, place, form = resolve(name, subfolder)
    _candidates(form)  # a prefix that is no format is said before anything is downloaded
    with explained(repo):
        files = _of_whole_folder(locate(open_files(repo, place, revision, **hub)), form)
    known = {key for config_class, _ in registered().values() for key in _fields(config_class)}
    files.given = {key: value for key, value in kwargs.items() if key in known}
    with explained(repo):
        config, state = read(files, form)
    given = {key: kwargs.pop(key) for key in _fields(config) if key in kwargs}
    given = {key: value for key, value in given.items() if key in files.given}  # a format takes out what it has used
    if given:
        config = config.replace(**given)
    model_class: type[SAE] = registered()[config.model_type][1]
    config._name_or_path = f"{name}/{subfolder}" if subfolder else name
    config._commit_hash = files.commit
    return model_class.from_pretrained(None, config=config, state_dict=state, **kwargs)


def _fields(config: SAEConfig | type[SAEConfig]) -> list[str]:
    from transformers import PreTrainedConfig

    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [field.name for field in dataclasses.fields(config) if field.name not in base]
