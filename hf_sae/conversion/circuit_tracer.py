"""circuit-tracer's per-layer transcoders: ReLU or JumpReLU, with or without a skip.

`layer_{L}.safetensors` with `W_enc` and `W_dec`, both `[d_sae, d]` (the encoder as `nn.Linear` has it, unlike Gemma Scope's), `b_enc`, `b_dec`, and where there are
any `activation_function.threshold` (one, or one for each latent) and `W_skip` `[d, d]`, used as `u @ W_skip.T`. `config.yaml` beside them
names host and hooks for all layers. It may list `hf://org/repo/path?revision=` files instead, one a layer in order, also of
Gemma Scope. Repos that were published with the training config alone (`wandb-config.yaml`) read what the MLP reads.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlparse

from ..errors import ConversionError
from . import gemma_scope, gemma_scope_2
from .draft import Draft, Pair
from .files import Files, open_files
from .places import Reading, from_lens
from .tensors import tensors_of


NAME = "circuit-tracer"
_LAYER = re.compile(r"(?:layer_)?(\d+)(?:\.safetensors)?")
_TRAINING = ("wandb-config.yaml", "wanb-config.yaml")  # both spellings are published
_QWEN = re.compile(r"qwen3-(\d+(?:\.\d+)?)b-transcoders", re.IGNORECASE)
# layouts that a list may point to, with the readers that know them
_ELSEWHERE = {"params.npz": gemma_scope, "params.safetensors": gemma_scope_2}


def matches(files: Files) -> bool:
    """Whether a layer of a set is asked for (it may lie in another repo), or a cross-layer transcoder."""
    folder, layer = _asked(files)
    configs = [name for name in ("config.yaml", *_TRAINING) if folder.find(name)]
    if not configs:
        return False
    if layer is None:
        return folder.find("W_enc_0.safetensors") is not None
    elsewhere = not any(name == files.place or name.startswith(f"{files.place}/") for name in files.names)
    return folder.find(f"layer_{layer}.safetensors") is not None or (elsewhere and configs[0] == "config.yaml")


def _asked(files: Files) -> tuple[Files, int | None]:
    """The folder of the set, and the layer: `layer_3`, `layer_3.safetensors` or `3`."""
    place = PurePosixPath(files.place)
    found = _LAYER.fullmatch(place.name)
    if found is None:
        return files, None
    return files.at("" if str(place.parent) == "." else str(place.parent)), int(found[1])


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for a cross-layer transcoder, an activation whose numbers are not in the files, or contradictions.
    """
    folder, layer = _asked(files)
    config = _config(files, folder)
    if layer is None:
        raise ConversionError(
            f"{files.path_in_words!r} is a set of transcoders: give one of its layers, subfolder='layer_0'."
        )
    host = str(config["model_name"])
    places = tuple(from_lens(config[f"feature_{end}_hook"], host, layer) for end in ("input", "output"))
    if "transcoders" in config:
        return _listed(files, config, layer, host, (places[0], places[1]))
    return _layer(
        files, str(folder.find(f"layer_{layer}.safetensors")), host, (places[0], places[1]), _sizes(files, folder)
    )


def _config(files: Files, folder: Files) -> dict[str, Any]:
    """The set's config, with what is implied where only the training config was published."""
    name = folder.find("config.yaml")
    if name is None:
        found = _QWEN.findall(files.path_in_words)
        if not found:
            raise ConversionError(
                f"{files.path_in_words!r} has no config.yaml, and its name does not say the host, as "
                "'mwhanna/qwen3-14b-transcoders' does."
            )
        hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
        return {"model_name": f"Qwen/Qwen3-{found[-1]}B", **hooks}
    config = files.yaml(name)
    kind, activation = config.get("model_kind", "transcoder_set"), config.get("activation", "relu")
    if kind == "cross_layer_transcoder":
        raise ConversionError(
            f"{files.path_in_words!r} is a cross-layer transcoder (CLT): its latents write to all later layers, which a "
            "transcoder of one place cannot express. Load a set of per-layer transcoders instead."
        )
    if kind != "transcoder_set" or activation not in ("relu", "jumprelu", "jump_relu"):
        raise ConversionError(
            f"{name!r} says model_kind={kind!r} and activation={activation!r}. Known: 'transcoder_set' with ReLU or JumpReLU, "
            "because other activations need a number that the files do not hold."
        )
    missing = [key for key in ("model_name", "feature_input_hook", "feature_output_hook") if not config.get(key)]
    if missing:
        raise ConversionError(f"{name!r} lacks {', '.join(missing)}.")
    return config


def _sizes(files: Files, folder: Files) -> dict[str, int]:
    """`d_model` and `d_feature` of the training config, where it was published."""
    name = next((found for training in _TRAINING if (found := folder.find(training))), None)
    if name is None:
        return {}
    values = {key: entry.get("value") for key, entry in files.yaml(name).items() if isinstance(entry, dict)}
    if values.get("act_fn", "relu") != "relu":
        raise ConversionError(f"{name!r} says act_fn={values['act_fn']!r}: only 'relu' was published.")
    return {key: values[key] for key in ("d_model", "d_feature") if isinstance(values.get(key), int)}


def _layer(files: Files, name: str, host: str, places: tuple[Reading, Reading], sizes: dict[str, int]) -> Pair:
    """One file in circuit-tracer's own layout."""
    tensors = tensors_of(files, name)
    draft = Draft(
        tensors.take("W_enc", ndim=2),
        tensors.take("W_dec", ndim=2),
        tensors.take("b_enc"),
        tensors.take("b_dec"),
        tensors.take_if("W_skip", ndim=2),
        pre_bias=False,
        base_model=host,
        hook_out=places[1].point,
        **places[0].fields(),
    )
    threshold = tensors.take_if("activation_function.threshold")
    tensors.done()
    if draft.d_in != draft.d_out:
        raise ConversionError(
            f"{name!r} reads {draft.d_in} dimensions and writes {draft.d_out}: both are the width of the host's stream."
        )
    for key, found in (("d_model", draft.d_in), ("d_feature", draft.d_sae)):
        if sizes.get(key, found) != found:
            raise ConversionError(f"the training config says {key}={sizes[key]} and {name!r} has {found}.")
    if threshold is not None:
        if (threshold < 0).any():  # its JumpReLU has no rectifier
            raise ConversionError(
                f"{name!r} has negative thresholds, above which circuit-tracer keeps negative latents."
            )
        draft.jump(threshold)
    return draft.finish()


def _listed(files: Files, config: dict[str, Any], layer: int, host: str, places: tuple[Reading, Reading]) -> Pair:
    """The layer's file of another repo; one of another format is read as that, and has to be at the same places."""
    listed = config["transcoders"]
    if not isinstance(listed, list) or layer >= len(listed):
        raise ConversionError(
            f"config.yaml lists {len(listed)} transcoders, which are layers 0 and up: there is no {layer}."
        )
    uri = urlparse(str(listed[layer]))
    repo, _, path = uri.path.lstrip("/").partition("/")
    if uri.scheme != "hf" or not path:
        raise ConversionError(f"config.yaml lists {listed[layer]!r}, which is not 'hf://org/repo/path'.")
    revision = parse_qs(uri.query).get("revision", [None])[0]
    there = open_files(f"{uri.netloc}/{repo}", path, revision, **files.hub_kwargs)
    if path not in there.names:
        raise ConversionError(f"config.yaml lists {listed[layer]!r}, and there is no such file in {there.source!r}.")
    module = _ELSEWHERE.get(PurePosixPath(path).name)
    if module is None:
        pair = _layer(there, path, host, places, {})
    else:
        there = there.at(str(PurePosixPath(path).parent))
        pair = module.read(there)
        _same_places(pair, places, path)
    origin = {"source": there.source, "place": path, "commit": there.commit, "sha256": there.hashes()}
    conversion = (pair[0].provenance or {})["conversion"]
    pair[0].provenance = {**(pair[0].provenance or {}), "conversion": {**conversion, "listed": origin}}
    return pair


def _same_places(pair: Pair, places: tuple[Reading, Reading], path: str) -> None:
    config = pair[0]
    found = config.hook_in, config.input_norm, config.hook_out
    said = places[0].point, places[0].input_norm, places[1].point
    if found != said:
        raise ConversionError(
            f"config.yaml says that it reads {said[0]!r} ({said[1]}) and writes {said[2]!r}, and {path!r} is a transcoder from "
            f"{found[0]!r} ({found[1]}) to {found[2]!r}."
        )
