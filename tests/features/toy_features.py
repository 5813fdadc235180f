"""A feature dataset small enough to know by heart: two autoencoders, text that is awkward on purpose."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_sae.features.manifest import EmbeddingModel, SAESource
from hf_sae.features.writing import FeatureWriter


AWKWARD = ["import", " os", "\n", "\t", "é", "日本", "🦜", "⟨e2⟩", "", "<img src=x onerror=alert(1)>", '"|`']
CREATED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAES = {
    "layer_1": SAESource(
        d_sae=64, repo_id="user/saes", subfolder="layer_1", commit=COMMIT, architecture="topk", n_tokens=1000
    ),
    "layer_2": SAESource(d_sae=128, hook_in="resid_pre.2", hook_out="mlp_out.2", base_model="org/model"),
}
DATA = {"name": "org/text", "split": "train", "revision": COMMIT, "n_tokens": 1000, "context_length": 32}
EMBEDDING = EmbeddingModel("org/embedder", dim=4, normalised=True, revision=COMMIT)
Row = dict[str, Any]


def feature(sae_id: str = "layer_1", index: int = 0, **other: Any) -> Row:
    """A row of `features`; its numbers are exact in 32 bits."""
    row = {"sae_id": sae_id, "feature": index, "density": index / 1000, "n_fired": index, "max_act": 3.5 + index}
    row |= {"mean_act": index / 8, "hist_counts": [index, 2**40, 0], "hist_edges": [0.0, 0.5, 1.0, 1.5]}
    row |= {"pos_tokens": AWKWARD, "pos_token_ids": list(range(11)), "pos_logits": [2.0 - i / 8 for i in range(11)]}
    row |= {"neg_tokens": [" no"], "neg_token_ids": [7], "neg_logits": [-1.5]}
    row |= {"logit_hist_counts": [], "logit_hist_edges": [], "nn_idx": [63, 1], "nn_cos": [0.75, -0.5]}
    return row | {"coact_idx": [2], "coact_count": [2**33], "text": " ".join(AWKWARD)} | other


def example(sae_id: str = "layer_1", index: int = 0, rank: int = 0, **other: Any) -> Row:
    """A row of `examples`."""
    row = {"sae_id": sae_id, "feature": index, "kind": "top", "bin": None, "bin_min": None, "bin_max": None}
    row |= {"bin_share": None, "rank": rank, "tokens": AWKWARD, "token_ids": list(range(11)), "max_pos": 6}
    row |= {"acts": [0.0] * 6 + [3.5 + index] + [0.25] * 4, "special_pos": [0], "doc_id": 2**40, "doc_name": None}
    return row | {"text": "".join(AWKWARD)} | other


def explanation(sae_id: str = "layer_1", index: int = 0, number: int = 0, **other: Any) -> Row:
    """A row of `explanations`."""
    row = {"sae_id": sae_id, "feature": index, "number": number, "text": "imports\nof 'os'", "method": "n-gram rule"}
    row |= {"model": None, "model_revision": None, "prompt": "v1", "score": 0.875, "score_method": "detection"}
    row |= {"score_chance": 0.5, "score_low": 0.75, "score_high": None, "score_count": 20, "score_failed": 1}
    return row | {"counterexamples": ["import sys", ""], "created": CREATED} | other


def embedding(sae_id: str = "layer_1", index: int = 0, number: int = 0, **other: Any) -> Row:
    """A row of `embeddings`."""
    row = {"sae_id": sae_id, "feature": index, "source": "explanation", "number": number, "text": "imports"}
    return row | {"vector": [0.5, -0.5, 0.5, 0.5]} | other


ROWS: dict[str, list[Row]] = {
    "features": [feature(index=i) for i in (0, 3, 63)] + [feature("layer_2", i) for i in (3, 127)],
    "examples": [
        *(example(index=3, rank=rank) for rank in range(3)),
        example(index=3, kind="quantile", bin=0, bin_min=0.0, bin_max=0.5, bin_share=0.25),
        example(index=3, kind="quantile", bin=1, bin_min=0.5, bin_max=1.0, bin_share=0.75),
        example(index=3, kind="zero", acts=[0.0] * 11, doc_name="os.py"),
        example("layer_2", 3, kind="random"),
    ],
    "explanations": [explanation(index=3), explanation(index=3, number=1, score=None), explanation("layer_2", 127)],
    "embeddings": [embedding(index=3), embedding(index=3, number=1), embedding("layer_2", 127)],
}


def write(folder: Path, rows: dict[str, list[Row]] | None = None, **options: Any) -> Path:
    """Writes the dataset, or other rows under its description."""
    with FeatureWriter(folder, SAES, data=DATA, embedding=EMBEDDING, **options) as writer:
        for name, values in (ROWS if rows is None else rows).items():
            writer.append(name, values)
    return folder
