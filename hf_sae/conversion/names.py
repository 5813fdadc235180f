"""Peers' names for published autoencoders, by rules: `saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre`.

A name is `prefix:release/id`. The prefix is a format, the rest `owner/repo/place` or a folder, which forces that format; under
`saelens:` it may also be one of SAELens' releases. Rules turn it into a repo and a place, in which `*` is matched against the
repo's listing. `FACTS` holds what the files of some repos do not say, from the registry of SAELens 6.54.12.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConversionError
from .files import Files


Rule = Callable[[re.Match[str]], tuple[str, str]]
CANONICAL_L0 = 100  # of several sparsities Gemma Scope calls the one nearest to this canonical
# two of its 429 lie between two that are equally near: here the registry takes the sparser one, elsewhere the denser
_SPARSER = ("gemma-scope-9b-pt-att", "layer_23/width_131k/")
_KINDS = {"res": "resid_post", "att": "attn_out", "mlp": "mlp_out", "transcoders": "transcoder"}
_MATRYOSHKA = {"2-2b": "w-32k-l0-40", "2-9b": "w-32k-l0-60", "3-1b": "w-32k-l0-40"}
_QWEN = {"base": "Base", "w": "W", "a3b": "A3B"}


def _gemma_scope_2(m: re.Match[str]) -> tuple[str, str]:
    folder = _KINDS[m[2]] + ("_all" if m[3] else "")
    return f"google/gemma-scope-2-{m[1]}", m[4] if m[4].startswith(f"{folder}/") else f"{folder}/{m[4]}"


def _snap(m: re.Match[str]) -> tuple[str, str]:
    folder = "" if m[1] != "2-2b" else "snap/" if m[2] else "standard/"
    return f"chanind/gemma-{m[1]}-batch-topk-matryoshka-saes-{_MATRYOSHKA[m[1]]}", folder + m[3]


def _bench(m: re.Match[str]) -> tuple[str, str]:
    folder = f"resid_post_layer_{m[3]}" + ("_checkpoints" if "_step_" in m[4] else "")
    return f"canrager/saebench_gemma-2-2b_{m[2]}", f"gemma-2-2b_{m[1]}_{m[2]}/{folder}/trainer_{m[4]}"


def _qwen(m: re.Match[str]) -> tuple[str, str]:
    parts = [_QWEN.get(part, part.upper() if part[-1] == "b" else part) for part in m[1].split("-")]
    return f"Qwen/SAE-Res-Qwen{'-'.join(parts)}-W{m[2]}K-L0_{m[3]}", f"{m[4]}.sae.pt"


def _pythia(m: re.Match[str]) -> tuple[str, str]:
    layer = "e" if m[3] == "resid_pre" else m[2]
    return f"ctigges/pythia-70m-deduped__{m[1]}-sm_processed", f"{layer}-{m[1]}-sm"


_RULES: tuple[tuple[str, Rule], ...] = (
    (r"gemma-scope-2-(\w+-[pi]t)-(res|att|mlp|transcoders)(-all)?/(.+)", _gemma_scope_2),
    (r"(gemma-scope-\w+-[pi]t-\w+?)(?:-canonical)?/(.+)", lambda m: (f"google/{m[1]}", m[2])),
    (r"gpt2-small-res-jb/(.+)", lambda m: ("jbloom/GPT2-Small-SAEs-Reformatted", m[1])),
    (
        r"gpt2-small-res-jb-feature-splitting/(.+)",
        lambda m: ("jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", m[1]),
    ),
    (
        r"gpt2-small-([a-z]+-[a-z]+)-v5-(32k|128k)/blocks\.(\d+)\.\w+",
        # in one of these repos the folders end in .pt
        lambda m: (
            f"jbloom/GPT2-Small-OAI-v5-{m[2]}-{m[1]}-SAEs",
            f"v5_{m[2]}_layer_{m[3]}" + (".pt" if (m[1], m[2]) == ("resid-post", "32k") else ""),
        ),
    ),
    (
        r"gpt2-small-(res_\w+-ajt)/blocks\.(\d+)\.hook_resid_pre",
        lambda m: (f"neuronpedia/gpt2-small__{m[1]}", f"{m[2]}-{m[1]}"),
    ),
    (
        r"gpt2-small-mlp-tm/(blocks\.\d+\.hook_mlp_out)",
        lambda m: ("tommmcgrath/gpt2-small-mlp-out-saes", f"sae_group_gpt2_{m[1]}_*"),
    ),
    (
        r"gpt2-small-hook-z-kk/blocks\.(\d+)\.hook_z",
        lambda m: ("ckkissane/attn-saes-gpt2-small-all-layers", f"gpt2-small_L{m[1]}_Hcat_z_*.pt"),
    ),
    (r"pythia-70m-deduped-(res|mlp|att)-sm/blocks\.(\d+)\.hook_(\w+)", _pythia),
    (
        r"llama_scope_lx([ram])_(8|32)x/l(\d+)[ram]_\d+x",
        lambda m: (
            f"fnlp/Llama3_1-8B-Base-LX{m[1].upper()}-{m[2]}x",
            f"Llama3_1-8B-Base-L{m[3]}{m[1].upper()}-{m[2]}x",
        ),
    ),
    (
        r"llama_scope_r1_distill/l(\d+)r_(?:(\d+m)_slimpajama)?_?(?:(\d+m)_openr1_math)?",
        lambda m: (
            "fnlp/Llama-Scope-R1-Distill",
            f"{(m[2] or '0').upper()}-Slimpajama-{(m[3] or '0').upper()}-OpenR1-Math-220k/L{m[1]}R",
        ),
    ),
    (
        r"sae_bench_gemma-2-2b_(topk|vanilla)_(width-\w+_date-\d+)/blocks\.(\d+)\.hook_resid_post__trainer_(\w+)",
        _bench,
    ),
    (
        r"sae_bench_(pythia70m_sweep_\w+?_ctx128_\d+)/blocks\.(\d+)\.hook_resid_post__trainer_(\d+)",
        lambda m: ("canrager/lm_sae", f"{m[1]}/resid_post_layer_{m[2]}/trainer_{m[3]}"),
    ),
    (
        r"saebench_(gemma-2-2b_width-\w+_date-(\d+))/blocks\.(\d+)\.hook_resid_post__trainer_(\d+)",
        lambda m: (
            f"{'adamkarvonen' if m[2] == '0108' else 'canrager'}/saebench_{m[1]}",
            f"*/resid_post_layer_{m[3]}/trainer_{m[4]}",
        ),
    ),
    (r"gemma-(2-2b|2-9b|3-1b)-res(-snap)?-matryoshka-dc/(.+)", _snap),
    (r"(.+)-andyrdt/(resid_post_layer_\d+)_(trainer_\d+)", lambda m: (f"andyrdt/saes-{m[1]}", f"{m[2]}/{m[3]}")),
    (r"mwhanna-([\w.-]+)/(layer_\d+)", lambda m: (f"mwhanna/{m[1]}", m[2])),
    (r"qwen-scope-([\w.-]+?)-w(\d+)k-l(\d+)/(layer\d+)", _qwen),
    (r"goodfire-llama-3.3-70b-instruct/.+", lambda m: ("Goodfire/Llama-3.3-70B-Instruct-SAE-l50", "*.pt")),
    (r"goodfire-llama-3.1-8b-instruct/.+", lambda m: ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "*.pth")),
    (
        r"deepseek-r1-distill-llama-8b-qresearch/.+",
        lambda m: ("qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19", "*.pt"),
    ),
    (r"gemma-2b-res-jb/(.+)", lambda m: ("jbloom/Gemma-2b-Residual-Stream-SAEs", f"gemma_2b_{m[1]}_16384*")),
    (r"gemma-2b-it-res-jb/(.+)", lambda m: ("jbloom/Gemma-2b-IT-Residual-Stream-SAEs", f"gemma_2b_it_{m[1]}_16384")),
    (
        r"mistral-7b-res-wg/blocks\.(\d+)\..+",
        lambda m: ("JoshEngels/Mistral-7B-Residual-Stream-SAEs", f"mistral_7b_layer_{m[1]}"),
    ),
    (r"llama-3-8b-it-res-jh/(.+)", lambda m: ("Juliushanhanhan/llama-3-8b-it-res", m[1])),
)
# releases of which no format here is
_UNREADABLE = re.compile(r"(?:(temporal)-sae|mntss)-[\w.-]+/.+")
_CENTRED: dict[str, Any] = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
_MLP_SCALES = (
    1.049317316132615,
    2.3693984005104283,
    1.6411934982190302,
    1.8958522157897557,
    1.81673478700627,
    1.550234472245924,
    1.3237742807210804,
    1.1042905114723296,
    0.9123762783479742,
    0.6955335635232373,
    0.3619728926727644,
    0.2851548652550073,
)
# by repo, then by place (patterns as in `fnmatch`): `config_overrides` and `norm_scaling_factor` of the registry
FACTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # releases gpt2-small-res-jb, gpt2-small-res-jb-feature-splitting, gpt2-small-mlp-tm: trained on a processed GPT-2
    ("jbloom/GPT2-Small-SAEs-Reformatted", "*", _CENTRED),
    ("jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", "*", _CENTRED),
    ("tommmcgrath/gpt2-small-mlp-out-saes", "*", _CENTRED),
    # release gpt2-small-mlp-tm: √768 / (mean norm of the activations), by layer
    *(
        (
            "tommmcgrath/gpt2-small-mlp-out-saes",
            f"sae_group_gpt2_blocks.{layer}.hook_mlp_out*",
            {"norm_scaling_factor": s},
        )
        for layer, s in enumerate(_MLP_SCALES)
    ),
    # release mistral-7b-res-wg
    ("JoshEngels/Mistral-7B-Residual-Stream-SAEs", "*", {"normalize_activations": "constant_norm_rescale"}),
    # release gemma-2b-res-jb: the one layer of which it has the number
    (
        "jbloom/Gemma-2b-Residual-Stream-SAEs",
        "gemma_2b_blocks.12.hook_resid_post_16384",
        {"norm_scaling_factor": 0.21381938399317255},
    ),
)
_HOSTS = (
    (r"gpt2-small", "openai-community/gpt2"),
    (r"gpt2(-medium|-large|-xl)?", r"openai-community/gpt2\1"),
    (r"(pythia-.+)", r"EleutherAI/\1"),
    (r"(gemma-.+)", r"google/\1"),
    (r"mistral-7b", "mistralai/Mistral-7B-v0.1"),
    (r"(Llama-3.+|Meta-Llama-3.+)", r"meta-llama/\1"),
    (r"(Qwen.+)", r"Qwen/\1"),
)


def resolve(name: str, subfolder: str = "") -> tuple[str, str, str | None]:
    """`(folder or repo, place, format)` of a name with a prefix; a name without one stays as it is.

    Args:
        name (`str`): what was given to `from_pretrained`.
        subfolder (`str`): added to the place.

    Raises:
        ConversionError: for a release that no rule knows.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9_-]+", prefix) or Path(name).exists():
        return name, subfolder, None
    form = prefix.replace("_", "-")
    if rest and Path(rest).exists():
        return rest, subfolder, form
    whole = f"{rest}/{subfolder}".rstrip("/")
    if form == "saelens":
        if found := _UNREADABLE.fullmatch(whole):
            kind = "temporal autoencoder, which reads sequences" if found[1] else "cross-layer transcoder"
            raise ConversionError(f"{name!r} is a {kind}: no model here is one.")
        for pattern, rule in _RULES:
            if found := re.fullmatch(pattern, whole):
                return *rule(found), None
    parts = whole.split("/")
    if len(parts) < 2 or not all(parts) or parts[0].startswith("."):
        raise ConversionError(
            f"{name!r} is neither a release that is known by rule nor a folder here. Write {prefix}:owner/repo/place, or "
            f"{prefix}:./folder."
        )
    return "/".join(parts[:2]), "/".join(parts[2:]), form


def locate(files: Files) -> Files:
    """The files with `*` and `canonical` in the asked place replaced by what the listing holds.

    Raises:
        ConversionError: if nothing or more than one thing fits.
    """
    place = files.place
    if place.endswith("/canonical"):
        place = _nearest(files, place.removesuffix("canonical"))
    elif "*" in place:
        known = {str(parent) for name in files.names for parent in PurePosixPath(name).parents} | files.names
        fitting = sorted(name for name in known if fnmatchcase(name, place) and name.count("/") == place.count("/"))
        shortest = [name for name in fitting if not any(name != o and name.startswith(o) for o in fitting)]
        if len(shortest) != 1:
            what = ", ".join(map(repr, fitting[:8])) or "nothing"
            raise ConversionError(f"{place!r} in {files.name!r} could be {what}: name it by subfolder=.")
        place = shortest[0]
    return files if place == files.place else files.at(place)


def _nearest(files: Files, folder: str) -> str:
    found = {
        int(m[1])
        for name in files.names
        if name.startswith(folder) and (m := re.match(r"average_l0_(\d+)/", name.removeprefix(folder)))
    }
    if not found:
        raise ConversionError(f"{files.name!r} has no {folder}average_l0_…, of which one would be canonical.")
    sign = 1 if (files.source.rpartition("/")[2], folder) == _SPARSER else -1
    return f"{folder}average_l0_{min(found, key=lambda l0: (abs(l0 - CANONICAL_L0), sign * l0))}"


def facts_about(files: Files) -> dict[str, Any]:
    """What is known of a checkpoint that its files do not say."""
    known: dict[str, Any] = {}
    for repo, place, facts in FACTS:
        if files.source.lower() in (repo.lower(), repo.rpartition("/")[2].lower()) and fnmatchcase(files.place, place):
            known |= facts
    return known


def hub_name(model: str | None) -> str | None:
    """The Hub id of a host that is named as in TransformerLens; a name that no rule knows stays."""
    if not model or "/" in model:
        return model
    for pattern, name in _HOSTS:
        if found := re.fullmatch(pattern, model):
            return found.expand(name)
    return model


def lens_name(model: str | None) -> str | None:
    """The name that TransformerLens knows a host by: its Hub id, but for GPT-2, which is older than organisations."""
    return model.removeprefix("openai-community/") if model else model
