"""Peers' names: which repo and place they mean, and what is known of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hf_sae import AutoSAE
from hf_sae.conversion import Files
from hf_sae.conversion.names import facts_about, hub_name, lens_name, locate, resolve
from hf_sae.errors import CheckpointError, ConversionError
from tests.conversion.test_saelens import plain, put, six


NAMES = {
    "gpt2-small-res-jb/blocks.8.hook_resid_pre": ("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"),
    "gpt2-small-resid-post-v5-32k/blocks.1.hook_resid_post": (
        "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs",
        "v5_32k_layer_1.pt",
    ),
    "gpt2-small-attn-out-v5-128k/blocks.11.hook_attn_out": (
        "jbloom/GPT2-Small-OAI-v5-128k-attn-out-SAEs",
        "v5_128k_layer_11",
    ),
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": (
        "google/gemma-scope-2b-pt-res",
        "layer_20/width_16k/average_l0_71",
    ),
    "gemma-scope-9b-it-res-canonical/layer_9/width_16k/canonical": (
        "google/gemma-scope-9b-it-res",
        "layer_9/width_16k/canonical",
    ),
    "gemma-scope-2-270m-it-att-all/layer_3_width_16k_l0_big": (
        "google/gemma-scope-2-270m-it",
        "attn_out_all/layer_3_width_16k_l0_big",
    ),
    "gemma-scope-2-1b-pt-transcoders/transcoder/layer_7_width_16k_l0_big_affine": (
        "google/gemma-scope-2-1b-pt",
        "transcoder/layer_7_width_16k_l0_big_affine",
    ),
    "llama_scope_lxm_32x/l16m_32x": ("fnlp/Llama3_1-8B-Base-LXM-32x", "Llama3_1-8B-Base-L16M-32x"),
    "llama_scope_r1_distill/l5r_400m_slimpajama_400m_openr1_math": (
        "fnlp/Llama-Scope-R1-Distill",
        "400M-Slimpajama-400M-OpenR1-Math-220k/L5R",
    ),
    "llama_scope_r1_distill/l5r_800m_openr1_math": (
        "fnlp/Llama-Scope-R1-Distill",
        "0-Slimpajama-800M-OpenR1-Math-220k/L5R",
    ),
    "pythia-70m-deduped-res-sm/blocks.0.hook_resid_pre": ("ctigges/pythia-70m-deduped__res-sm_processed", "e-res-sm"),
    "pythia-70m-deduped-mlp-sm/blocks.3.hook_mlp_out": ("ctigges/pythia-70m-deduped__mlp-sm_processed", "3-mlp-sm"),
    "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.5.hook_resid_post__trainer_5_step_9765": (
        "canrager/saebench_gemma-2-2b_width-2pow12_date-1109",
        "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_5_checkpoints/trainer_5_step_9765",
    ),
    "gemma-2-2b-res-snap-matryoshka-dc/blocks.3.hook_resid_post": (
        "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40",
        "snap/blocks.3.hook_resid_post",
    ),
    "qwen-scope-3.5-35b-a3b-base-w128k-l100/layer7": (
        "Qwen/SAE-Res-Qwen3.5-35B-A3B-Base-W128K-L0_100",
        "layer7.sae.pt",
    ),
    "mistral-7b-res-wg/blocks.16.hook_resid_pre": (
        "JoshEngels/Mistral-7B-Residual-Stream-SAEs",
        "mistral_7b_layer_16",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_releases(name: str):
    assert resolve(f"saelens:{name}") == (*NAMES[name], None)
    release, _, rest = name.partition("/")
    assert resolve(f"saelens:{release}", rest) == (*NAMES[name], None)


@pytest.mark.parametrize(
    ("name", "subfolder", "expected"),
    [
        (
            "sparsify:EleutherAI/sae-pythia-70m-32k/layers.1",
            "",
            ("EleutherAI/sae-pythia-70m-32k", "layers.1", "sparsify"),
        ),
        (
            "sparsify:EleutherAI/sae-pythia-70m-32k",
            "layers.1",
            ("EleutherAI/sae-pythia-70m-32k", "layers.1", "sparsify"),
        ),
        ("dictionary_learning:u/r/a/b", "", ("u/r", "a/b", "dictionary-learning")),
        ("saelens:user/repo", "", ("user/repo", "", "saelens")),
        ("user/repo", "layer_3", ("user/repo", "layer_3", None)),
        ("C:\\saes", "", ("C:\\saes", "", None)),
    ],
)
def test_formats_as_prefixes(name: str, subfolder: str, expected: tuple[str, str, str | None]):
    assert resolve(name, subfolder) == expected


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve(f"saelens:{tmp_path}", "a") == (str(tmp_path), "a", "saelens")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x:y").mkdir()
    assert resolve("x:y") == ("x:y", "", None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("saelens:gpt2-small-res-jb", "neither a release"),
        ("saelens:./nowhere", "neither a release"),
        ("saelens:", "neither a release"),  # and not the folder that one is in
        ("saelens:temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "temporal"),
        ("saelens:mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_3", "cross-layer"),
    ],
)
def test_names_that_mean_nothing_here(name: str, reason: str):
    with pytest.raises(ConversionError, match=reason):
        resolve(name)


def located(place: str, *names: str, repo: str = "google/gemma-scope-2b-pt-res") -> str:
    return locate(Files(repo, names, place)).place


def test_the_canonical_one_is_the_nearest_to_a_hundred():
    names = [f"layer_3/width_16k/average_l0_{l0}/params.npz" for l0 in (14, 28, 59, 142, 315)]
    assert located("layer_3/width_16k/canonical", *names) == "layer_3/width_16k/average_l0_59"
    tie = [f"layer_27/width_16k/average_l0_{l0}/params.npz" for l0 in (64, 136)]
    assert located("layer_27/width_16k/canonical", *tie) == "layer_27/width_16k/average_l0_136"
    att = "google/gemma-scope-9b-pt-att"
    tie = [f"layer_23/width_131k/average_l0_{l0}/params.npz" for l0 in (66, 134)]
    assert located("layer_23/width_131k/canonical", *tie, repo=att) == "layer_23/width_131k/average_l0_66"
    with pytest.raises(ConversionError, match="would be canonical"):
        located("layer_4/width_16k/canonical", *names)


def test_a_star_is_one_thing_in_the_listing():
    folders = ["b_0_24576:v1/cfg.json", "b_1_24576:v0/cfg.json", "b_1_24576:v0/sae_weights.safetensors"]
    assert located("b_1_*", *folders) == "b_1_24576:v0"
    assert located("*.pt", "README.md", "x.pt") == "x.pt"
    with pytest.raises(ConversionError, match=r"'x\.pt', 'y\.pt'"):
        located("*.pt", "x.pt", "y.pt")
    with pytest.raises(ConversionError, match="nothing"):
        located("*.pt", "README.md")
    assert located("", "README.md") == ""


def test_what_is_known_of_some_repos():
    centred = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    place = "sae_group_gpt2_blocks.11.hook_mlp_out_24576:v2"
    for repo in ("tommmcgrath/gpt2-small-mlp-out-saes", "TomMMcGrath/gpt2-small-mlp-out-saes"):
        assert facts_about(Files(repo, [], place)) == centred | {"norm_scaling_factor": 0.2851548652550073}
    # not layer 11's
    assert facts_about(Files(repo, [], place.replace("11", "1")))["norm_scaling_factor"] == 2.3693984005104283
    assert facts_about(Files("jbloom/GPT2-Small-SAEs-Reformatted", [], "blocks.8.hook_resid_pre")) == centred
    assert facts_about(Files("someone/else", [], "blocks.8.hook_resid_pre")) == {}


def test_facts_hold_for_a_copy_in_a_folder_of_that_name(tmp_path: Path):
    repo, place = "gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.2.hook_mlp_out_24576:v0"
    cfg = six("standard", {"hook_name": "blocks.2.hook_mlp_out"}, normalize_activations="expected_average_only_in")
    w = plain()
    put(tmp_path / repo / place, cfg, w)
    sae = AutoSAE.from_pretrained(tmp_path / repo, subfolder=place)
    assert sae.config.input_norm == "center"
    torch.testing.assert_close(sae.encoder.weight, 1.6411934982190302 * w["W_enc"].T)


def test_a_prefix_goes_straight_to_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, six("standard"), plain())

    def asked(*args: object, **kwargs: object) -> None:
        pytest.fail("transformers was asked")

    monkeypatch.setattr(_BaseAutoModelClass, "from_pretrained", asked)
    assert AutoSAE.from_pretrained(f"saelens:{tmp_path}").config.hook_in == "resid_pre.4"
    with pytest.raises(CheckpointError, match="no checkpoint of a known format"):
        AutoSAE.from_pretrained(f"sparsify:{tmp_path}")
    with pytest.raises(CheckpointError, match="there is no format 'nobody'"):
        AutoSAE.from_pretrained(f"nobody:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("my-model", "my-model"),
        (None, None),
    ],
)
def test_hosts(name: str | None, hub: str | None):
    assert hub_name(name) == hub


def test_hosts_back():
    assert [lens_name(n) for n in ("openai-community/gpt2", "google/gemma-2b", None)] == [
        "gpt2",
        "google/gemma-2b",
        None,
    ]
