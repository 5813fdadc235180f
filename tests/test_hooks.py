from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from accelerate import cpu_offload, dispatch_model
from torch import nn

from hf_sae.errors import HookPointError
from hf_sae.hooks import capture, edit, read, splice
from hf_sae.hosts import resolve
from hf_sae.hosts.hook_points import LAYER_NAMES, HookPoint
from hf_sae.models import TopKConfig, TopKSAE
from tests.hosts_zoo import FF, ZOO, D, text_inputs, with_lora


TOWERS = [(name, tower) for name, tiny in ZOO.items() for tower in tiny.towers]


def at(tower: str, point: str) -> str:
    return f"{tower}:{point}" if tower else point


def count_hooks(host: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in host.modules() for kind in kinds)


def final_states(host: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        output = host(**inputs)
    return torch.cat([v.float().flatten() for v in output.values() if isinstance(v, torch.Tensor)])


@pytest.fixture
def llama():
    return ZOO["llama"]()


@pytest.mark.parametrize(("name", "tower"), TOWERS)
def test_edits_in_every_family(name, tower):
    host, inputs = ZOO[name](), ZOO[name].inputs()
    clean = final_states(host, inputs)
    hooks = count_hooks(host)  # transformers leaves some of its own behind in multimodal models
    names = ["resid_pre", "resid_post"] if name == "mamba" else LAYER_NAMES
    for point in [at(tower, f"{place}.1") for place in names]:
        shapes = []

        def same(x, call, shapes=shapes):
            shapes.append(x.shape)
            return x.clone()

        with edit(host, point, same):
            assert torch.equal(final_states(host, inputs), clean), point
        with edit(host, point, lambda x, call: x):
            assert torch.equal(final_states(host, inputs), clean), point
        assert {len(shape) for shape in shapes} == {3}, point
        with edit(host, point, lambda x, call: torch.zeros_like(x)):
            assert not torch.equal(final_states(host, inputs), clean), point
    assert count_hooks(host) == hooks


class TestCapture:
    def test_keys_are_as_written(self, llama):
        points = ["resid_post.1", "model.layers.1:output", "model.layers.1.mlp:input", HookPoint("mlp_in.1")]
        with capture(llama, *points) as acts:
            llama(**text_inputs())
        assert set(acts) == {str(point) for point in points}
        assert torch.equal(acts["resid_post.1"], acts["model.layers.1:output"])
        assert torch.equal(acts[HookPoint("mlp_in.1")], acts["model.layers.1.mlp:input"])

    def test_equals_the_hidden_states_of_transformers(self, llama):
        with capture(llama, "embed", "resid_pre.0", "resid_post.0", "resid_post.1", "final") as acts:
            states = llama(**text_inputs(), output_hidden_states=True).hidden_states
        for point, state in zip(["embed", "resid_post.0", "resid_post.1", "final"], states, strict=True):
            assert torch.equal(acts[point], state)
        assert torch.equal(acts["embed"], acts["resid_pre.0"])

    def test_keeps_the_last_call(self, llama):
        with capture(llama, "resid_post.1") as acts:
            llama(**text_inputs(seed=1))
            llama(**text_inputs(rows=3, seed=2))
        assert torch.equal(
            acts["resid_post.1"], read(llama, "resid_post.1", **text_inputs(rows=3, seed=2))["resid_post.1"]
        )

    def test_gradients_flow_through_what_is_captured(self, llama):
        with capture(llama, "resid_post.0") as acts:
            loss = llama(**text_inputs()).logits.square().sum()
        (grad,) = torch.autograd.grad(loss, acts["resid_post.0"])
        assert grad.abs().sum() > 0

    def test_what_was_not_captured(self, llama):
        with capture(llama, "resid_post.1") as acts:
            pass
        with pytest.raises(HookPointError, match="run the host inside the with"):
            acts["resid_post.1"]
        with capture(llama, "resid_post.1") as acts:
            llama(**text_inputs())
        with pytest.raises(HookPointError, match=r"Captured: 'resid_post\.1'"):
            acts["resid_post.2"]

    @pytest.mark.parametrize("outside", [False, True])
    def test_sees_the_edits(self, llama, outside):
        contexts = [edit(llama, "resid_post.1", lambda x, call: x * 2), capture(llama, "resid_post.1")]
        with ExitStack() as stack:
            entered = [stack.enter_context(context) for context in (contexts[::-1] if outside else contexts)]
            acts = next(value for value in entered if value is not None)
            llama(**text_inputs())
        assert torch.equal(acts["resid_post.1"], 2 * read(llama, "resid_post.1", **text_inputs())["resid_post.1"])


class TestRead:
    def test_stops_after_the_last_point(self, llama):
        resolve(llama, "attn_z.1")  # the probe passes by the hooks below, too
        later = []
        llama.model.layers[1].mlp.register_forward_hook(lambda *_: later.append("mlp 1"))
        llama.model.layers[2].register_forward_pre_hook(lambda *_: later.append("layer 2"))
        acts = read(llama, ["resid_mid.1", "resid_pre.0", "attn_z.1"], **text_inputs())
        assert later == []
        assert list(acts) == ["resid_mid.1", "resid_pre.0", "attn_z.1"]
        assert not any(value.requires_grad for value in acts.values())
        read(llama, "resid_post.1", **text_inputs())
        assert later == ["mlp 1"]

    @pytest.mark.parametrize(("name", "tower"), TOWERS)
    def test_gives_what_a_capture_gives(self, name, tower):
        host, inputs = ZOO[name](), ZOO[name].inputs()
        names = ["resid_pre", "resid_post"] if name == "mamba" else LAYER_NAMES
        points = [at(tower, f"{place}.1") for place in names]
        found = read(host, points, **inputs)
        with capture(host, *points) as acts, torch.no_grad():
            host(**inputs)
        assert all(torch.equal(found[point], acts[point]) for point in points)
        hooks = count_hooks(host)
        read(host, points, **inputs)
        assert count_hooks(host) == hooks

    @pytest.mark.parametrize(
        ("name", "point", "given"),
        [
            ("clip", "vision:mlp_in.1", "pixel_values"),
            ("clip", "text:mlp_in.1", "input_ids"),
            ("whisper", "encoder:mlp_in.1", "input_features"),
            ("t5", "encoder:mlp_in.1", "input_ids"),
            ("llava", "text:mlp_in.1", "input_ids"),
            ("llava", "vision:mlp_in.1", "pixel_values"),
        ],
    )
    def test_one_tower_needs_its_own_inputs_only(self, name, point, given):
        inputs = ZOO[name].inputs()
        if name == "llava" and given == "input_ids":
            inputs[given] = text_inputs()[given]
        (value,) = read(ZOO[name](), point, **{given: inputs[given]}).values()
        assert value.shape[-1] == D

    def test_a_place_that_is_not_passed(self):
        with pytest.raises(HookPointError, match=r"did not pass through 'vision:resid_post.1'"):
            read(ZOO["llava"](), ["vision:resid_post.1", "text:resid_post.1"], **text_inputs())

    def test_errors_of_the_host_come_through(self, llama):
        with pytest.raises(IndexError):
            read(llama, "resid_post.1", input_ids=torch.tensor([[1000]]))
        assert count_hooks(llama) == 0


class TestEdit:
    @pytest.mark.parametrize("point", [f"{name}.1" for name in LAYER_NAMES] + ["embed", "final", "model.layers.1.mlp"])
    def test_what_is_put_in_is_what_comes_out(self, llama, point):
        value = torch.randn(2, 7, 64 if "attn_z" in point else D)
        with edit(llama, point, lambda x, call: value), capture(llama, point) as acts:
            llama(**text_inputs())
        assert torch.equal(acts[point], value)

    @pytest.mark.parametrize(
        "name", ["llama", "gpt2", "gpt_neox_serial", "gpt_neox_parallel", "gemma2", "opt", "bert"]
    )
    def test_the_stream_after_attention_is_replaced_for_everything_after_it(self, name):
        host = ZOO[name]()
        value = torch.randn(2, 7, D)
        with (
            edit(host, "resid_mid.1", lambda x, call: value),
            capture(host, "attn_out.1", "mlp_out.1", "resid_post.1") as acts,
            torch.no_grad(),
        ):
            host(**text_inputs())
        expected = value + acts["mlp_out.1"]
        if name == "gpt_neox_parallel":
            expected = expected + acts["attn_out.1"]
        if name == "bert":
            expected = host.bert.encoder.layer[1].output.LayerNorm(expected)
        torch.testing.assert_close(acts["resid_post.1"], expected, atol=1e-5, rtol=1e-5)

    def test_several_edits_apply_in_the_order_of_their_withs(self, llama):
        edits = [lambda x, call: x * 2, lambda x, call: x + 1, lambda x, call: x * 3]
        with ExitStack() as stack:
            for fn in edits:
                stack.enter_context(edit(llama, "resid_post.1", fn))
            acts = stack.enter_context(capture(llama, "resid_post.1"))
            stack.enter_context(edit(llama, "resid_mid.1", lambda x, call: x.clone()))
            llama(**text_inputs())
        clean = read(llama, "resid_post.1", **text_inputs())["resid_post.1"]
        assert torch.equal(acts["resid_post.1"], (clean * 2 + 1) * 3)

    def test_dtype_and_device_follow_the_activation(self, llama):
        llama = llama.to(torch.bfloat16)
        with edit(llama, "resid_post.1", lambda x, call: x.double()):
            assert llama(**text_inputs()).logits.dtype == torch.bfloat16

    @pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x[..., :1], lambda x: (x,), lambda x: "x"])
    def test_a_wrong_shape_is_refused(self, llama, wrong):
        with (
            edit(llama, "resid_post.1", lambda x, call: wrong(x)),
            pytest.raises(HookPointError, match="return one of the same shape"),
        ):
            llama(**text_inputs())
        assert count_hooks(llama) == 0

    def test_gradients_flow_through(self, llama):
        bias = torch.zeros(D, requires_grad=True)
        with edit(llama, "mlp_out.1", lambda x, call: x + bias):
            llama(**text_inputs()).logits.sum().backward()
        assert bias.grad.abs().sum() > 0

    def test_a_part_without_a_tensor_in_front(self, llama):
        llama.model.layers[1].mlp.forward = lambda x: ("no tensor", x)
        with (
            edit(llama, "model.layers.1.mlp", lambda x, call: x),
            pytest.raises(HookPointError, match="no tensor in front"),
        ):
            llama(**text_inputs())


class TestNothingIsLeftBehind:
    def contexts(self, host):
        sae = Stand()
        return [
            capture(host, "resid_mid.1", "mlp_in.1", "resid_post.1"),
            edit(host, "resid_mid.1", lambda x, call: x + 1),
            edit(host, "attn_out.1", lambda x, call: x + 1),
            splice(host, sae),
        ]

    @pytest.mark.parametrize("index", range(4))
    @pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("where", ["with", "forward"])
    def test_after(self, llama, index, error, where):
        clean = llama(**text_inputs()).logits
        context = self.contexts(llama)[index]
        attributes = set(vars(llama))

        def fail(*_):
            raise error

        def run():
            with context:
                llama.generate(text_inputs()["input_ids"], max_new_tokens=2)
                if error is not None and where == "forward":
                    llama.model.layers[1].mlp.forward = fail
                    llama(**text_inputs())
                if error is not None:
                    raise error

        if error is None:
            run()
        else:
            with pytest.raises(error):
                run()
            llama.model.layers[1].mlp.__dict__.pop("forward", None)
        assert count_hooks(llama) == 0
        assert set(vars(llama)) == attributes
        assert torch.equal(llama(**text_inputs()).logits, clean)

    def test_a_place_that_does_not_exist(self, llama):
        with pytest.raises(HookPointError), capture(llama, "resid_post.1", "resid_post.9"):
            pass
        assert count_hooks(llama) == 0

    def test_contexts_that_end_in_another_order(self, llama):
        attributes = set(vars(llama))
        first, second = (edit(llama, "resid_post.1", lambda x, call: x + 1) for _ in range(2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        llama.generate(text_inputs()["input_ids"], max_new_tokens=2)
        second.__exit__(None, None, None)
        assert set(vars(llama)) == attributes
        assert count_hooks(llama) == 0


class Recorder:
    """An edit that changes nothing and remembers its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, call):
        assert call.generated_mask is None or call.generated_mask.shape == x.shape[:2]
        assert len(call.rows) == len(x)
        self.calls.append(call)
        return x


def padded():
    inputs = text_inputs(rows=2, tokens=5)
    inputs["input_ids"][1, :2] = 0
    inputs["attention_mask"][1, :2] = 0
    return inputs


GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


class TestCall:
    def test_a_forward_is_a_prompt(self, llama):
        note, inputs = Recorder(), padded()
        with edit(llama, "resid_post.1", note):
            llama(inputs["input_ids"], attention_mask=inputs["attention_mask"])
            llama.model(position_ids=torch.arange(3, 8)[None], **inputs)
        for call in note.calls:
            assert torch.equal(call.input_ids, inputs["input_ids"])
            assert torch.equal(call.attention_mask, inputs["attention_mask"])
            assert call.phase == "prompt"
            assert not call.generated_mask.any()
            assert call.rows.tolist() == [0, 1]
        assert note.calls[0].positions.tolist() == [list(range(5))] * 2
        assert note.calls[1].positions.tolist() == [list(range(3, 8))] * 2

    @pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "gemma3", "opt"])
    def test_generation_with_a_cache(self, name):
        host, note, inputs = ZOO[name](), Recorder(), padded()
        with edit(host, "resid_post.1", note):
            out = host.generate(**inputs, **GREEDY)
        assert [call.phase for call in note.calls] == ["prompt"] + ["generated"] * 3
        assert [call.generated_mask.tolist() for call in note.calls] == [[[False] * 5] * 2] + [[[True]] * 2] * 3
        assert torch.equal(torch.cat([call.input_ids for call in note.calls], dim=1), out[:, :-1])
        if name in ("llama", "gemma3"):
            assert torch.cat([c.positions for c in note.calls], 1).tolist()[0] == list(range(8))
            assert [c.positions[1].tolist() for c in note.calls[1:]] == [[3], [4], [5]]
            assert note.calls[-1].attention_mask.shape == (2, 8)

    def test_generation_without_a_cache(self, llama):
        note = Recorder()
        with edit(llama, "resid_post.1", note):
            llama.generate(**padded(), **GREEDY, use_cache=False)
        assert [call.phase for call in note.calls] == ["prompt"] + ["generated"] * 3
        for step, call in enumerate(note.calls):
            assert call.generated_mask.tolist() == [[False] * 5 + [True] * step] * 2

    def test_a_prompt_in_chunks(self, llama):
        note = Recorder()
        with edit(llama, "resid_post.1", note):
            llama.generate(**text_inputs(tokens=5), **GREEDY, prefill_chunk_size=2)
        assert [call.generated_mask.tolist()[0] for call in note.calls] == [
            *[[False] * 2, [False] * 2, [False]],
            *[[True]] * 3,
        ]

    def test_two_prompts_in_one_with(self, llama):
        note = Recorder()
        with edit(llama, "resid_post.1", note):
            llama.generate(**padded(), **GREEDY)
            llama.generate(**text_inputs(rows=3, tokens=6), **GREEDY)
            llama(**text_inputs())
        assert [call.phase for call in note.calls] == (["prompt"] + ["generated"] * 3) * 2 + ["prompt"]
        assert note.calls[4].generated_mask.shape == (3, 6)
        assert not note.calls[4].generated_mask.any()

    @pytest.mark.parametrize("use_cache", [True, False])
    @pytest.mark.parametrize(
        "several",
        [
            {"num_beams": 3},
            {"num_beams": 3, "num_return_sequences": 2},
            {"num_return_sequences": 3, "do_sample": True},
        ],
    )
    def test_rows_under_beams_and_samples(self, llama, several, use_cache):
        torch.manual_seed(0)
        note = Recorder()
        with edit(llama, "resid_post.1", note):
            llama.generate(**padded(), **(GREEDY | several), use_cache=use_cache)
        assert all(call.rows.tolist() == [0, 0, 0, 1, 1, 1] for call in note.calls)
        with edit(llama, "resid_post.1", note):
            llama(**text_inputs(rows=6))
        assert note.calls[-1].rows.tolist() == list(range(6))

    def test_per_row_edits_stay_with_their_row_under_beams(self, llama):
        push = torch.stack([torch.zeros(D), 3 * torch.randn(D, generator=torch.Generator().manual_seed(0))])
        inputs, beams = padded(), GREEDY | {"num_beams": 3}
        with edit(llama, "resid_post.1", lambda x, call: x + push[call.rows, None]):
            both = llama.generate(**inputs, **beams)
        with edit(llama, "resid_post.1", lambda x, call: x + push[1]):
            pushed = llama.generate(**inputs, **beams)
        assert torch.equal(both[0], llama.generate(**inputs, **beams)[0])
        assert torch.equal(both[1], pushed[1])
        assert not torch.equal(both[1], llama.generate(**inputs, **beams)[1])

    def test_a_cache_kept_by_hand(self, llama):
        note, inputs = Recorder(), text_inputs()
        with edit(llama, "resid_post.1", note):
            cache = llama(**inputs, use_cache=True).past_key_values
            llama(input_ids=inputs["input_ids"][:, :2], past_key_values=cache)
        assert [call.phase for call in note.calls] == ["prompt", "generated"]
        assert note.calls[1].generated_mask.all()
        assert note.calls[1].positions.tolist() == [[7, 8]] * 2

    def test_continuing_a_conversation_from_its_cache(self, llama):
        note, inputs = Recorder(), text_inputs()
        with edit(llama, "resid_post.1", note):
            first = llama.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            prompt = torch.cat([first.sequences, inputs["input_ids"][:, :3]], 1)
            llama.generate(prompt, past_key_values=first.past_key_values, **GREEDY)
        assert [call.phase for call in note.calls] == (["prompt"] + ["generated"] * 3) * 2
        assert note.calls[4].input_ids.shape == (2, 4)
        assert note.calls[4].positions[0].tolist() == [10, 11, 12, 13]

    def test_prompts_as_embeddings(self, llama):
        note = Recorder()
        embeddings = llama.model.embed_tokens(text_inputs()["input_ids"]).detach()
        with edit(llama, "resid_post.1", note):
            llama.generate(inputs_embeds=embeddings, **GREEDY)
        assert note.calls[0].input_ids is None
        assert [call.phase for call in note.calls] == ["prompt"] + ["generated"] * 3

    @pytest.mark.parametrize("name", ["t5", "whisper"])
    def test_encoder_and_decoder(self, name):
        host, encoder, decoder = ZOO[name](), Recorder(), Recorder()
        inputs = {k: v for k, v in ZOO[name].inputs().items() if not k.startswith("decoder")}
        with edit(host, "encoder:resid_post.1", encoder), edit(host, "decoder:resid_post.1", decoder):
            if name == "t5":
                host.generate(**inputs, **GREEDY, num_beams=2)
            else:
                for _ in (1,):
                    host(**inputs, decoder_input_ids=torch.full((2, 1), 3))
        (call,) = encoder.calls
        assert call.phase == "prompt"
        assert call.rows.tolist() == [0, 1]
        assert (call.input_ids is None) == (name == "whisper")
        assert decoder.calls[0].phase == "prompt"
        assert decoder.calls[0].input_ids.shape[1] == 1
        if name == "t5":
            assert all(call.phase == "generated" for call in decoder.calls[1:])
            assert all(call.rows.tolist() == [0, 0, 1, 1] for call in decoder.calls)
            assert torch.equal(call.attention_mask, inputs["attention_mask"])

    def test_a_text_tower_gets_the_ids_of_its_host(self):
        host, note = ZOO["llava"](), Recorder()
        inputs = ZOO["llava"].inputs()
        with edit(host, "text:resid_post.1", note), edit(host, "vision:resid_post.1", Recorder()):
            host(**inputs)
        assert torch.equal(note.calls[0].input_ids, inputs["input_ids"])
        assert torch.equal(note.calls[0].attention_mask, inputs["attention_mask"])

    def test_images_have_no_tokens(self):
        host, note = ZOO["vit"](), Recorder()
        with edit(host, "resid_post.1", note):
            host(**ZOO["vit"].inputs())
        (call,) = note.calls
        assert (call.input_ids, call.positions, call.generated_mask, call.phase) == (None, None, None, "prompt")
        assert call.rows.tolist() == [0, 1]

    def test_generate_through_an_adapter(self):
        host, note = with_lora(ZOO["llama"](), target_modules=["q_proj"]), Recorder()
        with edit(host, "resid_post.1", note):
            host.generate(**padded(), **GREEDY, num_beams=2)
        assert note.calls[0].rows.tolist() == [0, 0, 1, 1]
        assert not note.calls[0].generated_mask.any()

    def test_a_module_run_by_itself(self, llama):
        with (
            edit(llama, "model.layers.1.mlp", lambda x, call: x + call.rows.sum()),
            pytest.raises(HookPointError, match="outside a forward call"),
        ):
            llama.model.layers[1].mlp(torch.zeros(1, 1, D))

    def test_a_failed_forward_forgets_its_call(self, llama):
        tokens = torch.tensor([[1000]])
        with edit(llama, "model.layers.1.mlp", lambda x, call: x + call.rows.sum()):
            with pytest.raises(IndexError):
                llama(input_ids=tokens)
            with pytest.raises(HookPointError, match="outside a forward call"):
                llama.model.layers[1].mlp(torch.zeros(1, 1, D))


class Stand(nn.Module):
    """A linear autoencoder that stands in for a real one."""

    def __init__(self, hook_in="resid_post.1", hook_out=None, d_in=D, d_out=D):
        super().__init__()
        torch.manual_seed(1)
        self.map = nn.Linear(d_in, d_out)
        self.config = SimpleNamespace(
            hook_in=hook_in, hook_out=hook_out, d_in=d_in, d_out=d_out, base_model="org/model"
        )

    def forward(self, hidden_states):
        return SimpleNamespace(reconstruction=self.map(hidden_states))


class TestSplice:
    @pytest.mark.parametrize("transcoder", [False, True])
    def test_a_model_of_ours(self, llama, transcoder):
        torch.manual_seed(0)
        places = (
            {"hook_in": "mlp_in.1", "hook_out": "mlp_out.1", "skip": True}
            if transcoder
            else {"hook_in": "resid_post.1"}
        )
        sae = TopKSAE(TopKConfig(d_in=D, d_sae=64, k=4, **places)).eval()
        written = sae.config.hook_out or sae.config.hook_in
        source = read(llama, sae.config.hook_in, **text_inputs())[sae.config.hook_in]
        with splice(llama, sae), capture(llama, written) as acts, torch.no_grad():
            llama(**text_inputs())
        assert torch.equal(acts[written], sae(source).reconstruction)

    def test_replaces_the_place(self, llama):
        sae = Stand()
        with capture(llama, "resid_post.1") as before:
            clean = llama(**text_inputs()).logits
        with splice(llama, sae), capture(llama, "resid_post.1") as acts:
            logits = llama(**text_inputs()).logits
        assert torch.equal(acts["resid_post.1"], sae.map(before["resid_post.1"]))
        assert not torch.equal(logits, clean)
        assert count_hooks(llama) == 0

    @pytest.mark.parametrize(("hook_in", "hook_out"), [("mlp_in.1", "mlp_out.1"), ("mlp_in.0", "mlp_out.2")])
    def test_transcoders_read_in_the_same_forward(self, llama, hook_in, hook_out):
        sae = Stand(hook_in, hook_out)
        with splice(llama, sae), capture(llama, hook_in, hook_out) as acts:
            for seed in (1, 2):
                llama(**text_inputs(seed=seed))
                assert torch.equal(acts[hook_out], sae.map(acts[hook_in]))

    @pytest.mark.parametrize("hook_out", [None, "mlp_out.1"])
    def test_with_the_error_values_stay_and_gradients_flow(self, llama, hook_out):
        sae = Stand("resid_post.1" if hook_out is None else "mlp_in.1", hook_out)
        clean = llama(**text_inputs()).logits
        with splice(llama, sae, keep_error=True):
            logits = llama(**text_inputs()).logits
        assert torch.equal(logits, clean)
        logits.square().sum().backward()
        assert sae.map.weight.grad.abs().sum() > 0

    def test_gradients_with_the_error_go_only_through_the_reconstruction(self, llama):
        sae = Stand()
        sae.map.weight.data.zero_()
        with capture(llama, "resid_post.0") as acts, splice(llama, sae, keep_error=True):
            logits = llama(**text_inputs()).logits
        (grad,) = torch.autograd.grad(logits.square().sum(), acts["resid_post.0"])
        assert torch.equal(grad, torch.zeros_like(grad))

    def test_other_dtypes(self, llama):
        llama = llama.to(torch.bfloat16)
        with splice(llama, Stand()), capture(llama, "resid_post.1") as acts:
            llama(**text_inputs())
        assert acts["resid_post.1"].dtype == torch.bfloat16

    def test_in_generation(self, llama):
        with splice(llama, Stand("mlp_in.1", "mlp_out.1"), keep_error=True):
            spliced = llama.generate(**padded(), **GREEDY)
        assert torch.equal(spliced, llama.generate(**padded(), **GREEDY))

    def test_widths_must_fit(self, llama):
        with pytest.raises(
            HookPointError, match=r"'resid_post.1' is 32 wide and the autoencoder's d_in is 16.*org/model"
        ):
            splice(llama, Stand(d_in=16)).__enter__()
        with (
            splice(llama, Stand("model.layers.1.mlp.act_fn", d_in=16, d_out=16)),
            pytest.raises(HookPointError, match=f"is {FF} wide and the autoencoder's d_in is 16"),
        ):
            llama(**text_inputs())
        assert count_hooks(llama) == 0

    def test_order_and_number_of_places(self, llama):
        with splice(llama, Stand("mlp_in.2", "mlp_out.1")), pytest.raises(HookPointError, match="runs before"):
            llama(**text_inputs())
        with pytest.raises(HookPointError, match=r"config.hook_in, which is \['a', 'b'\]"):
            splice(llama, Stand(["a", "b"])).__enter__()


class TestPlacement:
    def test_dispatched_hosts(self, llama):
        expected = read(llama, ["attn_z.1", "resid_post.1"], **text_inputs())
        host = dispatch_model(copy.deepcopy(llama), device_map={"": "cpu"}, main_device="cpu", force_hooks=True)
        found = read(host, ["attn_z.1", "resid_post.1"], **text_inputs())
        assert all(torch.equal(found[point], expected[point]) for point in expected)
        with edit(host, "resid_post.1", lambda x, call: x * 0):
            assert not torch.equal(host(**text_inputs()).logits, llama(**text_inputs()).logits)

    @pytest.mark.parametrize("whole", [None, ["LlamaDecoderLayer"]])
    def test_offloaded_hosts_get_their_weights_put_away(self, llama, whole):
        expected = read(llama, ["attn_z.1", "resid_mid.1"], **text_inputs())
        clean = llama(**text_inputs()).logits
        host = copy.deepcopy(llama)
        cpu_offload(host, torch.device("cpu"), preload_module_classes=whole)
        assert all(p.device.type == "meta" for p in host.parameters())
        later = []
        host.model.layers[2].register_forward_pre_hook(lambda *_: later.append(1))
        found = read(host, ["attn_z.1", "resid_mid.1"], **text_inputs())
        assert all(torch.equal(found[point], expected[point]) for point in expected)
        assert later == []
        assert all(p.device.type == "meta" for p in host.parameters())
        with edit(host, "resid_post.1", lambda x, call: x.clone()):
            assert torch.equal(host(**text_inputs()).logits, clean)

    @pytest.mark.filterwarnings("ignore")
    def test_quantised_hosts(self, llama):
        host = torch.ao.quantization.quantize_dynamic(llama, {nn.Linear})
        places = {name: resolve(host, f"{name}.1").place.path for name in LAYER_NAMES}
        assert places == {name: resolve(llama, f"{name}.1").place.path for name in LAYER_NAMES}
        pre, attn, mlp, post = read(
            host, ["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1"], **text_inputs()
        ).values()
        torch.testing.assert_close(pre + attn + mlp, post)

    @pytest.mark.parametrize("in_place", [False, True])
    def test_compiled_hosts(self, in_place):
        plain, inputs = ZOO["vit"](), ZOO["vit"].inputs()
        del plain.layers[2]
        clean = final_states(plain, inputs)
        with edit(plain, "resid_mid.1", lambda x, call: x + torch.arange(D)):
            expected = final_states(plain, inputs)
        host = plain if in_place else torch.compile(plain, backend="eager")
        if in_place:
            host.compile(backend="eager")
        torch.testing.assert_close(final_states(host, inputs), clean)
        with edit(host, "resid_mid.1", lambda x, call: x + torch.arange(D)), capture(host, "resid_post.1") as acts:
            torch.testing.assert_close(final_states(host, inputs), expected)
        torch.testing.assert_close(final_states(host, inputs), clean)
        assert acts["resid_post.1"].shape == (2, 5, D)
        assert torch.equal(read(host, "attn_z.1", **inputs)["attn_z.1"], read(plain, "attn_z.1", **inputs)["attn_z.1"])
        assert count_hooks(plain) == 0

    def test_gradient_checkpointing(self, llama):
        llama.train()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # renamed in transformers 5.2x; the old name works everywhere
            llama.gradient_checkpointing_enable()
        bias = torch.zeros(D, requires_grad=True)
        with edit(llama, "mlp_out.1", lambda x, call: x + bias), capture(llama, "resid_post.1") as acts:
            llama(**text_inputs(), use_cache=False).logits.sum().backward()
        assert bias.grad.abs().sum() > 0
        assert acts["resid_post.1"].shape == (2, 7, D)


def test_positions_of_several_axes():
    torch.manual_seed(0)
    text = {
        "vocab_size": 64,
        "hidden_size": D,
        "intermediate_size": FF,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }
    vision = {"depth": 1, "embed_dim": D, "hidden_size": D, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 1}
    host = hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(text_config=text, vision_config=vision)).eval()
    note = Recorder()
    with edit(host, "text:mlp_out.1", note):
        host(**text_inputs())
    assert note.calls[0].positions.tolist() == [list(range(7))] * 2
