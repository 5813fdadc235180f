"""Writing a model in the format of another library."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConversionError
from ..models import SAE
from .registry import FORMATS


WRITERS = {module.NAME: module.write for module in FORMATS if hasattr(module, "write")}


def write(sae: SAE, path: str | Path, form: str) -> list[str]:
    """Writes a model so that its library loads it with the same outputs.

    Args:
        sae ([`SAE`]): the model.
        path (`str` or `Path`): a folder; it is made where it does not exist.
        form (`str`): `"saelens"`, `"sparsify"`, `"dictionary-learning"`, or `"ours"`.

    Returns:
        `list[str]`: what had to be done to the weights, in words.

    Raises:
        ConversionError: for an unknown format, or one that cannot express the model.
    """
    name = form.replace("_", "-")
    if name == "ours":
        sae.save_pretrained(path)
        return []
    if name not in WRITERS:
        raise ConversionError(f"there is no format {form!r} to write. There are: ours, {', '.join(sorted(WRITERS))}.")
    return WRITERS[name](sae, path)
