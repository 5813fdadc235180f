"""What the demo leaves beside its autoencoder for the page of features: a labelled feature dataset, and a preset to steer with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..features.explaining import ExplainReport, explain_features
from ..features.harvest import harvest
from ..steering.recipes import EditRow, Preset, save_presets


if TYPE_CHECKING:
    from ..models import SAE
    from .showcase import Effect


def features_folder(output: Path) -> Path:
    """Beside the folder of the autoencoder, where the page looks for it: datasets are repos of their own on the Hub."""
    return output.with_name(f"{output.resolve().name}-features")


def label_features(
    output: Path, sae: SAE, host: Any, tokenizer: Any, texts: Any, n_tokens: int, context_length: int, seed: int
) -> ExplainReport:
    """Harvests all features on some texts, and labels them by rules; what was there is replaced.

    Args:
        output (`Path`): the folder of the autoencoder.
        sae ([`SAE`]), host (`PreTrainedModel`), tokenizer: what is looked at.
        texts (`Dataset`), n_tokens (`int`): held-out texts, and how much of them is read.
        context_length (`int`), seed (`int`): of the reading.

    Raises:
        DataError: if something else lies in the folder of the features.
    """
    folder = features_folder(output)
    harvest(
        {output.resolve().name: sae},
        host,
        tokenizer,
        texts,
        folder,
        n_tokens=n_tokens,
        context_length=context_length,
        seed=seed,
        overwrite=True,
    )
    return explain_features(folder, seed=seed)


def save_preset(output: Path, effect: Effect | None, prompt: str) -> None:
    """The edit that the demo found, for the page and for `hf-sae steer --preset`."""
    if effect is not None:
        row = EditRow(effect.examples.latent, strength=effect.strength)
        rise = f"raises {effect.token.strip()!r} from {effect.before:.1%} to {effect.after:.1%} of the next tokens"
        save_presets(output, [Preset(f"More {effect.token.strip()}", (row,), rise, prompt)])
