"""Every release and id in the registry of the installed SAELens that a format here can read is found by rule."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest


pytest.importorskip("sae_lens")

import yaml

from hf_sae.conversion import Files
from hf_sae.conversion.names import FACTS, facts_about, locate, resolve
from hf_sae.errors import ConversionError


with files("sae_lens").joinpath("pretrained_saes.yaml").open() as file:
    REGISTRY: dict[str, Any] = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
UNREADABLE = {"temporal", "mntss_clt_layer_transcoder"}
# what lies under a path of the registry that is a folder
INSIDE = {
    None: "sae_weights.safetensors",
    "gemma_2": "params.npz",
    "gemma_2_transcoder": "params.npz",
    "gemma_3": "params.safetensors",
    "llama_scope": "checkpoints/final.safetensors",
    "llama_scope_r1_distill": "sae_weights.safetensors",
    "dictionary_learning_1": "ae.pt",
}


def listing() -> dict[str, set[str]]:
    """The files of each repo, as far as the registry speaks of them."""
    found: dict[str, set[str]] = {}
    for release in REGISTRY.values():
        inside = INSIDE.get(release.get("conversion_func"))
        for sae in release["saes"]:
            found.setdefault(release["repo_id"], set()).add(f"{sae['path']}/{inside}" if inside else str(sae["path"]))
    return found


LISTING = listing()


@pytest.mark.parametrize("release", [r for r, v in REGISTRY.items() if v.get("conversion_func") not in UNREADABLE])
def test_ids(release: str):
    entry, wrong = REGISTRY[release], {}
    for sae in entry["saes"]:
        repo, place, form = resolve(f"saelens:{release}/{sae['id']}")
        found = locate(Files(repo, LISTING.get(repo, ()), place))
        names = {found.place, found.asked(".safetensors", ".pt", ".pth")}
        if repo != entry["repo_id"] or str(sae["path"]) not in names or form is not None:
            wrong[sae["id"]] = (sae["path"], repo, found.place)
    assert wrong == {}


@pytest.mark.parametrize("release", [r for r, v in REGISTRY.items() if v.get("conversion_func") in UNREADABLE])
def test_releases_of_which_no_format_is(release: str):
    with pytest.raises(ConversionError, match="no model here is one"):
        resolve(f"saelens:{release}/{REGISTRY[release]['saes'][0]['id']}")


def test_facts_are_those_of_the_registry():
    """What the registry adds to SAELens' own format is in the table, and nothing else is."""
    expected: dict[tuple[str, str], dict[str, Any]] = {}
    for release in REGISTRY.values():
        if release.get("conversion_func") is not None:
            continue
        added = {k: v for k, v in (release.get("config_overrides") or {}).items() if k != "dataset_path"}
        for sae in release["saes"]:
            scale = {"norm_scaling_factor": sae["norm_scaling_factor"]} if "norm_scaling_factor" in sae else {}
            if added or scale:
                expected[release["repo_id"], str(sae["path"])] = added | scale
    assert {key: facts_about(Files(key[0], (), key[1])) for key in expected} == expected
    assert {repo for repo, _, _ in FACTS} == {repo for repo, _ in expected}
