"""What a figure was made with."""

from __future__ import annotations

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions of Python, torch, transformers and this package, for reports and cards."""
    import torch
    import transformers

    try:
        own = metadata.version("hf-sae")
    except metadata.PackageNotFoundError:
        own = "source"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_sae": own,
    }
