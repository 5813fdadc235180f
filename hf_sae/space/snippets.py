"""What a view shows, as Python and as a command that do the same by themselves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..steering.recipes import EditRow
    from .steering import Ask


@dataclass(frozen=True)
class Origin:
    """Where an autoencoder and its feature dataset are loaded from.

    Args:
        sae (`str`): repo or folder.
        subfolder (`str`): inside it.
        sae_id (`str`): what the dataset calls it.
        features (`str`, *optional*): repo or folder of the dataset.
        host (`str`, *optional*): the model that it reads; `None` is the one that ships in the package.
    """

    sae: str
    subfolder: str = ""
    sae_id: str = ""
    features: str | None = None
    host: str | None = None


@dataclass(frozen=True)
class Snippet:
    """The same thing twice; a command is `""` where there is none."""

    python: str
    command: str = ""


def feature_snippet(origin: Origin, feature: int, strength: str = "2x") -> Snippet:
    """One feature: what is known of it; as a command, what it does when it is turned up by `strength`."""
    if origin.features is None:
        return Snippet(_text([*_sae(origin), "", f"print(sae.W_dec[{feature}])  # what it writes to the host"]))
    lines = [
        "from hf_sae import load_features",
        "",
        f"dataset = load_features({_quoted(origin.features)})",
        f"record = dataset.feature({_quoted(origin.sae_id)}, {feature})",
        'print(record.facts["density"], record.facts["max_act"], record.facts["pos_tokens"])',
        "for example in record.examples[:5]:",
        '    print(example["kind"], max(example["acts"]), repr(example["text"]))',
    ]
    folder = ["--subfolder", origin.subfolder] if origin.subfolder else []
    turned = ["--feature", f"{feature}={strength}", "--prompt", "import "]
    return Snippet(_text(lines), _command("hf-sae steer", origin.sae, *folder, *turned, *_host(origin)))


def search_snippet(origin: Origin, mode: str, query: str, against: str = "", limit: int = 10) -> Snippet:
    """A search by words, by promoted token, by prompt or by contrast."""
    if origin.features is None:
        return Snippet(_text([*_pair(origin), "", f"print(top_features(sae, host, tokenizer, {_quoted(query)}))"]))
    words = mode in ("words", "promoted")
    head = ["from hf_sae import load_features", "from hf_sae.features.index import FeatureIndex"]
    opened = f"index = FeatureIndex.open(load_features({_quoted(origin.features)}))"
    call = {
        "words": f"index.search({_quoted(query)}, limit={limit})",
        "promoted": f"index.by_promoted({_quoted(query)}, limit={limit})",
        "prompt": f"index.by_prompt({_quoted(query)}, host, tokenizer, sae, {_quoted(origin.sae_id)}, limit={limit})",
        "contrast": f"index.by_contrast({_list(query)}, {_list(against)}, host, tokenizer, sae, {_quoted(origin.sae_id)}, "
        f"limit={limit})",
    }[mode]
    lines = [*head, "", opened] if words else [*head, *_pair(origin), "", opened]
    lines += [f"for hit in {call}:", "    print(hit.sae_id, hit.feature, hit.label, hit.reasons[0])"]
    if mode == "contrast":
        return Snippet(_text(lines))
    # "=" and "--" keep a query that begins with a hyphen from being an option
    asked = {"words": ["--", query], "promoted": [f"--promotes={query}"], "prompt": [f"--by-prompt={query}"]}[mode]
    more = ["--sae-id", origin.sae_id, "--sae", _named(origin), *_host(origin)] if mode == "prompt" else []
    return Snippet(_text(lines), _command("hf-sae search", origin.features, "--limit", str(limit), *more, *asked))


def inspect_snippet(origin: Origin, text: str, top: int) -> Snippet:
    """The strongest latents on each token of a text."""
    return Snippet(_text([*_pair(origin), "", f"print(top_features(sae, host, tokenizer, {_quoted(text)}, k={top}))"]))


def steer_snippet(origin: Origin, ask: Ask) -> Snippet:
    """The texts of a steering request."""
    from ..steering.recipes import exactly, rows_from_json

    rows = [row for row in rows_from_json(ask.edits) if row.on]
    edits = [row.python() for row in rows]
    names = sorted({name for edit in edits for name in _NAMES if f"{name}(" in edit} | _ENGINE)
    head = _pair(origin, "")
    told = str(ask.instruction).strip()
    variants = ['Variant("Baseline")']
    variants += ['Variant("Steered", plan)'] if rows else []
    variants += ['Variant("Ablated", plan.ablated())'] if rows and ask.ablation else []
    variants += [f'Variant("Prompt only", instruction={_quoted(told)})'] if told else []
    variants += [f"*sweep(plan, {list(ask.sweep)})"] if rows and ask.sweep else []
    names += ["sweep"] if rows and ask.sweep else []
    prompt = [{"role": "user", "content": str(ask.prompt)}] if ask.chat else str(ask.prompt)
    sampling = f"Sampling({exactly(ask.temperature)}, top_p={exactly(ask.top_p)}, seed={int(ask.seed)})"
    lines = [
        *head[:1],
        f"from hf_sae.steering import {', '.join(names)}",
        *head[1:],
        f'plan = SteeringPlan({{"": [{", ".join(edits)}]}}, {_quoted(ask.positions)})',
        f"variants = ({', '.join(variants)},)",
        f"request = SteeringRequest({prompt!r}, variants, {int(ask.max_new_tokens)}, {sampling})",
        'with SteeringEngine(host, tokenizer, {"": sae}) as engine:',
        "    for stream in engine.generate(request):",
        "        print(stream.name, stream.coherence, repr(stream.text))",
    ]
    return Snippet(_text(lines), _steer_command(origin, ask, rows) if rows else "")


_ENGINE = {"Sampling", "SteeringEngine", "SteeringPlan", "SteeringRequest", "Variant"}
_NAMES = ("OfMax", "OfNorm", "ablate", "add", "clamp", "scale", "when")


def _steer_command(origin: Origin, ask: Ask, rows: Sequence[EditRow]) -> str:
    from ..steering.recipes import exactly

    arguments = ["--subfolder", origin.subfolder] if origin.subfolder else []
    for row in rows:
        arguments += ["--feature", _edit_option(row)]
    arguments += [f"--prompt={ask.prompt}", "--max-new-tokens", str(int(ask.max_new_tokens))]
    if ask.sweep:
        arguments += ["--sweep", ",".join(map(exactly, ask.sweep))]
    arguments += ["--ablation"] if ask.ablation else []
    told = str(ask.instruction).strip()
    arguments += [f"--instruction={told}"] if told else []
    arguments += ["--chat"] if ask.chat else []
    arguments += ["--positions", ask.positions] if ask.positions != "all" else []
    if float(ask.temperature):
        arguments += ["--sample", "--temperature", exactly(ask.temperature), "--top-p", exactly(ask.top_p)]
        arguments += ["--seed", str(int(ask.seed))]
    return _command("hf-sae steer", origin.sae, *arguments, *_host(origin))


def _edit_option(row: EditRow) -> str:
    """An edit as `hf-sae steer --feature` reads it."""
    from ..steering.recipes import exactly

    trigger = "" if row.when is None else f"@{row.when}"
    if row.operation == "ablate":
        return f"ablate:{row.feature}{trigger}"
    if row.operation == "add" and row.strength == 0:
        return f"scale:{row.feature}=1{trigger}"  # to the command, adding nothing means ablating
    unit = "" if row.operation == "scale" else {"max": "x", "norm": "n", "latent": ""}[row.unit]
    return f"{row.operation}:{row.feature}={exactly(row.strength)}{unit}{trigger}"


def _sae(origin: Origin) -> list[str]:
    folder = f", subfolder={_quoted(origin.subfolder)}" if origin.subfolder else ""
    return ["from hf_sae import AutoSAE", "", f"sae = AutoSAE.from_pretrained({_quoted(origin.sae)}{folder})"]


def _pair(origin: Origin, also: str = ", top_features") -> list[str]:
    """Host, tokenizer and autoencoder; `also` is what else is imported of hf_sae."""
    folder = f", subfolder={_quoted(origin.subfolder)}" if origin.subfolder else ""
    sae = f"sae = AutoSAE.from_pretrained({_quoted(origin.sae)}{folder})"
    if origin.host is None:
        return [
            f"from hf_sae import AutoSAE, default_host{also}",
            "",
            "host, tokenizer = default_host()",
            sae,
        ]
    return [
        f"from hf_sae import AutoSAE{also}",
        "from hf_sae.hosts.loading import load_host",
        "",
        f"host, tokenizer = load_host({_quoted(origin.host)})",
        f"{sae}.to(host.device)",
    ]


def _named(origin: Origin) -> str:
    """Repo and folder in one word, as commands take them."""
    return f"{origin.sae}:{origin.subfolder}" if origin.subfolder and "/" in origin.sae else origin.sae


def _host(origin: Origin) -> list[str]:
    return ["--host", origin.host] if origin.host else []


def _list(text: str) -> str:
    return f"[{', '.join(_quoted(line) for line in lines_of(text))}]"


def lines_of(text: str) -> list[str]:
    """One text a line."""
    return [line for line in text.splitlines() if line.strip()]


def _quoted(value: Any) -> str:
    """A text as Python reads it."""
    return repr(str(value))


def _command(name: str, *arguments: str) -> str:
    return " ".join([name, *(shlex.quote(argument) for argument in arguments)])


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
