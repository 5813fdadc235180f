"""`hf-sae demo`."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, columns


if TYPE_CHECKING:
    from ..demo.showcase import Effect


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the trained autoencoder and its card.")] = Path(
        "hf-sae-demo"
    ),
    no_launch: Annotated[
        bool,
        typer.Option("--no-launch", help="Print only, and open nothing in a browser."),
    ] = False,
    total_tokens: Annotated[int | None, typer.Option(min=1, help="Activations to train on.")] = None,
    seed: Annotated[int, typer.Option(help="Of initialisation and data order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train, measure, label and steer a sparse autoencoder with no network, then open its features in a browser.

    Example: `hf-sae demo --output ./hf-sae-demo`
    """
    from ..demo import DemoSettings, run_demo
    from ..demo.showcase import feature_lines, steering_lines

    console = Console(as_json)
    settings = DemoSettings(seed=seed)
    if total_tokens is not None:
        settings = dataclasses.replace(settings, total_tokens=total_tokens)
    result = run_demo(output, settings, console.say)
    console.show(f"\n{result.report.to_table()}")
    console.show("\nFeatures and the contexts in which they fire most (held-out text)\n")
    for found in result.features:
        console.show(feature_lines(found, settings.n_contexts, columns()) + "\n")
    console.show(steering_lines(settings.prompt, result.effect, result.texts))
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.show(f"\nTook {result.payload['seconds']:.0f} s ({steps}).\nSaved to {output}, with a card.")
    console.show(label_line(result.labels.to_dict()))
    if no_launch or as_json or not has_gradio():
        console.finish(result.payload, _next(output, result.effect))
        return
    from ..space.serve import SpaceSettings, serve

    console.say("Opening its features in a browser; Ctrl-C ends the page.")
    serve(SpaceSettings(str(output)), inbrowser=True)


def label_line(labels: dict[str, Any]) -> str:
    """How many features have a label, and how well the labels hold."""
    mean, control = labels["mean_score"], labels["control"]
    said = f"Labelled {labels['labelled']:,} features by rules about tokens"
    if mean is None:
        return f"{said}; there was too little text to score the labels."
    beside = "" if control is None else f", labels of other features {control:.2f}"
    return f"{said}; detection {mean:.2f} on average on held-out contexts (chance {labels['chance']:.1f}{beside})."


def has_gradio() -> bool:
    """Whether the page can be opened."""
    return importlib.util.find_spec("gradio") is not None


def _next(output: Path, effect: Effect | None) -> str:
    page = f"hf-sae space open {output}"
    if not has_gradio():
        return f"pip install 'hf-sae[space]', then {page} shows every feature in a browser"
    edit = f" --feature {effect.examples.latent}={effect.strength:g}x" if effect else " --feature 0=2x"
    return f'{page} shows every feature in a browser; hf-sae steer {output}{edit} --prompt "import " steers here'
