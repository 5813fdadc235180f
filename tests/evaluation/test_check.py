"""Autoencoders whose right reading is known, each broken in one place: `check` names the repair."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import JumpReLUConfig, JumpReLUSAE, TopKConfig, TopKSAE, default_host, read
from hf_sae.corpus import stdlib_corpus
from hf_sae.errors import HookPointError
from hf_sae.evaluation import check
from hf_sae.evaluation.check import Measured, _judge
from hf_sae.evaluation.readings import AS_LOADED, readings
from hf_sae.models import SAE, KSparseConfig, KSparseSAE, MatchingPursuitConfig, MatchingPursuitSAE


RANK, LAYER = 48, 1


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return default_host()


@pytest.fixture(scope="module")
def acts(pair: Any) -> dict[str, Tensor]:
    host, tokenizer = pair
    documents = itertools.islice(stdlib_corpus("validation"), 24)
    ids = [i for document in documents for i in tokenizer(document["text"])["input_ids"][1:2000]]
    rows = torch.tensor(ids[: len(ids) // 128 * 128]).view(-1, 128)
    points = [f"{name}.{LAYER}" for name in ("resid_post", "resid_mid", "mlp_in", "mlp_out")]
    return {point: values.flatten(0, 1) for point, values in read(host, points, input_ids=rows).items()}


def dictionary(x: Tensor, hook: str, **config: Any) -> SAE:
    """Pairs ± of the main directions of the centred, normalised activations: reconstructs most of them."""
    options: dict[str, Any] = {
        "d_in": x.shape[-1],
        "d_sae": 2 * RANK,
        "hook_in": hook,
        "target_l0": None,
        "pre_bias": True,
    }
    sae = JumpReLUSAE(JumpReLUConfig(**options | config)).eval()
    with torch.no_grad():
        normalised, _ = sae.normalize(x)
        mean = normalised.mean(0)
        directions = torch.linalg.svd(normalised - mean, full_matrices=False).Vh[:RANK]
        sae.decoder.bias.copy_(mean)
        sae.encoder.weight.copy_(torch.cat([directions, -directions]))
        sae.decoder.weight.copy_(sae.encoder.weight)
        sae.threshold.fill_(0.0)
    return sae


def transcoder(x: Tensor, y: Tensor) -> SAE:
    """Least squares from the input, and from rectified features of it, to the output."""
    options = {"hook_in": f"mlp_in.{LAYER}", "hook_out": f"mlp_out.{LAYER}", "skip": True, "target_l0": None}
    sae = JumpReLUSAE(JumpReLUConfig(d_in=x.shape[-1], d_sae=2 * RANK, **options)).eval()
    with torch.no_grad():
        sae.encoder.bias.uniform_(-0.5, 0.5)
        sae.threshold.fill_(0.0)
        features = torch.cat([torch.relu(sae.pre_activations(x)), x, torch.ones(len(x), 1)], 1).double()
        ridge = 1.0 * torch.eye(features.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(features.T @ features + ridge, features.T @ y.double()).float()
        sae.decoder.weight.copy_(weights[: 2 * RANK])
        sae.skip.weight.copy_(weights[2 * RANK : -1].T)
        sae.decoder.bias.copy_(weights[-1])
    return sae


def run(sae: SAE, pair: Any, **options: Any) -> Any:
    host, tokenizer = pair
    return check(sae, host, tokenizer, n_tokens=1024, context_length=128, progress=False, **options)


def broken(sae: SAE, weights: dict[str, Tensor] | None = None, **config: Any) -> SAE:
    other = type(sae)(sae.config.replace(**config))
    other.load_state_dict({**sae.state_dict(), **(weights or {})})
    return other.eval()


def other_way(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous().view(matrix.shape)


def test_what_is_right_is_said_to_be_right(pair: Any, acts: dict[str, Tensor]):
    for sae in (
        dictionary(acts["resid_post.1"], "resid_post.1"),
        dictionary(acts["mlp_out.1"], "mlp_out.1", input_norm="layer_norm"),
        transcoder(acts["mlp_in.1"], acts["mlp_out.1"]),
    ):
        report = run(sae, pair)
        assert report.ok, report.to_table()
        mine = next(row for row in report.readings if row.name == AS_LOADED)
        assert mine.score <= 1.02 * report.readings[0].score  # the stream in the middle of a block is nearly the same
        assert mine.fvu < 0.9
        assert sum(row.score <= 1.02 * mine.score for row in report.readings) < 5


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "pre_bias": ({"pre_bias": False}, "b_dec subtracted from the input"),
    "layer above": ({"hook_in": "mlp_out.2"}, "at mlp_out.1"),
    "layer below": ({"hook_in": "mlp_out.0"}, "at mlp_out.1"),
    "side": ({"hook_in": "mlp_in.1"}, "at mlp_out.1"),
    "norm added": ({"input_norm": "layer_norm"}, "input norm 'none'"),
    "scale added": ({"input_norm": "scalar", "input_scale": 3.0}, "input norm 'none'"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_broken_setting_is_named(pair: Any, acts: dict[str, Tensor], case: str):
    changes, repair = CASES[case]
    place = "mlp_out.1" if "hook_in" in changes else "resid_post.1"
    report = run(broken(dictionary(acts[place], place), **changes), pair)
    assert (report.readings[0].name, report.ok) == (repair, False), report.to_table()
    assert repair in report.verdict


def test_a_bias_that_must_not_be_subtracted(pair: Any, acts: dict[str, Tensor]):
    right = dictionary(acts["resid_post.1"], "resid_post.1")
    folded = right.encoder.bias.detach() - right.encoder.weight.detach() @ right.decoder.bias.detach()
    report = run(broken(right, {"encoder.bias": folded}), pair)
    assert (report.readings[0].name, report.ok) == ("b_dec not subtracted from the input", False)


@pytest.mark.parametrize("norm", ["center", "layer_norm", "unit_rms"])
def test_a_dropped_norm_is_named(pair: Any, acts: dict[str, Tensor], norm: str):
    eps = 0.0 if norm == "unit_rms" else 1e-5
    right = dictionary(acts["resid_post.1"], "resid_post.1", input_norm=norm, norm_eps=eps)
    if norm == "center":
        # the mean over dimensions is small in this host: put weight on it, as a reading without centring would
        ones = torch.ones_like(right.encoder.weight) * 0.3
        right.load_state_dict({**right.state_dict(), "encoder.weight": right.encoder.weight.detach() + ones})
    report = run(broken(right, input_norm="none"), pair)
    score = {row.name: row.score for row in report.readings}
    assert not report.ok
    assert report.readings[0].name.startswith("input norm")
    # means over dimensions are small here, so that two of the norms are nearly the same
    assert score[f"input norm {norm!r}"] <= 1.02 * report.readings[0].score, report.to_table()


def test_a_dropped_scale_is_named(pair: Any, acts: dict[str, Tensor]):
    x = acts["resid_post.1"]
    right = dictionary(
        x, "resid_post.1", input_norm="scalar", input_scale=math.sqrt(x.shape[-1]) / float(x.norm(dim=-1).mean())
    )
    report = run(broken(right, input_norm="none"), pair)
    assert report.readings[0].name.startswith("input scaled by")
    assert not report.ok


@pytest.mark.parametrize("which", ["encoder", "decoder"])
@pytest.mark.parametrize("way", [0, 1])
def test_a_transposed_matrix_is_named(pair: Any, acts: dict[str, Tensor], which: str, way: int):
    right = dictionary(acts["resid_post.1"], "resid_post.1")
    key = f"{which}.weight"
    matrix = right.state_dict()[key]
    rows, columns = matrix.shape
    wrong = matrix.T.contiguous().view(rows, columns) if way else matrix.view(columns, rows).T.contiguous()
    report = run(broken(right, {key: wrong}), pair)
    repair = f"{which} transposed" + (" the other way" if way else "")
    assert (report.readings[0].name, report.ok) == (repair, False), report.to_table()


TRANSCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "input place": ({"hook_in": "resid_mid.1"}, "reads mlp_in.1"),
    "output side": ({"hook_out": "resid_post.1"}, "writes mlp_out.1"),
    "exchanged": ({"hook_in": "mlp_out.1", "hook_out": "mlp_in.1"}, "input and output exchanged"),
    "layer": ({"hook_in": "mlp_in.2", "hook_out": "mlp_out.2"}, "mlp_in.1 to mlp_out.1"),
}


@pytest.mark.parametrize("case", TRANSCODERS)
def test_each_broken_place_of_a_transcoder_is_named(pair: Any, acts: dict[str, Tensor], case: str):
    changes, repair = TRANSCODERS[case]
    report = run(broken(transcoder(acts["mlp_in.1"], acts["mlp_out.1"]), **changes), pair)
    assert (report.readings[0].name, report.ok) == (repair, False), report.to_table()


def test_a_transposed_skip_and_a_folded_bias_of_a_transcoder_are_named(pair: Any, acts: dict[str, Tensor]):
    right = transcoder(acts["mlp_in.1"], acts["mlp_out.1"])
    report = run(broken(right, {"skip.weight": right.skip.weight.detach().T.contiguous()}), pair)
    assert (report.readings[0].name, report.ok) == ("skip transposed", False)
    bias = torch.linspace(-3, 3, right.config.d_out)
    lifted = broken(right, {"decoder.bias": right.decoder.bias.detach() + bias})
    moved = lifted.encoder.bias.detach() + lifted.encoder.weight.detach() @ lifted.decoder.bias.detach()
    names = {reading.name for reading in readings(lifted, pair[0], acts["mlp_in.1"], False)}
    assert {"b_dec subtracted from the input", "b_dec of the input added back"} <= names
    found = {
        r.name: r.sae for r in readings(broken(lifted, {"encoder.bias": moved}), pair[0], acts["mlp_in.1"], False)
    }
    torch.testing.assert_close(
        found["b_dec subtracted from the input"].encoder.bias, lifted.encoder.bias, atol=1e-5, rtol=1e-4
    )


def test_thresholds_that_cut_too_much_are_seen_by_the_published_l0(pair: Any, acts: dict[str, Tensor]):
    right = dictionary(acts["resid_post.1"], "resid_post.1")
    l0 = run(right, pair).loaded["l0"]
    report = run(broken(right, {"threshold": torch.full((2 * RANK,), 0.5)}), pair, published_l0=l0)
    assert (report.readings[0].name, report.ok) == ("without thresholds", False)
    assert "without thresholds" not in {row.name for row in run(right, pair).readings}


def test_the_published_l0_is_the_one_in_the_files_of_an_import(pair: Any, acts: dict[str, Tensor]):
    sae = dictionary(acts["resid_post.1"], "resid_post.1", provenance={"conversion": {"published": {"l0": 40.0}}})
    report = run(sae, pair)
    assert report.published_l0 == 40.0
    mine = next(row for row in report.readings if row.name == AS_LOADED)
    assert mine.score == pytest.approx(mine.fvu * max(mine.l0 / 40, 40 / mine.l0))
    assert run(sae, pair, published_l0=20.0).published_l0 == 20.0


def test_a_short_text_is_not_counted_as_what_was_asked_for(pair: Any, acts: dict[str, Tensor]):
    host, tokenizer = pair
    texts = [document["text"][:800] for document in itertools.islice(stdlib_corpus("test"), 3)]
    sae = dictionary(acts["resid_post.1"], "resid_post.1")
    report = check(sae, host, tokenizer, texts, n_tokens=100_000, context_length=64, progress=False)
    available = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert 0.8 * available < report.n_tokens <= available + len(texts)  # each text may get its end marked
    assert f"{report.n_tokens:,} tokens" in report.to_table()


def test_a_topk_is_not_ranked_by_its_k(pair: Any, acts: dict[str, Tensor]):
    """48 of its 96 pre-activations are positive: less than k, in this reading and not in all."""
    plain = dictionary(acts["resid_post.1"], "resid_post.1")
    published = {"conversion": {"published": {"l0": 96.0}}}
    config = TopKConfig(
        d_in=plain.config.d_in, d_sae=2 * RANK, k=2 * RANK, hook_in="resid_post.1", provenance=published
    )
    sae = TopKSAE(config).eval()
    sae.load_state_dict({key: value for key, value in plain.state_dict().items() if key != "threshold"})
    report = run(sae, pair)
    assert report.ok, report.to_table()
    assert report.loaded["l0"] == pytest.approx(RANK, rel=1e-3)
    assert report.published_l0 == 96
    assert all(row.score == row.fvu for row in report.readings)


def test_what_explains_nothing_is_never_the_better_reading():
    mine, other = Measured(AS_LOADED, l0=4.0, fvu=0.8, score=3.2), Measured("at x", l0=16.0, fvu=1.01, score=1.01)
    ok, verdict = _judge([mine, other], mine)
    assert ok, verdict
    assert "No reading fits: the best leaves 95%" in _judge([other, bad := Measured("y", 1.0, 0.95, 9.0)], bad)[1]
    better = Measured("at z", l0=16.0, fvu=0.3, score=0.3)
    assert "'at z'" in _judge([better, mine, other], mine)[1]


@pytest.mark.parametrize("points", [{"hook_in": "resid_post.1"}, {"hook_in": "mlp_in.1", "hook_out": "mlp_out.1"}])
def test_a_host_of_another_width_is_said(pair: Any, points: dict[str, str]):
    config = JumpReLUConfig(d_in=16, d_sae=32, target_l0=None, **points)
    with pytest.raises(HookPointError, match=r"192 wide in this host, but the autoencoder has d_in=16.*another host"):
        run(JumpReLUSAE(config).eval(), pair)


def test_a_random_dictionary_fits_in_no_reading(pair: Any):
    torch.manual_seed(0)
    d = pair[0].config.hidden_size
    report = run(JumpReLUSAE(JumpReLUConfig(d_in=d, d_sae=32, hook_in="resid_post.1", target_l0=None)).eval(), pair)
    assert not report.ok
    assert "No reading fits" in report.verdict


def test_the_report_fits_a_terminal_and_is_json(pair: Any, acts: dict[str, Tensor]):
    report = run(dictionary(acts["resid_post.1"], "resid_post.1"), pair, published_l0=500.0)
    assert max(map(len, report.to_table().splitlines())) <= 80
    payload = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert payload["published_l0"] == 500.0
    assert any("published was 500" in note for note in payload["notes"])
    assert payload["loaded"]["delta_ce"] > 0
    assert [row["score"] for row in payload["readings"]] == sorted(row["score"] for row in payload["readings"])


def test_an_autoencoder_without_an_encoder_of_its_own_has_readings_too(acts: dict[str, Tensor]):
    hook = f"resid_post.{LAYER}"
    sae = KSparseSAE(KSparseConfig(d_in=acts[hook].shape[-1], d_sae=64, k=4, hook_in=hook)).eval()
    names = [reading.name for reading in readings(sae, default_host()[0], acts[hook][:64], False)]
    assert "b_dec not subtracted from the input" in names
    assert "decoder transposed" in names
    assert not [name for name in names if name.startswith("encoder")]


def test_without_a_linear_encoder_the_decoder_is_what_can_be_misread(pair: Any, acts: dict[str, Tensor]) -> None:
    host, _ = pair
    x = acts[f"resid_post.{LAYER}"]
    sae = MatchingPursuitSAE(MatchingPursuitConfig(d_in=x.shape[-1], d_sae=64, k=4, hook_in=f"resid_post.{LAYER}"))
    names = [reading.name for reading in readings(sae, host, x, with_published_l0=False)]
    assert "decoder transposed" in names
    assert not [name for name in names if "encoder" in name.replace("decoder", "") or "b_dec" in name]
