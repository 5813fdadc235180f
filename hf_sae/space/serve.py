"""From settings to a running page: on this machine, or as a Space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError


if TYPE_CHECKING:
    from .service import Service

VARIABLES = {
    "repo": "HF_SAE_REPO",
    "subfolder": "HF_SAE_SUBFOLDER",
    "features": "HF_SAE_FEATURES",
    "host": "HF_SAE_HOST",
}
ONLY_THIS = "HF_SAE_ONLY_THIS"
EXTRA = "the page needs Gradio: pip install 'hf-sae[space]'"


@dataclass(frozen=True)
class SpaceSettings:
    """What a Space shows.

    Args:
        repo (`str`): Hub id or folder of the autoencoders.
        subfolder (`str`): only what lies there.
        features (`str`, *optional*): Hub id or folder of the feature dataset; looked for beside the autoencoders where not given.
        host (`str`, *optional*): instead of the host that the configs name.
        visitors (`bool`): whether repos that visitors name are served, too.
    """

    repo: str
    subfolder: str = ""
    features: str | None = None
    host: str | None = None
    visitors: bool = True

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> SpaceSettings:
        """From the variables of a Space.

        Raises:
            ConfigError: if they name no autoencoder.
        """
        given = {field: variables.get(name) or None for field, name in VARIABLES.items()}
        if not given["repo"]:
            raise ConfigError(f"the variable {VARIABLES['repo']} is not set: give it the autoencoder, user/repo.")
        visitors = (variables.get(ONLY_THIS) or "0").lower() not in ("1", "true", "yes")
        return cls(str(given["repo"]), given["subfolder"] or "", given["features"], given["host"], visitors)

    def variables(self) -> dict[str, str]:
        """The same as variables; what is as by default is left out."""
        found = {name: getattr(self, field) for field, name in VARIABLES.items() if getattr(self, field)}
        return found | ({} if self.visitors else {ONLY_THIS: "1"})


def open_service(settings: SpaceSettings) -> Service:
    """The service of what the settings name; loading goes on in the background, on ZeroGPU it is waited for.

    Raises:
        CheckpointError: if there is no autoencoder.
        OSError: if the repo cannot be reached.
    """
    from .catalog import open_catalog
    from .service import Service
    from .zero import is_zero, on_gpu

    catalog = open_catalog(settings.repo, settings.subfolder, settings.features, settings.host, settings.visitors)
    service = Service(catalog)
    if is_zero():  # weights have to be on the device before the first call forks this process
        catalog.find().machine.get(WAIT)
        on_gpu(service)
    return service


WAIT = 900.0  # seconds for the download of a host


def serve(settings: SpaceSettings, **options: Any) -> None:
    """Runs the page until somebody stops it.

    Args:
        settings ([`SpaceSettings`]): what it shows.
        options: of Gradio's `launch()`, such as `server_port`, `inbrowser`.

    Raises:
        ConfigError: if Gradio is not installed.
        CheckpointError, OSError: as in [`open_service`].
    """
    try:
        from .app import build_app, launch_options
    except ImportError as error:
        raise ConfigError(f"{EXTRA} ({error}).") from error
    service = open_service(settings)
    try:
        build_app(service).launch(**launch_options() | options)
    finally:
        service.catalog.close()
