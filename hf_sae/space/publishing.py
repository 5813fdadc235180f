"""A Space of one's own: its files, its variables, and how they get to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..assets import DEFAULT_HOST
from ..errors import ConfigError
from .limits import RequestError, place
from .serve import SpaceSettings


if TYPE_CHECKING:
    from huggingface_hub import HfApi

TEMPLATES = Path(__file__).parent / "templates"
SDK = "6.31.0"  # the version of Gradio that the page was last tried with
PYTHON = "3.12"
SPACE = "space"


def space_files(settings: SpaceSettings, title: str | None = None, license_: str | None = None) -> dict[str, str]:
    """The files of a Space by name.

    Args:
        settings ([`SpaceSettings`]): what it shows; the README names it, the variables decide.
        title (`str`, *optional*): by default after the repo.
        license_ (`str`, *optional*): of the Space.
    """
    import jinja2
    import yaml

    from ..hub.markdown import escape

    name = title or f"Features of {settings.repo.rstrip('/').rsplit('/', 1)[-1]}"
    header: dict[str, Any] = {
        "title": name,
        "emoji": "🔎",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": SDK,
        "python_version": PYTHON,
        "app_file": "app.py",
        "pinned": False,
        "tags": ["hf-sae", "mechanistic-interpretability", "mcp-server"],
        "models": [settings.repo],
    }
    header |= {"datasets": [settings.features]} if settings.features else {}
    header |= {"license": license_} if license_ else {}
    text = (TEMPLATES / "README.md.jinja").read_text(encoding="utf-8")
    readme = jinja2.Template(text, keep_trailing_newline=True, undefined=jinja2.StrictUndefined).render(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        title=escape(name),
        link=f"[{escape(settings.repo)}](https://huggingface.co/{settings.repo})",
    )
    plain = {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in ("app.py", "requirements.txt")}
    return {"README.md": readme, **plain}


def create_space(
    repo_id: str,
    settings: SpaceSettings,
    *,
    title: str | None = None,
    license_: str | None = None,
    private: bool | None = None,
    hardware: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Creates a Space that shows autoencoders of the Hub, or brings one up to date, and returns its address.

    No token is stored in it. Variables come first, since the files make it start; all files are one commit, and other files
    of the Space stay.

    Args:
        repo_id (`str`): `user/name` of the Space.
        settings ([`SpaceSettings`]): what it shows.
        title (`str`, *optional*), license_ (`str`, *optional*): as in [`space_files`].
        private (`bool`, *optional*): visibility of a Space that is created.
        hardware (`str`, *optional*): of a Space that is created, such as `zero-a10g`; by default the free CPU.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.

    Raises:
        ConfigError: if the settings name a folder of this machine.
        CheckpointError: for a name that is no repo id, or `private` where everybody can see the Space.
        OSError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from ..errors import CheckpointError
    from ..hub.refusals import readable

    check_settings(settings)
    files = space_files(settings, title, license_)
    with readable(repo_id, SPACE):
        api = HfApi(token=token)
        options: dict[str, Any] = {"space_hardware": hardware} if hardware else {}
        api.create_repo(repo_id, repo_type=SPACE, space_sdk="gradio", private=private, exist_ok=True, **options)
        if private and not api.repo_info(repo_id, repo_type=SPACE).private:
            raise CheckpointError(f"the Space {repo_id!r} exists and is public: nothing was uploaded.")
        _set_variables(api, repo_id, settings.variables())
        added = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
        api.create_commit(repo_id, added, commit_message="Publish features with hf-sae", repo_type=SPACE)
    return f"{api.endpoint}/spaces/{repo_id}"


def check_settings(settings: SpaceSettings) -> None:
    """Whether a Space could load what the settings name.

    Raises:
        ConfigError: for a folder of this machine.
    """
    for name, push in (
        (settings.repo, "hf-sae push"),
        (settings.features, "hf-sae push"),
        (settings.host, "hf upload"),
    ):
        if name and name != DEFAULT_HOST and not _is_repo(name):
            raise ConfigError(
                f"{name!r} is no repo of the Hub, and a Space can load nothing else. Push it first: {push} {name} user/name"
            )


def _is_repo(name: str) -> bool:
    try:
        return not Path(name).exists() and not place(name).subfolder
    except RequestError:
        return False


def _set_variables(api: HfApi, repo_id: str, wanted: dict[str, str]) -> None:
    """Sets what is wanted and takes away what an earlier call had set."""
    from .serve import ONLY_THIS, VARIABLES

    known = {name: found.value for name, found in api.get_space_variables(repo_id).items()}
    for name, value in wanted.items():
        if known.get(name) != value:
            api.add_space_variable(repo_id, name, value)
    for name in known.keys() & {*VARIABLES.values(), ONLY_THIS} - wanted.keys():
        api.delete_space_variable(repo_id, name)
