"""The feature explorer of hf-sae. What it shows is said by the variables of this Space (Settings → Variables)."""

import contextlib
import os


with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  (ZeroGPU: has to come before anything that imports torch)

from hf_sae.space.serve import SpaceSettings, serve


if __name__ == "__main__":
    serve(SpaceSettings.of(os.environ))
