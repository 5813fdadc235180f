"""Formats are told apart by names alone: exactly one takes each published layout, and none takes our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sae.conversion import FORMATS, Files


LAYOUTS = [
    ("gemma-scope", "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", ["params.npz"]),
    ("gemma-scope-2", "google/gemma-scope-2-1b-pt", "resid_post/layer_13_width_16k_l0_big", ["params.safetensors"]),
    ("gemma-scope-2", "google/gemma-scope-2-1b-pt", "transcoder/a", ["params.safetensors", "config.json"]),
    ("gemma-scope-2", "google/gemma-scope-2-1b-pt", "clt/width_262k_l0_big", ["params_layer_0.safetensors"]),
    ("circuit-tracer", "mwhanna/gemma-scope-2-1b-pt", "clt/width_262k_l0_big/layer_0", ["../config.yaml"]),
    ("llama-scope", "fnlp/R", "L8R-8x", ["hyperparams.json", "checkpoints/final.safetensors"]),
    ("llama-scope-r1", "fnlp/Llama-Scope-R1-Distill", "a/L5R", ["config.json", "sae_weights.safetensors"]),
    ("qwen-scope", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer3.sae.pt", [""]),
    ("goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "", ["Llama-3.1-8B-Instruct-SAE-l19.pth"]),
    ("deepseek-r1", "qresearch/D", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", [""]),
    ("openai", "gpt2-small", "resid_post_mlp_v5_32k/autoencoders/8.pt", [""]),
    ("circuit-tracer", "mwhanna/qwen3-4b-transcoders", "layer_3.safetensors", ["", "../config.yaml"]),
    ("circuit-tracer", "mwhanna/qwen3-14b-transcoders", "layer_3.safetensors", ["", "../wanb-config.yaml"]),
    ("circuit-tracer", "mntss/gemma-scope-transcoders", "layer_3", ["../config.yaml"]),
    ("circuit-tracer", "mntss/clt-gemma-2-2b-2.5M", "", ["config.yaml", "W_enc_0.safetensors"]),
    (
        "transcoder-circuits",
        "pchlenski/gpt2-transcoders",
        "final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.pt",
        [""],
    ),
    (
        "saelens",
        "jbloom/GPT2-Small-SAEs-Reformatted",
        "blocks.8.hook_resid_pre",
        ["cfg.json", "sae_weights.safetensors"],
    ),
    ("hook-z", "ckkissane/A", "gpt2-small_L5_Hcat_z_v9.pt", ["", "../gpt2-small_L5_Hcat_z_v9_cfg.json"]),
    (None, "user/ours", "layer_8", ["config.json", "model.safetensors"]),
]


def _below(place: str, name: str) -> str:
    while name.startswith("../"):
        place, name = place.rpartition("/")[0], name.removeprefix("../")
    return "/".join(part for part in (place, name) if part)


@pytest.mark.parametrize(("expected", "repo", "place", "names"), LAYOUTS)
def test_exactly_one_format_takes_it(expected, repo, place, names):
    files = Files(repo, [*(_below(place, name) for name in names), "README.md"], place)
    named = [module for module in FORMATS if not getattr(module, "OPENS_FILES", False)]
    assert [module.NAME for module in named if module.matches(files)] == ([expected] if expected else [])


def test_names_of_formats_are_their_own():
    assert len({module.NAME for module in FORMATS}) == len(FORMATS)


def test_every_format_has_a_row_in_the_table():
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    missing = [module.NAME for module in FORMATS if not any(row.startswith(f"| `{module.NAME}`") for row in rows)]
    assert missing == []
