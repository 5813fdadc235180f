"""Where what is served comes from: what the owner of the Space gave, or a repo that a visitor named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import DataError
from .limits import Place, RequestError
from .snippets import Origin


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..features.reading import FeatureDataset
    from ..models import SAE
    from ..steering.recipes import Preset

    Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]

BESIDE = ("-features", "-dashboards")  # what a feature dataset is called beside the autoencoders that it is about
INSIDE = ("features", "dashboards")
GIB = 2**30


@dataclass(frozen=True)
class Features:
    """A feature dataset, and what it calls the autoencoder."""

    dataset: FeatureDataset
    sae_id: str


class Source(Protocol):
    """Loads the parts of one autoencoder."""

    def features(self) -> Features | None:
        """Its feature dataset, or `None` where there is none."""

    def sae(self) -> SAE:
        """The autoencoder."""

    def host(self, sae: SAE) -> Pair:
        """The model that it reads, and the tokenizer."""

    def origin(self, features: Features | None, host: str | None) -> Origin:
        """How somebody else loads the same."""

    def card(self) -> str:
        """Its README, or `""`."""

    def presets(self) -> list[Preset]:
        """Edits that its author recommends."""


@dataclass(frozen=True)
class Given:
    """What the owner gave: any folder or repo, read with the owner's rights.

    Args:
        repo (`str`), subfolder (`str`): of the autoencoder.
        data (`str`, *optional*): folder or repo of the feature dataset; looked for beside the autoencoder where not given.
        host_name (`str`, *optional*): instead of the host that the config names.
    """

    repo: str
    subfolder: str = ""
    data: str | None = None
    host_name: str | None = None

    def features(self) -> Features | None:
        """The given dataset, or the one that lies beside or in the folder, or is called after the repo."""
        from ..hub import load_features

        if self.data is not None:
            dataset = load_features(self.data)
            return Features(dataset, sae_id_of(dataset, self.repo, self.subfolder))
        for candidate in self._candidates():
            found = _try(candidate, self.repo, self.subfolder)
            if found is not None:
                return found
        return None

    def _candidates(self) -> list[str]:
        folder = Path(self.repo)
        if not folder.is_dir():
            return [self.repo + ending for ending in BESIDE]
        folder = folder.resolve()
        named = [folder / self.subfolder / name for name in INSIDE] + [folder / name for name in INSIDE]
        named += [folder.with_name(folder.name + ending) for ending in BESIDE] + [folder.parent / n for n in INSIDE]
        return [str(path) for path in dict.fromkeys(named) if path.is_dir()]

    def sae(self) -> SAE:
        """Loads the autoencoder."""
        from ..models import AutoSAE

        return AutoSAE.from_pretrained(self.repo, subfolder=self.subfolder)

    def host(self, sae: SAE) -> Pair:
        """Loads the host, or takes the one that ships in the package."""
        from ..commands.console import load_host

        name = self.host_name or sae.config.base_model
        if name is None:
            raise RequestError("its config does not record the host it was trained on: give --host org/model.")
        pinned = {"revision": sae.config.base_revision} if not self.host_name and sae.config.base_revision else {}
        return _with_tokenizer(name, *load_host(name, **pinned))

    def origin(self, features: Features | None, host: str | None) -> Origin:
        """Folders of this machine are given as they are: they are the owner's."""
        data = None if features is None else features.dataset.name
        return Origin(self.repo, self.subfolder, "" if features is None else features.sae_id, data, host)

    def card(self) -> str:
        """The README of the folder or repo."""
        from ..conversion.files import open_files

        return _readme(open_files(self.repo, self.subfolder))

    def presets(self) -> list[Preset]:
        """Those of its `presets.json`."""
        from ..conversion.files import open_files
        from ..steering.recipes import load_presets

        return load_presets(open_files(self.repo, self.subfolder))


@dataclass(frozen=True)
class Visited:
    """A repo that a visitor named: read with nobody's rights, safetensors only, its size looked at before it is downloaded.

    Args:
        place ([`Place`]): of the autoencoder.
        most_bytes (`int`): of its weights; of its host and its feature dataset, four times as many.
    """

    place: Place
    most_bytes: int = 2 * GIB

    def features(self) -> Features | None:
        """The dataset that is called after the repo, once the repo itself was looked at."""
        from .sizes import check_place, check_size

        check_place(self.place, self.most_bytes)
        for ending in BESIDE:
            name = self.place.repo + ending
            found = _try(name, self.place.repo, self.place.subfolder, token=False)
            if found is not None:
                check_size(name, "dataset", (".parquet",), 4 * self.most_bytes)
                return found
        return None

    def sae(self) -> SAE:
        """Loads the autoencoder."""
        from ..models import AutoSAE
        from .sizes import check_place

        commit = check_place(self.place, self.most_bytes)
        options: dict[str, Any] = {"token": False, "use_safetensors": True, "trust_remote_code": False}
        return AutoSAE.from_pretrained(self.place.repo, subfolder=self.place.subfolder, revision=commit, **options)

    def host(self, sae: SAE) -> Pair:
        """Loads the host that its config names, where that is a repo of the Hub with safetensors."""
        from ..assets import DEFAULT_HOST, default_host
        from ..hosts.loading import load_host
        from .limits import place
        from .sizes import check_size

        if sae.config.base_model == DEFAULT_HOST:
            return default_host()
        host = place(sae.config.base_model)
        if host.subfolder or Path(host.repo).exists():
            raise RequestError(f"its config names the host {host}, which is no repo of the Hub.")
        check_size(host.repo, "model", (".safetensors",), 4 * self.most_bytes, sae.config.base_revision)
        pinned = {"revision": sae.config.base_revision} if sae.config.base_revision else {}
        return _with_tokenizer(host.repo, *load_host(host.repo, token=False, use_safetensors=True, **pinned))

    def origin(self, features: Features | None, host: str | None) -> Origin:
        """As on the Hub."""
        data = None if features is None else features.dataset.name
        sae_id = "" if features is None else features.sae_id
        return Origin(self.place.repo, self.place.subfolder, sae_id, data, host)

    def card(self) -> str:
        """The README of the repo."""
        from ..conversion.files import open_files

        return _readme(open_files(self.place.repo, self.place.subfolder, token=False))

    def presets(self) -> list[Preset]:
        """Those of its `presets.json`."""
        from ..conversion.files import open_files
        from ..steering.recipes import load_presets

        return load_presets(open_files(self.place.repo, self.place.subfolder, token=False))


def sae_id_of(dataset: FeatureDataset, repo: str, subfolder: str) -> str:
    """What a feature dataset calls an autoencoder: by where it lies, by the name of its folder, or the only one.

    Raises:
        DataError: if none fits.
    """
    known = dataset.saes
    for name, source in known.items():
        if source.repo_id == repo and (source.subfolder or "") == subfolder:
            return name
    parts = [part for part in (*Path(repo).parts, *Path(subfolder).parts) if part != "/"]
    for length in range(len(parts), 0, -1):
        if "/".join(parts[-length:]) in known:
            return "/".join(parts[-length:])
    if len(known) == 1:
        return next(iter(known))
    at = f"{repo}/{subfolder}" if subfolder else repo
    raise DataError(
        f"{dataset.name!r} has no features of {at!r}: it is about {', '.join(map(repr, list(known)[:20]))}."
    )


def _try(name: str, repo: str, subfolder: str, **options: Any) -> Features | None:
    """A feature dataset that may be there and may be about the autoencoder."""
    from ..hub import load_features

    try:
        dataset = load_features(name, **options)
        return Features(dataset, sae_id_of(dataset, repo, subfolder))
    except (OSError, DataError):
        return None


def _with_tokenizer(name: str, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Pair:
    if tokenizer is None:
        raise RequestError(f"the host {name} has no tokenizer: only text can be read here.")
    return host, tokenizer


def _readme(files: Any) -> str:
    name = files.above("README.md")
    return "" if name is None else files.text(name)
