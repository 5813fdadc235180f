"""`hf-sae info` and `hf-sae hooks`: what is in a saved autoencoder, and where a host can be read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Repo, Revision, Subfolder, aligned, load_host


if TYPE_CHECKING:
    from ..models import SAE


# of the recorded provenance, what a person looks for; --json has all of it
SHOWN = {
    "feature_stats": (),
    "training": (),
    "corpus": ("name", "split", "python"),
    "data": ("dataset", "revision", "column", "positions", "context_length"),
    "host": ("model_type", "hidden_size", "num_layers", "vocab_size"),
    "conversion": ("format", "source", "place", "commit", "transforms"),
    "provenance": ("hook_points",),
}


def info(
    repo_or_path: Repo,
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """What a saved autoencoder is: architecture, places, sizes, statistics, what it was trained on.

    Example: `hf-sae info ./sae`
    """
    from ..models import AutoSAE

    console = Console(as_json)
    sae = AutoSAE.from_pretrained(repo_or_path, subfolder=subfolder, revision=revision)
    payload = describe(sae)
    rows = [
        (key, _short(value)) for key, value in payload.items() if not isinstance(value, dict) and value is not None
    ]
    for title, keys in SHOWN.items():
        part = payload[title]
        rows += [(f"{title}.{key}", _short(part[key])) for key in keys or part if part.get(key) is not None]
    console.show(aligned(rows, "<<"))
    where = f"{repo_or_path} --subfolder {subfolder}" if subfolder else repo_or_path
    console.finish(payload, f"hf-sae eval {where}")


def describe(sae: SAE) -> dict[str, Any]:
    """Everything that `info` says, as JSON values."""
    from ..models import SAEConfig

    config, provenance = sae.config, dict(sae.config.provenance or {})
    fields = {field.name for field in dataclasses.fields(type(config))}
    shared = {"d_in", "d_out", "d_sae", "hook_in", "hook_out", "pre_bias", "skip", "input_norm", "input_scale"}
    shared |= {"norm_eps", "center_target"}
    base = SAEConfig.__dataclass_fields__.keys()
    parts = {name: provenance.pop(name, None) or {} for name in ("training", "corpus", "data", "host", "conversion")}
    return {
        "architecture": type(sae).__name__,
        "kind": "transcoder" if config.is_transcoder else "autoencoder",
        **{name: getattr(config, name) for name in sorted(shared)},
        **{name: getattr(config, name) for name in sorted(fields - base)},
        "base_model": config.base_model,
        "base_revision": config.base_revision,
        "parameters": sum(parameter.numel() for parameter in sae.parameters()),
        "commit": getattr(config, "_commit_hash", None),
        "dtype": str(sae.dtype).removeprefix("torch."),
        "feature_stats": _stats(sae),
        **{name: part if isinstance(part, dict) else {name: part} for name, part in parts.items()},
        "provenance": provenance,
    }


def _stats(sae: SAE) -> dict[str, Any]:
    stats = sae.feature_stats
    if stats is None:
        return {}
    density, maximum = stats["density"], stats["maximum"]
    out = {
        "dead_fraction": (density == 0).double().mean().item(),
        "median_density": density.double().median().item(),
        "largest_density": density.max().item(),
        "largest_maximum": maximum[maximum.abs().argmax()].item(),
    }
    return out | {name: stats[name].item() for name in ("tokens", "input_norm") if name in stats}


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return "; ".join(map(_short, value)) or "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def hooks(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of any model, or default_host.")],
    random_init: Annotated[
        bool, typer.Option("--random-init", help="Read the config only and build the model with random weights.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the places of a host that can be read and written, with their widths and module paths.

    Example: `hf-sae hooks openai-community/gpt2 --random-init`
    """
    from ..hosts import places

    console = Console(as_json)
    host = _random_host(model) if random_init else load_host(model)[0]
    found = [dataclasses.asdict(place) for place in places(host)]
    rows = [("place", "width", "module"), *((p["name"], str(p["width"]), f"{p['path']}:{p['side']}") for p in found)]
    console.show(aligned(rows, "<><"))
    example = next((p["name"] for p in found if p["name"].startswith("resid_post")), "PLACE")
    console.finish({"model": model, "places": found}, f"hf-sae train --host {model} --hook {example} --dataset …")


def _random_host(name: str) -> Any:
    from transformers import AutoConfig, AutoModel

    from ..assets import DEFAULT_HOST, default_host

    if name == DEFAULT_HOST:
        return default_host()[0]
    return AutoModel.from_config(AutoConfig.from_pretrained(name)).eval()
