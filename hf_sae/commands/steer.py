"""`hf-sae steer`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Repo, Revision, Subfolder, did_you_mean, fail, load_pair, paragraph


if TYPE_CHECKING:
    from ..steering import SteeringEngine, SteeringPlan, SteeringRequest, Stream, Variant
    from ..steering.recipes import EditRow

_EDIT = re.compile(
    r"(?:(?P<operation>add|clamp|raise|scale|ablate)\s*:)?\s*(?P<feature>\d{1,9})"
    r"(?:\s*=\s*(?P<strength>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?P<unit>[xn]?))?(?:\s*@\s*(?P<when>\d{1,9}))?",
    re.IGNORECASE,
)
_UNITS = {"x": "max", "n": "norm", "": "latent"}
_FORMS = "123=2x (adds twice its maximum), 123=0.5n (half the norm), 123=5.0, clamp:123=2x, scale:123=3 or ablate:123"


def steer(
    repo_or_path: Repo,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EDIT",
            help="123=2x adds twice the feature's maximum, 123=0.5n half the activation's norm, 123=5.0 latent units, 123=0 ablates; "
            "clamp:123=2x, raise:, scale:123=3, ablate:123; @45 at its end: only where feature 45 fires. Repeatable.",
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Edits that the author ships in presets.json, by name.")] = None,
    host: Annotated[str | None, typer.Option(help="Hub id or folder. Default: the host it was trained on.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 40,
    sweep: Annotated[
        str, typer.Option(metavar="FACTORS", help="Also these multiples of the strengths, such as 0.5,2,4.")
    ] = "",
    ablation: Annotated[bool, typer.Option("--ablation", help="Also with the features set to zero.")] = False,
    instruction: Annotated[str, typer.Option(help="Also unsteered, with this written before the prompt.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message to a chat model.")] = False,
    positions: Annotated[str, typer.Option(help="all, prompt, generated or assistant.")] = "all",
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="Of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, the same for all texts.")] = 0,
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Continue a text with features turned up, down or off, beside the unsteered text.

    Example: `hf-sae steer ./sae --feature 123=2x --prompt "import "`
    """
    from ..steering import Sampling, SteeringEngine, SteeringRequest
    from ..steering.recipes import plan_of

    console = Console(as_json)
    rows = parse_rows(feature or [])
    factors = _factors(sweep)
    if preset is not None:
        rows += _preset(repo_or_path, subfolder, revision, preset)
    if not rows:
        fail(f"there is nothing to steer: give --feature {_FORMS}, or --preset NAME.")
    sae, model, tokenizer = load_pair(repo_or_path, host, subfolder, revision)
    variants = _variants(plan_of(rows, positions), factors, ablation, instruction)
    sampling = Sampling(temperature if sample else 0.0, top_p=top_p, seed=seed)
    asked: Any = [{"role": "user", "content": prompt}] if chat else prompt
    with SteeringEngine(model, tokenizer, {"": sae}) as engine:
        streams = _watch(engine, SteeringRequest(asked, variants, max_new_tokens, sampling))
    console.show("\n\n".join(_shown(prompt, stream, streams[0]) for stream in streams))
    _require(streams)
    payload = {
        "prompt": prompt,
        "features": list(feature or []),
        "edits": [row.to_json() for row in rows],
        **{stream.name.lower(): stream.text for stream in streams[:2]},
        "streams": [stream.to_dict() for stream in streams],
    }
    console.finish(payload, "other strengths show how far it goes: --sweep 0.5,2,4; 123=0 ablates")


def parse_rows(options: list[str]) -> list[EditRow]:
    """`["3=2x", "clamp:5=1.5", "7=0", "8=1x@4"]` as rows."""
    from ..steering.recipes import EditRow

    rows: list[EditRow] = []
    for option in options:
        match = _EDIT.fullmatch(option.strip())
        if match is None or (match["strength"] is None and (match["operation"] or "").lower() != "ablate"):
            fail(f"--feature {option!r} is no edit. Write {_FORMS}.")
        operation = (match["operation"] or "add").lower()
        strength = float(match["strength"] or 0)
        if operation == "add" and strength == 0:
            operation = "ablate"
        trigger = None if match["when"] is None else int(match["when"])
        unit = _UNITS[(match["unit"] or "").lower()]
        rows.append(EditRow(int(match["feature"]), operation, strength, unit, when=trigger))
        if [(row.feature, row.operation) for row in rows].count((rows[-1].feature, operation)) > 1:
            fail(f"--feature {match['feature']} is given twice: give one strength for it.")
    return rows


def _factors(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",") if each.strip()]
    except ValueError:
        fail(f"--sweep {text!r} is no list of numbers. Write --sweep 0.5,2,4.")


def _preset(repo: str, subfolder: str, revision: str | None, name: str) -> list[EditRow]:
    from ..conversion.files import open_files
    from ..steering.recipes import load_presets

    found = {each.name: each for each in load_presets(open_files(repo, subfolder, revision))}
    if not found:
        fail(f"{repo!r} has no presets. Give --feature {_FORMS}.")
    if name not in found:
        fail(f"{repo!r} has no preset {name!r}. {did_you_mean(name, found)}")
    return list(found[name].rows)


def _variants(plan: SteeringPlan, factors: list[float], ablation: bool, instruction: str) -> tuple[Variant, ...]:
    from ..steering import Variant, sweep

    variants = [Variant("Baseline"), Variant("Steered", plan), *sweep(plan, factors)]
    variants += [Variant("Ablated", plan.ablated())] if ablation else []
    return (*variants, *([Variant("Prompt only", instruction=instruction)] if instruction else []))


def _watch(engine: SteeringEngine, request: SteeringRequest) -> tuple[Stream, ...]:
    """The finished streams, with a bar over their tokens meanwhile."""
    from tqdm.auto import tqdm

    total = request.max_new_tokens
    with (
        engine.start(request) as run,
        tqdm(total=total, desc="steering", unit="tok", leave=False, disable=None) as bar,
    ):
        for streams in run:
            bar.update(max(len(stream.tokens) for stream in streams) - bar.n)
        return run.result()


def _shown(prompt: str, stream: Stream, baseline: Stream) -> str:
    from ..steering.engine import diverges_at

    facts = [stream.name]
    if (gauge := stream.coherence) is not None:
        kl = "" if stream is baseline else f", KL {gauge.kl:.2f} nats per token"
        facts.append(f"{gauge.word}: perplexity {gauge.perplexity:.3g} under the unsteered host{kl}")
    if (place := diverges_at(stream, baseline)) is not None:
        facts.append(f"parts at token {place + 1}")
    words = f"failed: {stream.note}" if stream.state == "failed" else show_continuation(prompt, stream.text)
    return f"{paragraph(' · '.join(facts))}\n{words}"


def _require(streams: tuple[Stream, ...]) -> None:
    if all(stream.state == "failed" for stream in streams):
        fail(f"nothing could be generated: {streams[0].note}")


def show_continuation(prompt: str, text: str) -> str:
    """Prompt and continuation, indented, with nothing in them that acts on a terminal."""
    from ..terminal import visible

    lines = (prompt + text).replace("\r\n", "\n").expandtabs(4).split("\n")
    return "\n".join(f"  {visible(line)}" for line in lines)
