"""EleutherAI sparsify: `<hook point>/cfg.json` and `<hook point>/sae.safetensors`, a TopK of every kind.

`encoder.weight` and `W_dec` are both `[d_sae, d]`; `b_dec` is subtracted from the input unless `transcode`; `W_skip` `[d, d]` adds
`x @ W_skip.T`. The folder is named after the hooked module, whose output is reconstructed (by a transcoder from its input).
Transcoders of before sparsify's issue 49 subtracted `b_dec`; their files do not tell.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors.torch import save_file

from ..errors import ConversionError
from ..models import SAE
from ..models.checkpoint import atomic_folder
from .draft import Draft, Pair
from .files import Files
from .places import from_path
from .tensors import tensors_of


NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_HOOK = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|layer|blocks)\.\d+(?:\.[a-z_0-9]+)*|embed_tokens|wte", re.IGNORECASE)


def matches(files: Files) -> bool:
    """Whether the asked folder holds sparsify's two files."""
    return files.find(CONFIG) is not None and files.find(WEIGHTS) is not None


def read(files: Files) -> Pair:
    """Config and tensors.

    Raises:
        ConversionError: for another activation than TopK, an unknown hook point, and damaged files.
    """
    cfg = files.json(str(files.find(CONFIG)))
    transcode = bool(cfg.get("transcode"))
    for key, allowed in (("activation", ("topk", None)), ("signed", (False, None))):
        if cfg.get(key) not in allowed:
            raise ConversionError(
                f"{key}={cfg[key]!r}: only TopK on rectified pre-activations has an architecture here."
            )
    tensors = tensors_of(files, str(files.find(WEIGHTS)))
    skip = tensors.take("W_skip", ndim=2) if cfg.get("skip_connection") else None
    draft = Draft(
        tensors.take("encoder.weight", ndim=2),
        tensors.take("W_dec", ndim=2),
        tensors.take("encoder.bias"),
        tensors.take("b_dec"),
        skip,
        pre_bias=not transcode,
    )
    tensors.done()
    said = cfg.get("num_latents") or int(cfg.get("d_in", draft.d_in)) * int(cfg.get("expansion_factor", 0))
    if said not in (0, draft.d_sae) or cfg.get("d_in", draft.d_in) != draft.d_in:
        raise ConversionError(
            f"cfg.json says d_in={cfg.get('d_in')} and {said} latents, the weights have {draft.d_in} and {draft.d_sae}."
        )
    draft.select(cfg.get("k", 32))
    _place(draft, files, transcode)
    if transcode:
        draft.transforms.append(
            "nothing subtracted from the input, as in sparsify since its issue 49; older ones differ"
        )
    draft.published["l0"] = float(draft.k or 0)
    return draft.finish()


def _place(draft: Draft, files: Files, transcode: bool) -> None:
    above = files.above("config.json")
    run = files.json(above) if above else {}
    host = run.get("model")
    draft.fields["base_model"] = host if isinstance(host, str) else None
    data = {"dataset": run.get("dataset"), "context_length": run.get("ctx_len")}
    if known := {key: value for key, value in data.items() if value}:
        draft.fields["provenance"] = {"data": known}
    if "hook_in" in files.given:
        return
    parts = PurePosixPath(files.path_in_words).parts
    named = [part for part in parts if _HOOK.fullmatch(part)]
    if not named:
        raise ConversionError(
            f"no folder of {files.path_in_words!r} is named after a module, such as 'layers.10': give hook_in= (and hook_out= "
            "for a transcoder)."
        )
    if transcode:
        draft.fields["hook_in"] = from_path(named[-1], host, side="input").point
        draft.fields["hook_out"] = from_path(named[-1], host).point
    else:
        draft.fields["hook_in"] = from_path(named[-1], host).point


def write(sae: SAE, path: str | Path) -> list[str]:
    """Writes a TopK model as sparsify reads it; returns the transforms that were needed, in words.

    The folder's name is the hook point in sparsify, so it should be called `layers.10` or the like.

    Raises:
        ConversionError: for another architecture, a norm, or two widths.
    """
    draft = Draft.of(sae)
    if draft.k is None:
        raise ConversionError(f"sparsify has TopK only, this is a {type(sae).__name__}: use 'saelens' or 'ours'.")
    if draft.d_in != draft.d_out:
        raise ConversionError(f"sparsify needs one width, this maps {draft.d_in} to {draft.d_out} dimensions.")
    draft.unscale()
    if draft.fields["input_norm"] != "none" or draft.fields["center_target"]:
        raise ConversionError(
            f"sparsify cannot express input_norm={draft.fields['input_norm']!r} or a centred target."
        )
    draft.subtract_bias(not draft.is_transcoder)
    cfg: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(draft.d_sae // draft.d_in, 1),
        "normalize_decoder": False,
        "num_latents": draft.d_sae,
        "k": draft.k,
        "multi_topk": False,
        "skip_connection": draft.skip is not None,
        "transcode": draft.is_transcoder,
        "d_in": draft.d_in,
    }
    weights = {
        "encoder.weight": draft.encoder,
        "encoder.bias": draft.b_enc,
        "W_dec": draft.decoder,
        "b_dec": draft.b_dec,
    } | ({"W_skip": draft.skip} if draft.skip is not None else {})
    with atomic_folder(path) as folder:
        (folder / CONFIG).write_text(json.dumps(cfg) + "\n", encoding="utf-8")
        save_file({k: v.to(draft.encoder.dtype).contiguous() for k, v in weights.items()}, folder / WEIGHTS)
    return draft.transforms + _unsaid(draft, Path(path).absolute().name)


def _unsaid(draft: Draft, folder: str) -> list[str]:
    """A sentence where the folder is not named after the place, which nothing else in the format says."""
    host, side = draft.fields["base_model"], "input" if draft.is_transcoder else "output"
    said = (from_path(folder, host, side=side).point, from_path(folder, host).point) if _HOOK.fullmatch(folder) else ()
    meant = (draft.fields["hook_in"], draft.fields["hook_out"] or draft.fields["hook_in"])
    if said == meant:
        return []
    return [
        f"the place {' to '.join(map(repr, dict.fromkeys(meant)))} is not in the files: sparsify has it in the folder's name alone"
    ]
