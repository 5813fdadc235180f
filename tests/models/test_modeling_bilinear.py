"""The bilinear encoder: products of two linear maps, and their spectra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import BilinearConfig, BilinearSAE, ConfigError, TopKConfig, TrainingState
from hf_sae.models.modeling_bilinear import eigenfeatures, interactions
from tests.models.fitting import fitted


def small(**changes) -> BilinearSAE:
    torch.manual_seed(0)
    sae = BilinearSAE(BilinearConfig(**{"d_in": 6, "d_sae": 24, "k": 24} | changes)).double()
    with torch.no_grad():
        sae.decoder.bias.normal_()
    return sae


def by_formula(sae: BilinearSAE, x: Tensor) -> Tensor:
    x = x - sae.decoder.bias
    return (x @ sae.encoder.left.weight.T) * (x @ sae.encoder.right.weight.T)


def test_the_largest_products_are_kept_with_their_signs() -> None:
    sae, x = small(k=20).eval(), torch.randn(50, 6, dtype=torch.double)
    u = by_formula(sae, x)
    kept = u.topk(20)
    expected = torch.zeros_like(u).scatter(1, kept.indices, kept.values)
    assert (expected < 0).any(), "no ReLU"
    torch.testing.assert_close(sae.encode(x), expected)
    torch.testing.assert_close(sae(x, state=TrainingState()).code.to_dense(), expected)


def test_the_gradient_is_that_of_the_formula() -> None:
    sae, x = small(k=3), torch.randn(50, 6, dtype=torch.double)
    sae(x, state=TrainingState()).losses["reconstruction"].backward()
    fast = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    u = by_formula(sae, x)
    z = torch.zeros_like(u).scatter(1, u.topk(3).indices, u.topk(3).values)
    (x - z @ sae.decoder.weight - sae.decoder.bias).square().sum(-1).mean().backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(fast[name], parameter.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_hooks_on_a_map_are_called_in_training() -> None:
    sae, x, calls = small(k=3), torch.randn(5, 6, dtype=torch.double), []
    expected = sae(x, state=TrainingState()).loss
    sae.encoder.right.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(sae(x, state=TrainingState()).loss, expected)
    assert calls


def test_without_a_bias_the_sign_of_the_input_does_not_matter() -> None:
    sae, x = small().eval(), torch.randn(50, 6, dtype=torch.double)
    with torch.no_grad():
        assert not torch.allclose(sae.encode(x), sae.encode(-x))
        sae.decoder.bias.zero_()
        assert torch.equal(sae.encode(x), sae.encode(-x))


def test_a_latent_is_its_spectrum() -> None:
    sae, x = small().eval(), torch.randn(50, 6, dtype=torch.double)
    form = sae.quadratic_form(list(range(24)))
    assert torch.equal(form, form.mT)
    values, vectors = eigenfeatures(form)
    centred = x - sae.decoder.bias
    with torch.no_grad():
        expected = sae.encode(x)
    again = (values * (vectors @ centred.T).permute(2, 0, 1).square()).sum(-1)
    torch.testing.assert_close(again, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.einsum("td,nde,te->tn", centred, form, centred), expected, atol=1e-10, rtol=0)
    # one product of two maps has two eigenvalues, (a · c ± |a| |c|) / 2
    a, c = sae.encoder.left.weight, sae.encoder.right.weight
    inner, outer = (a * c).sum(-1), a.norm(dim=-1) * c.norm(dim=-1)
    pair = torch.stack([(inner + outer) / 2, (inner - outer) / 2], -1)
    torch.testing.assert_close(values[:, :2].sort().values, pair.sort().values, atol=1e-10, rtol=0)
    assert values[:, 2:].abs().max() < 1e-10
    assert sae.quadratic_form(3).shape == (6, 6)


def test_a_direction_of_the_output_is_its_spectrum() -> None:
    sae, x = small().eval(), torch.randn(50, 6, dtype=torch.double)
    direction = torch.randn(6, dtype=torch.double)
    values, vectors = eigenfeatures(sae.quadratic_form_of(direction))
    assert (values.abs().diff() <= 0).all()
    again = (values * ((x - sae.decoder.bias) @ vectors.T).square()).sum(-1)
    with torch.no_grad():
        expected = (sae(x).reconstruction - sae.decoder.bias) @ direction
    torch.testing.assert_close(again, expected, atol=1e-10, rtol=1e-10)


def test_forms_of_an_adapted_encoder_are_the_adapted_ones() -> None:
    from peft import LoraConfig, get_peft_model

    sae, x = small().float().eval(), torch.randn(50, 6)
    get_peft_model(sae, LoraConfig(target_modules=["left", "right"], r=2, init_lora_weights=False)).eval()
    centred = x - sae.decoder.bias
    with torch.no_grad():
        expected = sae.pre_activations(x)[:, 5]
    torch.testing.assert_close(((centred @ sae.quadratic_form(5)) * centred).sum(-1), expected, atol=1e-4, rtol=1e-4)


def test_interactions_of_latents_through_a_bilinear_mlp() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, out, atoms, read, sizes = (
        torch.randn(shape, generator=generator, dtype=torch.double)
        for shape in ((16, 6), (16, 6), (5, 16), (9, 6), (3, 5), (40, 9))
    )
    table = interactions(read, (left, right, out), atoms)
    assert table.shape == (3, 9, 9)
    assert torch.equal(table, table.mT)
    x = sizes @ atoms
    y = ((x @ left.T) * (x @ right.T)) @ out.T
    again = torch.einsum("ta,tb,nab->tn", sizes, sizes, table)
    torch.testing.assert_close(again, y @ read.T, atol=1e-10, rtol=1e-10)


def test_auxk_reaches_dead_latents_only() -> None:
    sae = small(k=2).float()
    state = TrainingState(dead_after_tokens=10)
    state.tokens_since_fired = torch.zeros(24, dtype=torch.long)
    state.tokens_since_fired[[13, 14]] = 11
    losses = sae(torch.randn(64, 6), state=state).losses
    losses["auxk"].backward()
    for parameter in (sae.decoder.weight, sae.encoder.left.weight, sae.encoder.right.weight):
        assert parameter.grad.abs().sum(-1).nonzero().squeeze(1).tolist() == [13, 14]


def test_the_two_maps_of_a_latent_start_apart_and_scaled() -> None:
    sae = BilinearSAE(BilinearConfig(d_in=64, d_sae=256, k=16))
    rows = [F.normalize(layer.weight, dim=-1) for layer in (sae.encoder.left, sae.encoder.right)]
    assert 0.3 < float((rows[0] * rows[1]).detach().sum(-1).mean()) < 0.7
    x = 5 * torch.randn(2000, 64) + 3
    sae.initialize_from(x, x, TrainingState())
    with torch.no_grad():
        first = sae(x).reconstruction - sae.decoder.bias
    torch.testing.assert_close(first.square().sum(-1).mean(), (x - x.mean(0)).square().sum(-1).mean())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="k=25"):
        BilinearConfig(d_in=6, d_sae=24, k=25)
    for latents in (24, [0, -1]):
        with pytest.raises(ConfigError, match="between 0 and d_sae - 1 = 23"):
            small().quadratic_form(latents)
    with pytest.raises(ConfigError, match=r"direction is \[7\]"):
        small().quadratic_form_of(torch.ones(7))
    with pytest.raises(ConfigError, match=r"encoder\.left, encoder\.right"):
        _ = small().W_enc


def products(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian inputs; targets are sums of the 3 largest of 24 products, each with a direction."""
    fixed = torch.Generator().manual_seed(5)
    a, c, atoms = (F.normalize(torch.randn(24, d, generator=fixed), dim=-1) for d in (16, 16, 32))
    x = torch.randn(n, 16, generator=generator)
    u = (x @ a.T) * (x @ c.T)
    top = u.topk(3)
    return x, torch.zeros_like(u).scatter(-1, top.indices, top.values) @ atoms


def test_it_fits_products_better_than_a_linear_encoder() -> None:
    shared = {"d_in": 16, "d_out": 32, "hook_in": "mlp_in.0", "hook_out": "mlp_out.0", "k": 3}
    # 48 rows of one linear map are as many as 24 of two
    configs = (BilinearConfig(**shared, d_sae=24), TopKConfig(**shared, d_sae=48))
    (_, fvu), (_, linear) = (fitted(config, products, steps=300, lr=1e-2) for config in configs)
    assert fvu < linear - 0.06
