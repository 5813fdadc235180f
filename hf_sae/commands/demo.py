"""`hf-sae demo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .console import Console, Json, columns


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the trained autoencoder and its card.")] = Path(
        "hf-sae-demo"
    ),
    no_launch: Annotated[
        bool,
        typer.Option("--no-launch", help="Print only, and open nothing in a browser (as this version does anyway)."),
    ] = False,
    total_tokens: Annotated[int | None, typer.Option(min=1, help="Activations to train on.")] = None,
    seed: Annotated[int, typer.Option(help="Of initialisation and data order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train, measure, look at and steer a sparse autoencoder in about three minutes, with no network.

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
    effect = result.effect
    example = f" --feature {effect.examples.latent}={effect.strength:g}x" if effect else " --feature 0=2x"
    console.finish(result.payload, f'hf-sae steer {output}{example} --prompt "import "')
