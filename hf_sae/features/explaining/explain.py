"""x."""
from __future__ import annotations
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from .latent import Background
from .vocabulary import Vocabulary
from .windows import COLUMNS, Windows
_BACKGROUND = 512
def background_of(dataset, vocabulary):
    """The `zero` contexts of all latents."""
    found = None
    for rows in dataset.columns("examples", COLUMNS):
        some = rows.filter(pc.field("kind") == "zero")
        if not some.num_rows: continue
        _, first = np.unique(np.array([str(i) for i in some.column("token_ids").to_pylist()]), return_index=True)
        some = some.take(pa.array(first))
        found = some if found is None else pa.concat_tables([found, some])
        _, first = np.unique(np.array([str(i) for i in found.column("token_ids").to_pylist()]), return_index=True)
        found = found.take(pa.array(first))
        if found.num_rows >= 250: break
    return Background(Windows.of(found, vocabulary))
