from __future__ import annotations

import torch
from torch.nn import functional as F

from hf_sae.models import StandardConfig, StandardSAE, TrainingState


def test_minimiser_on_an_orthonormal_dictionary_is_soft_thresholding() -> None:
    """With the sum-of-squares loss `‖x - x̂‖² + λ Σ z`, the best z is `ReLU(w·x - λ/2)`: the bias must arrive at -λ/2."""
    torch.manual_seed(0)
    d, strength = 6, 0.4
    sae = StandardSAE(
        StandardConfig(d_in=d, d_sae=d, hook_in="resid_post.0", l1_coefficient=strength, l1_warmup_share=0.0)
    )
    with torch.no_grad():
        rows = torch.linalg.qr(torch.randn(d, d)).Q
        sae.encoder.weight.copy_(rows)
        sae.decoder.weight.copy_(rows)
    # every latent is on by far more than λ/2: the optimum is interior and the same for all tokens
    x = (2 + torch.rand(200, d)) @ rows
    optimizer = torch.optim.SGD([sae.encoder.bias], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        sae(x, state=TrainingState(normaliser=1.0)).loss.backward()
        optimizer.step()
    torch.testing.assert_close(sae.encoder.bias.detach(), torch.full((d,), -strength / 2), atol=1e-4, rtol=0)


def test_penalty_has_no_scale() -> None:
    """The same data in other units, with weights that follow, costs the same."""
    torch.manual_seed(0)
    config = {"d_in": 8, "d_sae": 16, "hook_in": "resid_post.0", "input_norm": "scalar"}
    sae, x = StandardSAE(StandardConfig(**config)), torch.randn(500, 8)
    losses = []
    for scale in (1.0, 100.0):
        state = TrainingState()
        sae.initialize_from(x * scale, x * scale, state)
        losses.append(sae(x * scale, state=state).losses)
    for key in losses[0]:
        torch.testing.assert_close(losses[0][key], losses[1][key], rtol=1e-4, atol=0)


def test_warm_up() -> None:
    sae = StandardSAE(StandardConfig(d_in=4, d_sae=8, hook_in="resid_post.0", l1_warmup_share=0.5))
    x = torch.randn(30, 4)
    l1 = [sae(x, state=TrainingState(step=s, total_steps=8)).losses["l1"].item() for s in (0, 1, 3, 7)]
    torch.testing.assert_close(torch.tensor(l1) / l1[-1], torch.tensor([0.25, 0.5, 1.0, 1.0]))


def test_hand_computed_penalty() -> None:
    sae = StandardSAE(StandardConfig(d_in=2, d_sae=2, hook_in="resid_post.0", l1_coefficient=0.5, l1_warmup_share=0.0))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(2))
        sae.decoder.weight.copy_(2 * torch.eye(2))
    losses = sae(torch.tensor([[3.0, -1.0]]), state=TrainingState(normaliser=4.0)).losses
    # z = (3, 0), rows of norm 2: Σ z‖w‖ = 6, over sqrt(4), times 0.5; x̂ = (6, 0), error (−3, −1), 10 / 4
    assert losses["l1"].item() == 1.5
    assert losses["reconstruction"].item() == 2.5
    assert F.relu(sae.encoder(torch.tensor([[3.0, -1.0]]))).tolist() == [[3.0, 0.0]]
