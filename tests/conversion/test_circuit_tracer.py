"""circuit-tracer's transcoder sets against the table of their layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from hf_sae import AutoSAE, AutoTranscoder, read
from hf_sae.conversion import circuit_tracer, members, open_files
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, close, inputs, jump, rms, save, weights
from tests.hosts_zoo import ZOO, text_inputs


D, F = 16, 16  # as wide as it is deep: no shape tells whether a matrix is transposed
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
CONFIG = {"model_name": "Qwen/Qwen3-4B", "model_kind": "transcoder_set", **HOOKS}


def tensors(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    w = weights(D, F, seed=seed)
    content = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def write(folder: Path, config: dict[str, Any] | None = CONFIG, layers: int = 2, **changes: Any) -> None:
    for layer in range(layers):
        save(folder / f"layer_{layer}.safetensors", tensors(layer, **changes))
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))


def pre(t: dict[str, Tensor], u: Tensor) -> Tensor:
    return torch.einsum("bti,fi->btf", u, t["W_enc"]) + t["b_enc"]


@pytest.mark.parametrize("subfolder", ["", "transcoder_all/width_16k"])
@pytest.mark.parametrize("place", ["layer_1", "layer_1.safetensors", "1"])
def test_a_relu_transcoder_by_its_layer(tmp_path, subfolder, place):
    write(tmp_path / subfolder)
    t, u = tensors(1), inputs(D)
    sae = AutoTranscoder.from_pretrained(tmp_path, subfolder=f"{subfolder}/{place}".lstrip("/"))
    latents = torch.relu(pre(t, u))
    check(sae, u, latents, torch.einsum("btf,fo->bto", latents, t["W_dec"]) + t["b_dec"])
    config = sae.config
    assert (config.base_model, config.hook_in, config.hook_out) == ("Qwen/Qwen3-4B", "mlp_in.1", "mlp_out.1")
    assert (config.model_type, config.subtracts_bias, config.skip) == ("hf_sae_standard", False, False)


@pytest.mark.parametrize("threshold", [torch.rand(F) + 0.01, torch.tensor(0.4), torch.tensor([0.4])])
def test_a_threshold_makes_a_jumprelu(tmp_path, threshold):
    write(tmp_path, **{"activation_function.threshold": threshold})
    t, u = tensors(), inputs(D)
    sae = AutoSAE.from_pretrained(tmp_path, subfolder="layer_0")
    latents = jump(pre(t, u), threshold)
    check(sae, u, latents, latents @ t["W_dec"] + t["b_dec"])
    assert sae.config.model_type == "hf_sae_jumprelu"


def test_the_skip_is_of_what_is_read(tmp_path):
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(9))
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    write(tmp_path, {**CONFIG, **hooks}, W_skip=skip)
    t, x = tensors(), inputs(D)
    sae = AutoSAE.from_pretrained(tmp_path, subfolder="layer_0")
    u = rms(x, 1e-6)
    latents = torch.relu(pre(t, u))
    check(sae, x, latents, latents @ t["W_dec"] + t["b_dec"] + torch.einsum("bti,oi->bto", u, skip))
    assert (sae.config.hook_in, sae.config.input_norm, sae.config.norm_eps) == ("resid_mid.0", "unit_rms", 1e-6)


@pytest.mark.parametrize(
    ("host", "hooks", "source", "target", "norm"),
    [
        ("meta-llama/Llama-3.2-1B", ("hook_resid_mid", "hook_mlp_out"), "resid_mid.0", "mlp_out.0", "none"),
        ("meta-llama/Llama-3.2-1B", ("ln2.hook_normalized", "hook_mlp_out"), "resid_mid.0", "mlp_out.0", "unit_rms"),
        ("openai-community/gpt2", ("ln2.hook_normalized", "hook_mlp_out"), "resid_mid.0", "mlp_out.0", "unit_ln"),
        ("google/gemma-3-1b-pt", ("mlp.hook_in", "hook_mlp_out"), "mlp_in.0", "mlp_out.0", "none"),
        ("google/gemma-3-4b-it", ("mlp.hook_in", "hook_mlp_out"), "text:mlp_in.0", "text:mlp_out.0", "none"),
        # what the MLP gives is not what Gemma 2 and 3 add to the stream
        ("google/gemma-2-2b", ("mlp.hook_in", "mlp.hook_out"), "mlp_in.0", "layers.0.mlp", "none"),
        ("google/gemma-2b", ("mlp.hook_in", "mlp.hook_out"), "mlp_in.0", "mlp_out.0", "none"),
    ],
)
def test_hooks_are_places(tmp_path, host, hooks, source, target, norm):
    names = {"feature_input_hook": hooks[0], "feature_output_hook": hooks[1]}
    write(tmp_path, {**CONFIG, "model_name": host, **names})
    config = AutoSAE.from_pretrained(tmp_path, subfolder="layer_0").config
    assert (config.hook_in, config.hook_out, config.input_norm) == (source, target, norm)


def test_the_mlps_own_output_in_hosts_that_norm_it():
    for name in ("gemma2", "gemma3"):
        host = ZOO[name]()
        acts = read(host, ["layers.1.mlp", "model.layers.1.mlp:output", "mlp_out.1"], **text_inputs())
        close(acts["layers.1.mlp"], acts["model.layers.1.mlp:output"])
        assert not torch.allclose(acts["layers.1.mlp"], acts["mlp_out.1"], atol=0.1)


@pytest.mark.parametrize("name", ["wandb-config.yaml", "wanb-config.yaml"])
def test_with_the_training_config_alone_the_repos_name_says_the_host(tmp_path, name):
    repo = tmp_path / "qwen3-14b-transcoders-lowl0"
    write(repo, None)
    sizes = {
        "d_model": {"value": D},
        "d_feature": {"value": F},
        "act_fn": {"value": "relu"},
        "batch_size": {"value": 64},
    }
    (repo / name).write_text(yaml.safe_dump({**sizes, "wandb_version": 1}))
    sae = AutoSAE.from_pretrained(repo, subfolder="layer_1.safetensors")
    config = sae.config
    assert (config.base_model, config.hook_in, config.hook_out) == ("Qwen/Qwen3-14B", "mlp_in.1", "mlp_out.1")
    for changed, message in (
        ({"d_feature": {"value": 99}}, "d_feature=99"),
        ({"act_fn": {"value": "topk"}}, "act_fn='topk'"),
    ):
        (repo / name).write_text(yaml.safe_dump({**sizes, **changed}))
        with pytest.raises(CheckpointError, match=message):
            AutoSAE.from_pretrained(repo, subfolder="layer_1")
    (tmp_path / "mine").mkdir()
    (repo / name).rename(tmp_path / "mine" / name)
    write(tmp_path / "mine", None)
    with pytest.raises(CheckpointError, match="does not say the host"):
        AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer_1")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Repos as folders under `tmp_path`; what was opened is recorded."""
    opened = []

    def open_there(name: str, place: str = "", revision: str | None = None, **kwargs: Any) -> Any:
        opened.append((name, place, revision, kwargs))
        files = open_files(str(tmp_path / name), place)
        files.commit = "c0ffee" + (revision or "")
        return files

    monkeypatch.setattr(circuit_tracer, "open_files", open_there)
    return opened


def test_files_of_other_repos_are_opened_at_their_revision(tmp_path, hub):
    save(tmp_path / "org/set/deep/b.safetensors", tensors(1))
    listed = ["hf://org/set/a.safetensors", "hf://org/set/deep/b.safetensors?revision=v2"]
    write(tmp_path / "mine", {**CONFIG, "transcoders": listed}, layers=0)
    for place in ("layer_1", "1"):
        sae, u = AutoSAE.from_pretrained(tmp_path / "mine", subfolder=place, token="secret"), inputs(D)
        latents = torch.relu(pre(tensors(1), u))
        check(sae, u, latents, latents @ tensors(1)["W_dec"] + tensors(1)["b_dec"])
        assert (sae.config.hook_in, sae.config.hook_out) == ("mlp_in.1", "mlp_out.1")
    assert hub == [("org/set", "deep/b.safetensors", "v2", {"token": "secret"})] * 2
    origin = sae.config.provenance["conversion"]["listed"]
    assert (origin["commit"], origin["place"]) == ("c0ffeev2", "deep/b.safetensors")
    assert set(origin["sha256"]) == {"deep/b.safetensors"}
    assert "secret" not in str(sae.config.to_dict())
    with pytest.raises(CheckpointError, match="lists 2 transcoders"):
        AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer_2")
    with pytest.raises(CheckpointError, match="no such file"):
        AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer_0")


def test_a_list_may_point_to_gemma_scope_whose_encoder_lies_the_other_way(tmp_path, hub):
    place = "layer_1/average_l0_7"
    w = weights(D, F)
    (tmp_path / "google/gemma-scope-2b-pt-transcoders" / place).mkdir(parents=True)
    np.savez(
        tmp_path / "google/gemma-scope-2b-pt-transcoders" / place / "params.npz",
        **{k: v.numpy() for k, v in w.items()},
    )
    config = {
        "model_name": "google/gemma-2-2b",
        "model_kind": "transcoder_set",
        "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
        "transcoders": [f"hf://google/gemma-scope-2b-pt-transcoders/{place}/params.npz"] * 2,
    }
    write(tmp_path / "mine", config, layers=0)
    sae, x = AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer_1"), inputs(D)
    latents = jump(rms(x, 1e-6) @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, latents, latents @ w["W_dec"] + w["b_dec"])
    assert (sae.config.hook_in, sae.config.hook_out) == ("resid_mid.1", "mlp_out.1")
    # at another position it would be of another layer than its name says
    with pytest.raises(CheckpointError, match=r"'resid_mid.0' .* from 'resid_mid.1'"):
        AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer_0")


def test_a_list_may_point_to_gemma_scope_2(tmp_path, hub):
    place, w = "transcoder_all/layer_0_l0_small", weights(D, F)
    save(tmp_path / "google/gemma-scope-2-1b-pt" / place / "params.safetensors", {k.lower(): v for k, v in w.items()})
    listed = [f"hf://google/gemma-scope-2-1b-pt/{place}/params.safetensors"]
    hooks = {
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "model_name": "google/gemma-3-1b-pt",
    }
    write(tmp_path / "mine", {**CONFIG, **hooks, "transcoders": listed}, layers=0)
    sae, x = AutoSAE.from_pretrained(tmp_path / "mine", subfolder="0"), inputs(D)
    latents = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, latents, latents @ w["W_dec"] + w["b_dec"])
    assert (sae.config.hook_in, sae.config.hook_out) == ("mlp_in.0", "mlp_out.0")


def test_a_cross_layer_transcoder_is_named_as_one(tmp_path):
    write(tmp_path, {**CONFIG, "model_kind": "cross_layer_transcoder"}, layers=0)
    for layer in range(2):
        save(tmp_path / f"W_enc_{layer}.safetensors", {f"W_enc_{layer}": torch.zeros(F, D)})
        save(tmp_path / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": torch.zeros(F, 2 - layer, D)})
    for place in ("", "0", "layer_1"):
        with pytest.raises(CheckpointError, match=r"cross-layer transcoder \(CLT\)"):
            AutoSAE.from_pretrained(tmp_path, subfolder=place)


def test_the_layers_of_a_set_are_listed(tmp_path):
    write(tmp_path / "a")
    assert members(open_files(str(tmp_path))) == ["a/layer_0", "a/layer_1"]
    with pytest.raises(CheckpointError, match="holds 'a/layer_0', 'a/layer_1'"):
        AutoSAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"activation": "topk"}, {}, "activation='topk'"),
        ({"model_kind": "lorsa"}, {}, "model_kind='lorsa'"),
        ({"feature_input_hook": None}, {}, "lacks feature_input_hook"),
        ({"feature_input_hook": "attn.hook_q"}, {}, "no place by meaning"),
        ({"transcoders": ["/etc/passwd"]}, {}, "is not 'hf://org/repo/path'"),
        ({}, {"activation_function.threshold": torch.linspace(-0.1, 1, F)}, "negative thresholds"),
        ({}, {"activation_function.threshold": torch.ones(3)}, "3 thresholds"),
        ({}, {"log_thresholds": torch.ones(F)}, "does not know: log_thresholds"),
        ({}, {"b_dec": None}, "lacks the tensor 'b_dec'"),
        ({}, {"W_skip": torch.ones(D, D + 1)}, "skip has shape"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, config, changes, message):
    write(tmp_path, {**CONFIG, **config}, **changes)
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path, subfolder="layer_0")
