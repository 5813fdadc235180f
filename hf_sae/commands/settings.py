"""`--config file.yaml`: every option of a command as a key; what is typed wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from .console import did_you_mean, fail, yaml_number


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`: makes the file's values the defaults of the other options.

    Raises:
        ConfigError: for a file that cannot be read, is no mapping, or has a key that is no option.
    """
    if path is None or context.resilient_parsing:
        return path
    known = {
        flag.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        for flag in parameter.opts
        if flag.startswith("--") and parameter.name not in ("config", "help")
    }
    defaults: dict[str, Any] = {}
    for key, value in _mapping(path).items():
        name = str(key).replace("-", "_")
        if name not in known:
            fail(f"{str(path)!r} has the key {key!r}, which is no option. {did_you_mean(name, known)}")
        value = _as_typed(value)
        if getattr(known[name], "multiple", False) and isinstance(value, str):
            value = [value]  # letter by letter otherwise
        defaults[str(known[name].name)] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _mapping(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fail(f"cannot read --config {str(path)!r}: {error}")
    if not isinstance(content, dict):
        fail(f"--config {str(path)!r} holds no 'key: value' lines, such as 'total_tokens: 10_000_000'.")
    return content


def _as_typed(value: Any) -> Any:
    if isinstance(value, dict):
        return [f"{key}={item}" for key, item in value.items()]
    return yaml_number(value)
