"""A place that is written for a peer comes back as that place or is asked for; it never comes back as another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sae import AutoSAE, TopKConfig, TopKSAE
from hf_sae.conversion import write
from hf_sae.errors import ConversionError


PLACES = [f"{name}.3" for name in ("resid_pre", "resid_mid", "resid_post", "attn_in", "attn_z", "attn_out")]
PLACES += ["mlp_in.3", "mlp_out.3", "embed", "final", "h.3.mlp.act", "h.3.mlp.act:output", "model.layers.3.mlp:input"]


def written(folder: Path, point: str, form: str) -> list[str]:
    return write(TopKSAE(TopKConfig(d_in=12, d_sae=48, k=4, hook_in=point)), folder, form)


# of the same place
SAME = {"h.3.mlp.act:output": "h.3.mlp.act", "model.layers.3.mlp:input": "mlp_in.3"}
UNWRITTEN = {("saelens", "attn_in.3"), ("saelens", "final")}
ASKED = {("dictionary_learning", point) for point in PLACES[PLACES.index("embed") :]}


@pytest.mark.parametrize("point", PLACES)
@pytest.mark.parametrize("form", ["saelens", "dictionary_learning"])
def test_places(tmp_path: Path, form: str, point: str):
    if (form, point) in UNWRITTEN:
        with pytest.raises(ConversionError, match="has no hook in TransformerLens"):
            written(tmp_path / "x", point, form)
        return
    written(tmp_path / "x", point, form)
    given = {}
    if (form, point) in ASKED:
        with pytest.raises(ConversionError, match="give hook_in="):
            AutoSAE.from_pretrained(tmp_path / "x")
        given = {"hook_in": point}
    found = AutoSAE.from_pretrained(tmp_path / "x", **given).config.hook_in
    assert SAME.get(found, found) == SAME.get(point, point)


@pytest.mark.parametrize(
    ("folder", "point", "said"),
    [
        ("layers.3", "resid_post.3", False),
        ("layers.3.mlp", "layers.3.mlp", False),
        ("embed_tokens", "embed", False),
        ("layers.3", "resid_pre.3", True),
        ("my-sae", "resid_post.3", True),
        ("layers.4", "resid_post.3", True),
    ],
)
def test_sparsify_has_the_place_in_the_folders_name_alone(tmp_path: Path, folder: str, point: str, said: bool):
    transforms = written(tmp_path / folder, point, "sparsify")
    assert any(repr(point) in text and "folder's name" in text for text in transforms) is said
    if not said:
        assert AutoSAE.from_pretrained(tmp_path / folder).config.hook_in == point
