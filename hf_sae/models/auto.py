"""`AutoSAE` and `AutoTranscoder`: the class that a checkpoint's `model_type` asks for.

The only file that touches transformers' private auto modules.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .adapters import find_adapter, load_adapted
from .configuration_sae import SAEConfig
from .errors import CheckpointError, ConfigError
from .modeling_sae import SAE
from .pinning import hub_options, no_room, pin, remember, split_name


class AutoSAE(_BaseAutoModelClass):
    """Loads any sparse autoencoder or transcoder: `AutoSAE.from_pretrained("user/repo", subfolder="layer_8")`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def register(cls, config_class: type[SAEConfig], model_class: type[SAE], exist_ok: bool = False) -> None:
        """Makes an architecture known to `AutoSAE`, `AutoConfig` and `AutoModel` by its config's `model_type`.

        Raises:
            ConfigError: if another config class holds that `model_type`, which transformers would replace silently, the
                config is not checked or has no `model_type` of its own, or the model does not name its config.
        """
        _require_own(config_class)
        holder = registered().get(config_class.model_type)
        if holder is not None and holder[0] is not config_class and not exist_ok:
            raise ConfigError(
                f"model_type {config_class.model_type!r} belongs to {holder[0].__name__}: give {config_class.__name__} its own."
            )
        if model_class.config_class is not config_class:
            raise ConfigError(
                f"{model_class.__name__} does not say which config is its own: write `config: {config_class.__name__}` in "
                "the body of the class (the class itself, not its name as a string)."
            )
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        super().register(config_class, model_class, exist_ok=True)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """The model behind a folder or Hub id, in `eval()` mode; arguments as in transformers.

        `user/repo:layer_8` is short for `subfolder="layer_8"`. A branch is resolved to a commit once, which is recorded as
        `sae.config._commit_hash`. An adapter (`adapter_config.json`) comes on the SAE that it names; `is_trainable=True` to
        train it further.
        Checkpoints that other libraries published are read too (`hf_sae.conversion`): `subfolder` may then name a file.

        Raises:
            CheckpointError: for files that are missing, damaged or of another kind of model.
            ConfigError: for an unknown or invalid config key.
        """
        name, subfolder = split_name(str(pretrained_model_name_or_path), str(kwargs.pop("subfolder", None) or ""))
        kwargs |= {"subfolder": subfolder} if subfolder else {}
        # 'saelens:release/id' is no repo id: transformers need not be asked
        if (":" in name and not Path(name).exists()) or Path(name).is_file():
            return _foreign(name, None, kwargs)
        asked, options = kwargs.get("revision"), hub_options(kwargs)
        kwargs["revision"] = pin(name, subfolder, asked, **options) or "main"
        loaded = cls._load(name, *model_args, **kwargs)
        remember(name, asked, kwargs["revision"], options.get("cache_dir"))
        return loaded

    @classmethod
    def _load(cls, name: str, *model_args: Any, **kwargs: Any) -> Any:
        if (adapter := find_adapter(name, kwargs)) is not None:
            return load_adapted(cls.from_pretrained, name, adapter, *model_args, **kwargs)
        try:
            return super().from_pretrained(name, *model_args, **kwargs)
        except (CheckpointError, ConfigError):
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if (full := no_room(name, error)) is not None:
                raise CheckpointError(full) from error
            # transformers takes a config.json for a mapping of what it knows, and fails in many ways where it is not
            return _foreign(name, error, kwargs)


class AutoTranscoder(AutoSAE):
    """[`AutoSAE`] that refuses a checkpoint which writes to the place it reads."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """As [`AutoSAE.from_pretrained`]; a plain SAE is a `CheckpointError`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config
        if not config.is_transcoder:
            raise CheckpointError(
                f"{str(pretrained_model_name_or_path)!r} reads and writes {config.hook_in!r}: it is an SAE, not a "
                "transcoder. Load it with AutoSAE."
            )
        return loaded


def _require_own(config_class: type[SAEConfig]) -> None:
    name = config_class.__name__
    if "validate" not in vars(config_class):  # which @strict puts there
        raise ConfigError(f"{name} is not checked: put @strict_config above its class, or wrong values go unnoticed.")
    if config_class.model_type == SAEConfig.model_type:
        raise ConfigError(
            f"{name} has no model_type of its own: write one in the body of the class, such as 'my_sae'."
        )
    if config_class.model_type in CONFIG_MAPPING_NAMES:
        raise ConfigError(f"model_type {config_class.model_type!r} is one of transformers' own: give {name} another.")


def _foreign(name: str, error: Exception | None, kwargs: dict[str, Any]) -> Any:
    """The checkpoint of another library behind a name that is none of ours."""
    why = "it has the name of another library's."
    if str(error or "").strip():
        why = str(error).strip().splitlines()[0]
    elif Path(name).is_file():
        why = f"it is a file, and ours are folders, such as {str(Path(name).parent)!r}."
    ours = f"{name!r} is not a checkpoint of hf_sae: {why} Known model types: {', '.join(sorted(registered()))}."
    try:
        from hf_sae.conversion import ElsewhereError, load_foreign
    except ImportError:  # this file also travels to the Hub as code, without the rest of the package
        raise CheckpointError(ours) from error
    try:
        return load_foreign(name, **kwargs)
    except ElsewhereError:
        raise
    except (CheckpointError, ConfigError) as foreign:
        raise type(foreign)(f"{ours} Nor one of another library: {foreign}") from foreign
    except OSError as unreachable:
        raise CheckpointError(str(unreachable)) from unreachable


def registered() -> dict[str, tuple[type[SAEConfig], type[SAE]]]:
    """`{model_type: (config class, model class)}` of every architecture."""
    content = AutoSAE._model_mapping._extra_content
    return {config.model_type: (config, model) for config, model in content.items()}
