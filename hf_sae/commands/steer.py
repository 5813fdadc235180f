"""`hf-sae steer`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Repo, Revision, Subfolder, fail, load_pair


if TYPE_CHECKING:
    from ..steering import Edit

_EDIT = re.compile(r"(\d+)\s*=\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(x?)", re.IGNORECASE)


def steer(
    repo_or_path: Repo,
    feature: Annotated[
        list[str],
        typer.Option(
            metavar="ID=STRENGTH",
            help="123=2x adds twice the feature's maximum, 123=5.0 adds 5 latent units, 123=0 ablates it. Repeatable.",
        ),
    ],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    host: Annotated[str | None, typer.Option(help="Hub id or folder. Default: the host it was trained on.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 40,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Of sampling, the same for both texts.")] = 0,
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Continue a text with features turned up, down or off, beside the unsteered text.

    Example: `hf-sae steer ./sae --feature 123=2x --prompt "import "`
    """
    console = Console(as_json)
    edits = parse_edits(feature)
    sae, model, tokenizer = load_pair(repo_or_path, host, subfolder, revision)
    texts = continuations(sae, model, tokenizer, prompt, edits, max_new_tokens, seed if sample else None)
    for name, text in texts.items():
        console.show(f"{name.capitalize()}\n{show_continuation(prompt, text)}\n")
    payload = {"prompt": prompt, "features": list(feature), **texts}
    console.finish(payload, "another strength shows how far it goes: 0.5x, 1x, 4x; 0 ablates")


def parse_edits(options: list[str]) -> list[Edit]:
    """`["3=2x", "5=1.5", "7=0"]` as edits."""
    from ..steering import OfMax, ablate, add

    strengths: dict[int, Any] = {}
    for option in options:
        match = _EDIT.fullmatch(option.strip())
        if match is None:
            fail(f"--feature {option!r} is not ID=STRENGTH: 123=2x (times its maximum), 123=5.0 or 123=0 (ablate).")
        if int(match[1]) in strengths:
            fail(f"--feature {match[1]} is given twice: give one strength for it.")
        strengths[int(match[1])] = OfMax(float(match[2])) if match[3] else float(match[2])
    off = [latent for latent, strength in strengths.items() if strength in (0.0, OfMax(0.0))]
    added = {latent: strength for latent, strength in strengths.items() if latent not in off}
    return [*([add(added)] if added else []), *([ablate(off)] if off else [])]


def continuations(
    sae: Any, host: Any, tokenizer: Any, prompt: str, edits: list[Edit], max_new_tokens: int, seed: int | None
) -> dict[str, str]:
    """The unsteered and the steered continuation of a prompt; greedy where there is no `seed`."""
    import torch

    from ..steering import steer as steering

    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(host.device)
    if not inputs["input_ids"].shape[1]:
        fail("--prompt is empty: give at least one word.")
    options = {
        "max_new_tokens": max_new_tokens,
        "do_sample": seed is not None,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    }

    def generate() -> str:
        torch.manual_seed(seed or 0)
        ids = host.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        return tokenizer.decode(ids, skip_special_tokens=True)

    baseline = generate()
    with steering(host, sae, edits, tokenizer=tokenizer):
        return {"baseline": baseline, "steered": generate()}


def show_continuation(prompt: str, text: str) -> str:
    """Prompt and continuation, indented, with nothing in them that acts on a terminal."""
    from ..terminal import visible

    lines = (prompt + text).replace("\r\n", "\n").expandtabs(4).split("\n")
    return "\n".join(f"  {visible(line)}" for line in lines)
