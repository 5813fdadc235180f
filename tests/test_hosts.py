from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
import transformers as hf
from torch import nn

from hf_sae.errors import HookPointError
from hf_sae.hooks import capture, edit, read
from hf_sae.hosts import compare_fingerprints, fingerprint, places, resolve, unwrap, width_of
from hf_sae.hosts.hook_points import LAYER_NAMES, HookPoint
from tests.hosts_zoo import CAUSAL, HEADS, LAYERS, ZOO, D, llama, llama_config, text_inputs, with_lora


TOWERS = [(name, tower) for name, tiny in ZOO.items() for tower in tiny.towers]
MLP_LESS = {"mamba"}


def at(tower: str, point: str) -> str:
    return f"{tower}:{point}" if tower else point


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "tower", "name", "layer", "path", "side"),
        [
            ("resid_post.12", None, "resid_post", 12, None, "output"),
            ("vision:mlp_in.0", "vision", "mlp_in", 0, None, "output"),
            ("embed", None, "embed", None, None, "output"),
            ("decoder:final", "decoder", "final", None, None, "output"),
            ("model.layers.12.mlp", None, None, None, "model.layers.12.mlp", "output"),
            ("model.layers.12.mlp:input", None, None, None, "model.layers.12.mlp", "input"),
            ("embed:output", None, None, None, "embed", "output"),
            ("embed.weight_holder", None, None, None, "embed.weight_holder", "output"),
        ],
    )
    def test_parts(self, text, tower, name, layer, path, side):
        point = HookPoint(text)
        assert (point.tower, point.name, point.layer, point.path, point.side) == (tower, name, layer, path, side)
        assert str(point) == text

    def test_is_a_value(self):
        assert HookPoint("resid_post.1") == HookPoint("resid_post.1")
        assert len({HookPoint("embed"), HookPoint("embed"), HookPoint("final")}) == 2
        with pytest.raises(AttributeError):
            HookPoint("embed").text = "final"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "is not a place"),
            (" embed", "is not a place"),
            ("model..layers", "is not a place"),
            ("resid_post", "needs the number of a layer"),
            ("resid_post.-1", "needs the number of a layer"),
            ("resid_post.x", "needs the number of a layer"),
            ("embed.3", "there is one 'embed'"),
            ("vison:resid_post.3", "Closest: 'vision'"),
            ("model.layers.1:inputs", "Closest: 'input'"),
            ("text:resid_pots.1", "Closest: 'resid_post'"),
        ],
    )
    def test_refuses(self, text, says):
        with pytest.raises(HookPointError) as error:
            HookPoint(text)
        assert repr(text) in str(error.value)
        assert says in str(error.value)
        assert "Allowed: " in str(error.value)


@pytest.mark.parametrize(("name", "tower"), TOWERS)
class TestFamilies:
    def test_widths(self, name, tower):
        host = ZOO[name]()
        for point in ("resid_pre.1", "resid_post.1"):
            assert width_of(host, at(tower, point)) == D
        if name in MLP_LESS:
            return
        for place in ("resid_mid", "attn_in", "attn_out", "mlp_in", "mlp_out"):
            assert width_of(host, at(tower, f"{place}.1")) == D
        expected = ZOO[name].z_width if tower != "vision" else D
        assert width_of(host, at(tower, "attn_z.1")) == expected

    def test_the_stream_is_the_sum_of_what_is_written(self, name, tower):
        if name in MLP_LESS or tower == "decoder":
            pytest.skip("a mixer alone, or cross-attention, which writes too")
        host = ZOO[name]()
        names = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        points = [at(tower, f"{place}.{layer}") for layer in range(LAYERS) for place in names]
        with capture(host, *points) as acts, torch.no_grad():
            host(**ZOO[name].inputs())
        for layer in range(LAYERS):
            pre, attn, mid, mlp, post = (acts[at(tower, f"{place}.{layer}")] for place in names)
            if ZOO[name].post_norm:
                block = unwrap(host).get_submodule(resolve(host, f"resid_post.{layer}").place.path)
                torch.testing.assert_close(block.attention.output.LayerNorm(pre + attn), mid, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(block.output.LayerNorm(mid + mlp), post, atol=1e-5, rtol=1e-5)
                continue
            torch.testing.assert_close(pre + attn + mlp, post, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mid, pre if name == "gpt_neox_parallel" else pre + attn, atol=1e-5, rtol=1e-5)
            assert attn.norm() > 0
            assert mlp.norm() > 0

    def test_listing(self, name, tower):
        host = ZOO[name]()
        listed = {place.name: place for place in places(host)}
        wanted = ("resid_pre", "resid_post") if name in MLP_LESS else LAYER_NAMES
        for layer in range(LAYERS):
            for place in wanted:
                assert resolve(host, at(tower, f"{place}.{layer}")).place == listed[at(tower, f"{place}.{layer}")]
        assert all(place.width for place in listed.values())


class TestMeaning:
    def test_places_are_what_they_say_in_llama(self):
        host = ZOO["llama"]()
        block = host.model.layers[1]
        names = ("resid_pre", "attn_in", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_out")
        with torch.no_grad():
            acts = read(host, [f"{name}.1" for name in names], **text_inputs())
            assert torch.equal(acts["attn_in.1"], block.input_layernorm(acts["resid_pre.1"]))
            assert torch.equal(block.self_attn.o_proj(acts["attn_z.1"]), acts["attn_out.1"])
            assert torch.equal(acts["mlp_in.1"], block.post_attention_layernorm(acts["resid_mid.1"]))
            assert torch.equal(block.mlp(acts["mlp_in.1"]), acts["mlp_out.1"])

    def test_what_gemma_adds_comes_after_its_post_norms(self):
        host = ZOO["gemma2"]()
        block = host.model.layers[1]
        acts = read(host, ["attn_z.1", "attn_out.1", "mlp_in.1", "mlp_out.1"], **text_inputs())
        with torch.no_grad():
            attention = block.post_attention_layernorm(block.self_attn.o_proj(acts["attn_z.1"]))
            mlp = block.post_feedforward_layernorm(block.mlp(acts["mlp_in.1"]))
        assert torch.equal(attention, acts["attn_out.1"])
        assert torch.equal(mlp, acts["mlp_out.1"])

    def test_decoder_writes_cross_attention_too(self):
        host = ZOO["whisper"]()
        names = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        points = [f"decoder:{name}.1" for name in names] + ["model.decoder.layers.1.encoder_attn"]
        pre, attn, mid, mlp, post, cross = read(host, points, **ZOO["whisper"].inputs()).values()
        torch.testing.assert_close(pre + attn + cross, mid)
        torch.testing.assert_close(mid + mlp, post)

    def test_in_place_sums_do_not_reach_what_was_read(self):
        torch.manual_seed(0)
        host = hf.FalconForCausalLM(hf.FalconConfig(**CAUSAL)).eval()
        pre, attn, mlp, post = read(
            host, ["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1"], **text_inputs()
        ).values()
        torch.testing.assert_close(pre + attn + mlp, post)

    def test_flat_mlps_get_their_rows_back(self):
        torch.manual_seed(0)
        config = hf.OPTConfig(
            hidden_size=D,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            vocab_size=64,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
            do_layer_norm_before=False,
        )
        host = hf.OPTForCausalLM(config).eval()
        acts = read(host, ["mlp_in.1", "mlp_out.1"], **text_inputs())
        assert acts["mlp_in.1"].shape == acts["mlp_out.1"].shape == (2, 7, D)
        clean = host(**text_inputs()).logits
        with edit(host, "mlp_out.1", lambda x, call: x + 0 * x[:, :1]):
            assert torch.equal(host(**text_inputs()).logits, clean)

    def test_scaled_residuals_fail_loudly_where_no_module_holds_what_is_added(self):
        torch.manual_seed(0)
        host = hf.GraniteForCausalLM(hf.GraniteConfig(**CAUSAL, residual_multiplier=0.25)).eval()
        assert resolve(host, "mlp_in.1").place.path == "model.layers.1.mlp"
        with pytest.raises(HookPointError, match=r"0.25 times the output of 'mlp'"):
            resolve(host, "mlp_out.1")

    def test_a_module_that_runs_twice_is_not_taken(self):
        config = hf.Dinov2Config(
            hidden_size=D, num_hidden_layers=2, num_attention_heads=HEADS, image_size=16, patch_size=8
        )
        host = hf.Dinov2Model(config).eval()
        assert resolve(host, "attn_out.0").place.path == "encoder.layer.0.layer_scale1"
        assert resolve(host, "final").place.path == "layernorm"

    def test_mixers_have_no_attention_and_say_what_there_is(self):
        with pytest.raises(HookPointError, match="This block has resid_pre, resid_post; a module path"):
            resolve(ZOO["mamba"](), "attn_out.1")
        assert resolve(ZOO["mamba"](), "backbone.layers.1.mixer").place.width is None
        assert width_of(ZOO["mamba"](), "backbone.layers.1.mixer") == D

    @pytest.mark.parametrize("point", ["resid_pre.1", "resid_post.1", "embed", "final", "model.layers.1.mlp:input"])
    def test_simple_places_run_nothing(self, point):
        host = ZOO["llama"]()
        host.forward = host.model.forward = None
        assert resolve(host, point).module is not None


class TestProbe:
    def test_leaves_no_trace(self):
        host = ZOO["gpt2"]()
        host.train()
        host.transformer.h[1].eval()
        flags = [module.training for module in host.modules()]
        state, rng = {k: v.clone() for k, v in host.state_dict().items()}, torch.get_rng_state()
        attributes = set(vars(host))
        resolve(host, "attn_z.1")
        assert [module.training for module in host.modules()] == flags
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(torch.equal(v, state[k]) for k, v in host.state_dict().items())
        assert set(vars(host)) == attributes
        assert all(p.grad is None for p in host.parameters())

    def test_runs_once_per_kind_of_block_and_again_for_new_modules(self):
        host, runs = ZOO["llama"](), []
        host.model.register_forward_pre_hook(lambda *_: runs.append(1))
        for layer in range(LAYERS):
            resolve(host, f"attn_z.{layer}")
        assert len(runs) == 1
        with_lora(host, target_modules=["o_proj"])
        assert resolve(host, "attn_z.1").place.path == "model.layers.1.self_attn.o_proj"
        assert len(runs) == 2

    def test_does_not_reach_running_captures_and_edits(self):
        host, seen = ZOO["llama"](), []

        def note(x, call):
            seen.append(x.shape)
            return x * 2

        with capture(host, "resid_post.0") as acts, edit(host, "mlp_out.0", note):
            resolve(host, "attn_z.1")
            assert dict(acts) == {}
            assert seen == []

    def test_a_host_dies_with_its_last_reference(self):
        host = ZOO["llama"]()
        resolve(host, "attn_z.1")
        gone = weakref.ref(host)
        del host
        gc.collect()
        assert gone() is None

    def test_in_low_precision(self):
        host = ZOO["llama"]().to(torch.bfloat16)
        assert resolve(host, "mlp_out.1").place.path == "model.layers.1.mlp"
        assert resolve(ZOO["whisper"]().to(torch.bfloat16), "encoder:mlp_in.1").place.path.endswith("fc1")

    def test_unexplained_blocks_fail_loudly(self):
        host = ZOO["llama"]()
        for block in host.model.layers:
            block.register_forward_hook(lambda m, a, out: out.roll(1, -1))
        with pytest.raises(HookPointError, match="its wiring is unknown"):
            resolve(host, "mlp_out.1")

    def test_a_host_that_cannot_be_probed_says_so(self):
        host = ZOO["llama"]()
        host.config.vocab_size = 0
        with pytest.raises(HookPointError, match="need no probe"):
            resolve(host, "mlp_out.1")


class TestTowers:
    @pytest.mark.parametrize(
        ("name", "choices"),
        [
            ("t5", ["encoder:resid_post.1", "decoder:resid_post.1"]),
            ("clip", ["text:resid_post.1", "vision:resid_post.1"]),
            ("whisper", ["encoder:resid_post.1", "decoder:resid_post.1"]),
            ("llava", ["vision:resid_post.1", "text:resid_post.1"]),
        ],
    )
    def test_ambiguity_lists_the_choices(self, name, choices):
        with pytest.raises(HookPointError) as error:
            resolve(ZOO[name](), "resid_post.1")
        assert all(repr(choice) in str(error.value) for choice in choices)

    def test_a_tower_that_is_not_there(self):
        with pytest.raises(HookPointError, match=r"Choose one of 'resid_post.1'"):
            resolve(ZOO["llama"](), "vision:resid_post.1")

    @pytest.mark.parametrize(
        ("name", "tower"), [("llama", "text"), ("vit", "vision"), ("whisper", "audio"), ("bert", "encoder")]
    )
    def test_modality_and_role_are_both_names(self, name, tower):
        assert resolve(ZOO[name](), f"{tower}:resid_post.1").place.width == D

    def test_the_same_place_through_every_wrapper(self):
        host = ZOO["llama"]()
        multimodal = ZOO["llava"]()
        multimodal.model.language_model.load_state_dict(host.model.state_dict())
        adapted = ZOO["llama"]()
        adapted.load_state_dict(host.state_dict())
        adapted = with_lora(adapted, target_modules=["q_proj", "o_proj", "down_proj"])
        inputs, names = text_inputs(), [*(f"{name}.1" for name in LAYER_NAMES), "embed", "final"]
        expected = read(host, names, **inputs)
        for other in (host.model, adapted, nn.DataParallel(host)):
            found = read(other, names, **inputs)
            assert all(torch.equal(found[name], expected[name]) for name in names)
        found = read(multimodal, [f"text:{name}" for name in names], **inputs)
        assert all(torch.equal(found[f"text:{name}"], expected[name]) for name in names)
        with capture(multimodal, "text:mlp_in.1") as acts:
            multimodal(**inputs)
        assert torch.equal(acts["text:mlp_in.1"], expected["mlp_in.1"])

    def test_adapters_that_learned_something_change_nothing_about_places(self):
        plain, adapted = ZOO["llama"](), with_lora(ZOO["llama"](), init_lora_weights=False)
        for name in LAYER_NAMES:
            assert resolve(adapted, f"{name}.1").place == resolve(plain, f"{name}.1").place


class TestPaths:
    def test_closest_module(self):
        with pytest.raises(HookPointError, match=r"no module 'model.layer.12' in LlamaForCausalLM. Closest: "):
            resolve(ZOO["llama"](), "model.layer.12")
        with pytest.raises(HookPointError, match=r"Closest: 'model.layers.1'"):
            resolve(ZOO["llama"](), "model.layer.1")
        with pytest.raises(HookPointError, match=r"Closest: 'resid_post\.2'"):
            resolve(ZOO["llama"](), "resid_pots.2")

    def test_layer_out_of_range(self):
        with pytest.raises(HookPointError, match=r"LlamaForCausalLM has 3 layers at 'model.layers'. Give 0 to 2."):
            resolve(ZOO["llama"](), "resid_post.12")

    @pytest.mark.parametrize("path", ["model.layers.1.mlp", "layers.1.mlp", "base_model.model.model.layers.1.mlp"])
    def test_spellings_of_other_wrappers(self, path):
        host = ZOO["llama"]()
        assert resolve(host, path).module is host.model.layers[1].mlp
        assert resolve(host.model, path).module is host.model.layers[1].mlp

    def test_widths_from_structure_or_a_run(self):
        host = ZOO["llama"]()
        assert width_of(host, "model.layers.1.mlp.gate_proj") == 48
        assert width_of(host, "model.layers.1.mlp.down_proj:input") == 48
        assert width_of(host, "model.layers.1.mlp.act_fn") == 48
        assert width_of(ZOO["llava"](), "model.vision_tower.encoder.layers.0.mlp.activation_fn") == 48

    def test_a_model_without_blocks(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        assert width_of(model, "0") == 4
        with pytest.raises(HookPointError, match="Give a module path"):
            resolve(model, "resid_post.0")


class TestFingerprint:
    def test_is_the_same_in_every_wrapper(self):
        host = ZOO["llama"]()
        expected = fingerprint(host)
        assert expected == {"model_type": "llama", "hidden_size": D, "num_layers": LAYERS, "vocab_size": 64}
        assert json.loads(json.dumps(expected)) == expected
        assert fingerprint(host.model) == expected
        assert fingerprint(ZOO["llava"]()) == expected
        assert fingerprint(with_lora(ZOO["llama"]())) == expected

    def test_differences_are_told(self):
        torch.manual_seed(0)
        config = llama_config()
        config.num_hidden_layers = 2
        other = hf.LlamaForCausalLM(config)
        assert compare_fingerprints(fingerprint(llama()), fingerprint(llama())) == []
        assert compare_fingerprints(fingerprint(llama()), fingerprint(other)) == [
            "number of layers: trained on 3, this host has 2"
        ]
        assert compare_fingerprints({"vocab_size": 64, "vocabulary_sha256": "a" * 64}, fingerprint(other)) == []

    def test_vocabulary(self):
        class Tokenizer:
            def __init__(self, *tokens):
                self.tokens = tokens

            def get_vocab(self):
                return {token: i for i, token in enumerate(self.tokens)}

        one, two = (fingerprint(llama(), Tokenizer(*tokens)) for tokens in (("a", "b"), ("b", "a")))
        assert len(one["vocabulary_sha256"]) == 64
        assert compare_fingerprints(one, two)[0].startswith("tokenizer vocabulary: trained on ")
        assert compare_fingerprints(one, one) == []
