"""Tests against the peers' own packages: `make conformance` builds their environment."""

from __future__ import annotations

import os


os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # read at import; without a GPU its kernels cannot run
