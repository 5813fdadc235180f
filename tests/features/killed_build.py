"""What a test starts as a process: `DATASET CACHE` begins to build an index and ends in the middle of it."""

from __future__ import annotations

import os
import sys

from hf_sae.features.index import FeatureIndex
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.search import file


if __name__ == "__main__":
    file._vectors = lambda *_: os._exit(9)
    FeatureIndex.open(FeatureDataset.open(sys.argv[1]), sys.argv[2])
