"""Loading, saving, adapters and upload of every architecture: transformers' methods, stricter and atomic."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from .adapters import (
    add_adapter,
    find_adapter,
    has_adapter,
    load_adapted,
    merge_adapter,
    remember_place,
    save_adapter,
)
from .checkpoint import FEATURE_STATS, atomic_folder, load_strictly, read_feature_stats, without_progress_bars
from .code_export import with_code, without_code
from .errors import CheckpointError
from .pinning import hub_options, is_commit, pin, remember, split_name


CARD_OPTIONS = ("report", "examples", "history", "metadata")
PUSH_OPTIONS = ("private", "token", "revision", "create_pr", "commit_message")


Base: Any = object
if TYPE_CHECKING:
    from transformers import PreTrainedModel as Base


class Saving(Base):
    """Comes before `PreTrainedModel` among the bases of [`SAE`]."""

    feature_stats: dict[str, Tensor] | None
    fitted: bool
    decoder: Any

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """transformers' `from_pretrained`, strictly: see [`CheckpointError`] and [`ConfigError`] for what is refused."""
        want_info = kwargs.pop("output_loading_info", False)
        # config and tensors may be given instead of a name, as in transformers: a converted checkpoint is
        name = str(pretrained_model_name_or_path or kwargs["config"]._name_or_path)
        if pretrained_model_name_or_path is not None:
            name, subfolder = split_name(name, str(kwargs.get("subfolder") or ""))
            pretrained_model_name_or_path = name
            asked = kwargs.get("revision")
            pinned = pin(name, subfolder, asked, **hub_options(kwargs)) or "main"
            kwargs |= {"subfolder": subfolder, "revision": pinned}
            if (found := find_adapter(name, kwargs)) is not None:
                kwargs["output_loading_info"] = want_info
                return load_adapted(cls.from_pretrained, name, found, *model_args, **kwargs)
        hub_keys = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if key in kwargs}
        load = super().from_pretrained
        model, info = load_strictly(load, name, pretrained_model_name_or_path, *model_args, **kwargs)
        model.fitted = bool({"training", "conversion"} & set(model.config.provenance or {}))
        if pretrained_model_name_or_path is not None:
            remember_place(model, name, hub_kwargs)
            model.feature_stats = read_feature_stats(name, model.config.d_sae, hub_kwargs)
            if is_commit(pinned) and not Path(name).exists():
                model.config._commit_hash = pinned
                remember(name, asked, pinned, kwargs.get("cache_dir"))
        return (model, info) if want_info else model

    def defects(self) -> list[str]:
        """What an architecture refuses in weights of the right names and shapes, such as entries that cannot exist."""
        return []

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """transformers' `save_pretrained`, atomically, with the feature statistics beside the weights.

        `include_code=True` puts the modelling code beside them, so that `AutoModel.from_pretrained(…,
        trust_remote_code=True)` loads the SAE where hf_sae is not installed. `push_to_hub=True` uploads, too.
        """
        if Path(save_directory).is_file():
            raise CheckpointError(f"{str(save_directory)!r} is a file: give a folder.")
        if not self.decoder.dictionary.whole:
            raise CheckpointError(
                f"this object holds a part of its {self.config.d_sae} latents, as training with parallelism='latents' leaves it. "
                "The trainer wrote the whole to its output_dir: load it from there."
            )
        push, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", Path(save_directory).name)
        upload = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
        code = with_code(self) if kwargs.pop("include_code", False) else without_code(self)
        with atomic_folder(Path(save_directory)) as folder, without_progress_bars(), code:
            if has_adapter(self):
                save_adapter(self, folder)
            else:
                super().save_pretrained(folder, *args, **kwargs)
            if self.feature_stats is not None:
                save_file({k: v.contiguous().cpu() for k, v in self.feature_stats.items()}, folder / FEATURE_STATS)
        if self.feature_stats is None:  # those of other weights, which stood there before
            Path(save_directory, FEATURE_STATS).unlink(missing_ok=True)
        if push:
            self.push_to_hub(repo_id, **upload, **kwargs)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Puts a new PEFT adapter on the encoder and makes it the active one, as transformers does.

        By PEFT itself: transformers 5.24 asks for a PEFT that there is not yet.

        Raises:
            CheckpointError: where PEFT is missing.
            TypeError: for a config that is not PEFT's.
            ValueError: for a name that is taken, or a config that does not fit.
        """
        add_adapter(self, adapter_config, adapter_name)

    def merge_and_unload(self) -> Any:
        """Merges the active adapter into the weights, in place, and returns the SAE, plain again and trainable."""
        merge_adapter(self)
        return self

    def push_to_hub(self, repo_id: str, *, subfolder: str | None = None, **kwargs: Any) -> str:
        """Uploads the model with a card of its own in one commit and returns the commit's address.

        Weights that stand there go, and with them what was measured on them: give `report` and what else the card shall show.

        Args:
            repo_id (`str`): `user/name`; created where it does not exist.
            subfolder (`str`, *optional*): folder in the repo, for a repo with several SAEs; its index is brought up to date.
            kwargs: for the card, `report` (`EvalReport`, also written as `eval_results.json`), `examples` (features to
                show, `hf_sae.hub.example_features`), `history` (`SAETrainer.log_history`) and `metadata` (keys of its
                header, such as `license`); `private`, `token`, `revision`, `create_pr`, `commit_message` as in
                `hf_sae.hub.push_folder`; the rest, such as `max_shard_size`, `variant` and `include_code`, is for
                `save_pretrained`.

        Raises:
            CheckpointError: for a name that is no repo id, or a card that the Hub does not take.
            OSError: if the Hub refuses or cannot be reached.
        """
        sae: Any = self
        try:
            from hf_sae.hub import push_folder, save_card
        except ImportError as error:  # this file also travels to the Hub as code, without the rest of the package
            raise CheckpointError("push_to_hub writes a model card: pip install hf-sae.") from error
        upload = {key: kwargs.pop(key) for key in PUSH_OPTIONS if key in kwargs}
        card = {key: kwargs.pop(key) for key in CARD_OPTIONS if key in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            save_card(folder, sae, repo_id=repo_id, subfolder=subfolder, **card)
            return push_folder(folder, repo_id, subfolder=subfolder, **upload)
