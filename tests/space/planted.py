"""An autoencoder whose latents are known by heart: each fires on one token of the default host, with activation 1."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from hf_sae import default_host
from hf_sae.features.harvest import harvest
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.writing import FeatureWriter
from hf_sae.models import StandardConfig, StandardSAE
from hf_sae.steering.recipes import EditRow, Preset, save_presets


WORDS = ("import", " self", " return", "def", " None", " os", " for", " with", ' """', "class", " raise")
IMPORT, SELF, RETURN, DEF, NONE, OS, FOR, WITH, QUOTES, CLASS, RAISE = range(len(WORDS))
DEAD = len(WORDS)
D_SAE = DEAD + 1
EVIL = "<img src=x onerror=window.broken=1>"
LABEL = "self in methods <b onclick=alert(1)>bold</b>"
PRESET = Preset("More imports", (EditRow(IMPORT, strength=3.0), EditRow(OS, "ablate")), "", "x = 1", "generated")
TEXTS = [
    "import os\nimport sys\n\ndef main(path):\n    return None\n",
    'class Reader:\n    """Reads."""\n\n    def read(self):\n        return self.file.read()\n',
    "import os\nfor name in names:\n    with open(name) as file:\n        print(file)\n",
    "def close(self):\n    raise ValueError(self)\n",
    "x = y + z\nprint(x)\n",
] * 4


def make_sae(host: torch.nn.Module, tokenizer: object) -> StandardSAE:
    """`z_j = max(0, 4 cos(e_j, x) |x|/|e_j| - 3)`: 1 on its own token, and 0 where the cosine is below 3/4."""
    config = StandardConfig(d_in=192, d_sae=D_SAE, hook_in="embed", base_model="default_host")
    sae = StandardSAE(config).eval()
    table = host.get_input_embeddings().weight.detach()  # type: ignore[operator]
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        for latent, word in enumerate(WORDS):
            (index,) = tokenizer(word, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
            row = table[index]
            sae.encoder.weight[latent] = 4 * row / (row @ row)
            sae.decoder.weight[latent] = row
        sae.encoder.bias.fill_(-3.0)
        sae.encoder.bias[DEAD] = -1000.0
        sae.decoder.weight[DEAD, 0] = 1.0
    sae.feature_stats = {
        "density": torch.full((D_SAE,), 0.01),
        "maximum": torch.ones(D_SAE),
    }  # as evaluation writes them
    sae.feature_stats["maximum"][DEAD] = 0.0
    return sae


def write(folder: Path) -> Path:
    """Saves the autoencoder as `planted`, with its features beside it; latent `SELF` has a label and a token that bite."""
    host, tokenizer = default_host()
    sae = make_sae(host, tokenizer)
    sae.save_pretrained(folder / "planted")
    save_presets(folder / "planted", [PRESET])
    (folder / "planted" / "README.md").write_text(CARD)
    found = harvest(sae, host, tokenizer, TEXTS, folder / "plain", n_tokens=10**6, context_length=64, progress=False)
    _with_labels(found, folder / "planted-features")
    return folder / "planted"


CARD = """---
license: mit
---
# Planted <script>window.broken=1</script>

![badge](https://example.com/badge.svg) and [a link](javascript:alert(1)) and [another](https://example.com/).

<img src=x onerror=window.broken=1>
"""


def _with_labels(found: FeatureDataset, folder: Path) -> None:
    saes = {"planted": next(iter(found.saes.values()))}
    name = next(iter(found.saes))
    when = datetime(2026, 1, 2, tzinfo=UTC)
    with FeatureWriter(folder, saes, data=found.data) as writer:
        for table in ("features", "examples"):
            for rows in found.batches(table):
                values = [row | {"sae_id": "planted"} for row in rows.to_pylist() if row["sae_id"] == name]
                for row in values:
                    if table == "features" and row["feature"] == SELF:
                        row["pos_tokens"] = [EVIL, *row["pos_tokens"][1:]]
                    if table == "examples" and row["feature"] == SELF:
                        row["tokens"] = [EVIL, *row["tokens"][1:]]
                        row["doc_name"] = EVIL
                writer.append(table, values)
        labels = {IMPORT: "start of an import", SELF: LABEL}
        writer.append(
            "explanations",
            [
                {"sae_id": "planted", "feature": latent, "number": 0, "text": text, "method": "by hand", "model": None}
                | {"model_revision": None, "prompt": None, "score": 0.9, "score_method": "detection"}
                | {"score_chance": 0.5, "score_low": 0.8, "score_high": 1.0, "score_count": 20, "score_failed": 0}
                | {"counterexamples": [EVIL], "created": when}
                for latent, text in labels.items()
            ],
        )
