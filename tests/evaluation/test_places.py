"""`evaluate` for autoencoders of several places."""

from __future__ import annotations

import pytest
import torch

from hf_sae.errors import HookPointError
from hf_sae.evaluation import EvalReport, check, compare_hosts, evaluate
from hf_sae.features.harvest import harvest
from hf_sae.features.top import hidden_at
from hf_sae.hooks import edit, read, splice
from hf_sae.metrics import next_token_losses
from hf_sae.models import CrosscoderConfig, CrosscoderSAE, CrossLayerConfig, CrossLayerSAE, SAEOutput
from hf_sae.steering import add, steer
from tests.evaluation.test_core import D, host, rule, tokens  # noqa: F401


PLACES = ["resid_post.0", "resid_post.1"]


def clean(host, batch):  # noqa: F811
    """Activations of both places in the clean run."""
    return read(host, PLACES, input_ids=batch.input_ids, attention_mask=batch.attention_mask).values()


def run(sae, host, **options):  # noqa: F811
    return evaluate(sae, host, None, tokens(), progress=False, **options)


class Places(CrosscoderSAE):
    """A crosscoder whose reconstruction is a given function of its input."""

    def __init__(self, config, reconstruct):
        super().__init__(config)
        self.reconstruct_with = reconstruct

    def forward(self, hidden_states, target=None, state=None):
        zeros = hidden_states.new_zeros(*hidden_states.shape[:-1], self.config.d_sae)
        return SAEOutput(reconstruction=self.reconstruct_with(hidden_states), latents=zeros)


def of_two(reconstruct) -> Places:
    return Places(CrosscoderConfig(d_in=2 * D, d_sae=8, hook_in=PLACES), reconstruct)


def test_identity_at_all_places_is_perfect(host):  # noqa: F811
    report = run(of_two(lambda x: x), host)
    assert report["fvu"] == report["delta_ce"] == report["kl"] == 0
    assert {place: values["fvu"].value for place, values in report.places.items()} == dict.fromkeys(PLACES, 0)
    assert report.sae["hook_in"] == PLACES


def test_each_place_has_its_own_error_and_cost(host):  # noqa: F811
    """Perfect at the first, the mean at the second: FVU 0 and 1, and all the cost is the second's."""
    mean = torch.cat([list(clean(host, b))[1][b.keep] for b in tokens()]).double().mean(0).float()
    report = run(of_two(lambda x: torch.cat([x[:, :D], mean.expand(len(x), D)], dim=-1)), host)
    first, second = (report.places[place] for place in PLACES)
    assert first["fvu"].value == first["delta_ce"].value == 0
    assert second["fvu"].value == pytest.approx(1, abs=1e-6)
    assert second["delta_ce"].value == pytest.approx(report["delta_ce"], abs=1e-6)
    alone = run(rule(lambda x: mean.expand_as(x), hook_in=PLACES[1]), host)
    assert second["ce_sae"].value == pytest.approx(alone["ce_sae"], abs=1e-6)
    assert 0 < report["fvu"] < 1
    again = EvalReport.from_dict(report.to_dict())
    assert again.places == report.places
    row = next(line.split() for line in report.to_table().splitlines() if line.startswith(PLACES[1]))
    assert row[1:2] == ["1.0000"]
    assert f"<td>{PLACES[1]}</td><td>1.0000</td>" in report._repr_html_()


def test_as_many_places_as_layers_fit_the_table(host):  # noqa: F811
    report = run(of_two(lambda x: x), host)
    report.places = {f"resid_post.{layer}": report.places[PLACES[0]] for layer in range(32)}
    lines = report.to_table().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.split()[:2] == ["resid_post.31", "0.0000"] for line in lines) == 1


def test_what_is_written_is_what_the_clean_run_gave(host):  # noqa: F811
    """The second place gets the reconstruction of its clean activation, whatever the first became."""
    report = run(of_two(lambda x: x / 2), host)
    losses, count = 0.0, 0
    for batch in tokens():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with torch.no_grad():
            keep = batch.keep.unsqueeze(-1)
            halves = [lambda x, _, c=c, keep=keep: torch.where(keep, c / 2, x) for c in clean(host, batch)]
            with edit(host, PLACES[0], halves[0]), edit(host, "model.layers.1", halves[1]):
                ce = next_token_losses(host(**inputs).logits, batch.input_ids)
        real = batch.attention_mask.bool()
        chosen = ce[real[:, 1:] & real[:, :-1]]
        losses, count = losses + chosen.sum(), count + len(chosen)
    assert report["ce_sae"] == pytest.approx(float(losses / count), rel=1e-5)


def test_a_cross_layer_transcoder_and_its_controls_are_measured(host):  # noqa: F811
    torch.manual_seed(0)
    config = CrossLayerConfig(
        d_in=2 * D, d_out=2 * D, d_sae=64, k=8, hook_in=["mlp_in.0", "mlp_in.1"], hook_out=["mlp_out.0", "mlp_out.1"]
    )
    report = run(CrossLayerSAE(config), host, controls=True)
    assert list(report.places) == config.hook_out
    assert report["l0"] <= 8
    assert set(report.controls) == {"linear", "random"}
    assert report.controls["linear"]["fvu"].value < 1
    zero = CrossLayerSAE(config)
    with torch.no_grad():
        zero.decoder.weight.zero_()
        zero.decoder.bias.zero_()
    assert run(zero, host)["ce_recovered"] == 0


def test_what_cannot_serve_several_places_says_so(host, tmp_path):  # noqa: F811
    for call in (
        lambda: check(of_two(lambda x: x), host, None, tokens(), progress=False),
        lambda: compare_hosts(of_two(lambda x: x), host, host, None, tokens(), progress=False),
    ):
        with pytest.raises(HookPointError, match="one place to read and one to write"):
            call()
    cannot = "needs one place in config.hook_in, which is .*evaluate.*places_in"
    for call in (
        lambda: splice(host, of_two(lambda x: x)).__enter__(),
        lambda: steer(host, of_two(lambda x: x), add({0: 1.0})).__enter__(),
        lambda: hidden_at(host, of_two(lambda x: x), input_ids=torch.tensor([[1, 2]])),
        lambda: harvest(of_two(lambda x: x), host, None, tokens(), tmp_path / "features"),
    ):
        with pytest.raises(HookPointError, match=cannot):
            call()
    paired = CrosscoderConfig(d_in=2 * D, d_sae=8, hook_in=["a/resid_post.0", "b/resid_post.0"])
    with pytest.raises(HookPointError, match=r"several hosts.*fvu_by_place"):
        run(CrosscoderSAE(paired), host)
    with pytest.raises(HookPointError, match="together"):
        run(CrosscoderSAE(CrosscoderConfig(d_in=D, d_sae=8, hook_in=PLACES)), host)
