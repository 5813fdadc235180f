"""`evaluate` of an autoencoder that chooses latents with the gradient of the host's loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaModel

from hf_sae.activations.gradients import read_with_gradients
from hf_sae.errors import HookPointError
from hf_sae.evaluation import code_norms, evaluate
from hf_sae.hooks import edit
from hf_sae.models import GradientConfig, GradientSAE, TopKConfig, TopKSAE
from tests.evaluation.test_core import D, host, tokens  # noqa: F401


PLACE = "resid_post.0"


def gradient_sae(beta: float = 5.0, inference: str = "gradient") -> GradientSAE:
    torch.manual_seed(1)
    return GradientSAE(GradientConfig(d_in=D, d_sae=4 * D, k=3, beta=beta, inference=inference, hook_in=PLACE)).eval()


def test_error_and_loss_are_those_of_latents_chosen_with_the_gradients_of_the_clean_run(host):  # noqa: F811
    sae, batches = gradient_sae(), tokens(padding=5)
    errors, truths, losses = [], [], []
    for batch in batches:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        found, gradients = read_with_gradients(host, [PLACE], [PLACE], **inputs)
        keep = batch.keep & batch.attention_mask.bool()
        x = found[PLACE]
        with torch.no_grad():
            estimate = sae.decode(sae.encode(x, gradient=gradients[PLACE]))
            with edit(host, PLACE, lambda old, _, new=estimate, keep=keep: torch.where(keep[..., None], new, old)):
                logits = host(**inputs).logits
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
        real = batch.attention_mask.bool()
        losses.append(each[real[:, 1:] & real[:, :-1]])
        errors.append((x - estimate)[keep])
        truths.append(x[keep])
    truth = torch.cat(truths).double()
    fvu = torch.cat(errors).double().square().sum() / (truth - truth.mean(0)).square().sum()
    report = evaluate(sae, host, None, batches, progress=False, controls=True)
    assert report["fvu"] == pytest.approx(float(fvu), rel=1e-5)
    assert report["ce_sae"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    plain = evaluate(gradient_sae(inference="topk"), host, None, batches, progress=False)
    assert report["fvu"] != pytest.approx(plain["fvu"], rel=1e-3)
    assert report["ce_clean"] == pytest.approx(plain["ce_clean"], rel=1e-6)


def test_gradients_without_weight_change_nothing(host):  # noqa: F811
    sae = gradient_sae(beta=0.0)
    topk = TopKSAE(TopKConfig(d_in=D, d_sae=4 * D, k=3, hook_in=PLACE)).eval()
    topk.load_state_dict(sae.state_dict())
    reports = evaluate({"gradient": sae, "topk": topk}, host, None, tokens(), progress=False)
    for key in ("fvu", "l0", "ce_sae", "kl"):
        assert reports["gradient"][key] == pytest.approx(reports["topk"][key], rel=1e-6)
    lengths = [code_norms(model, host, None, tokens(), progress=False) for model in (sae, topk)]
    assert torch.equal(lengths[0].code, lengths[1].code)


def test_a_host_without_a_loss_is_refused_before_it_runs(host):  # noqa: F811
    with pytest.raises(HookPointError, match="no next-token loss"):
        evaluate(gradient_sae(), LlamaModel(host.config), None, tokens(), progress=False)
