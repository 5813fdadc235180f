"""KronSAE: conjunctions of pre-latents, against Kronecker products and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import ConfigError, KronConfig, KronSAE, TopKConfig, TopKSAE, TrainingState
from hf_sae.models.modeling_kron import MAX_SLOPE
from tests.models.fitting import fitted


def small(**changes) -> KronSAE:
    torch.manual_seed(0)
    sae = KronSAE(KronConfig(**{"d_in": 6, "d_sae": 24, "heads": 2, "base": 3, "extension": 4, "k": 24} | changes))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name.startswith("encoder."):
                parameter.normal_()
        sae.decoder.bias.normal_()
    return sae.double()


def pre_latents(sae: KronSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rectified, `[tokens, h, m]` and `[tokens, h, n']`."""
    x, (h, m, n) = x - sae.decoder.bias, sae.config.shape
    p = x @ sae.encoder.p.weight.T + sae.encoder.p.bias
    q = x @ sae.encoder.q.weight.T + sae.encoder.q.bias
    return torch.relu(p).view(-1, h, m), torch.relu(q).view(-1, h, n)


def test_latents_are_the_roots_of_kronecker_products() -> None:
    sae = small().eval()
    x = torch.randn(20, 6, dtype=torch.double)
    p, q = pre_latents(sae, x)
    expected = torch.stack([torch.cat([torch.kron(p[t, k], q[t, k]).sqrt() for k in range(2)]) for t in range(20)])
    torch.testing.assert_close(sae.encode(x), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(sae.pre_activations(x), expected, atol=1e-12, rtol=1e-12)
    assert 0.1 < (expected > 0).double().mean() < 0.4


def test_a_latent_fires_where_both_of_its_pre_latents_do() -> None:
    sae = small().eval()
    x = torch.randn(50, 6, dtype=torch.double)
    p, q = pre_latents(sae, x)
    support = (p > 0).unsqueeze(-1) & (q > 0).unsqueeze(-2)
    assert torch.equal(sae.encode(x) != 0, support.flatten(1)), "nothing else fires, not by an epsilon either"
    assert torch.equal(sae.encode_sparse(x).counts(), support.flatten(1).sum(1))


def test_trained_and_inferred_codes_are_those_of_all_pairs() -> None:
    """With gradients only the chosen pairs are in the graph; the code is the same."""
    sae = small(k=3)
    x = torch.randn(20, 6, dtype=torch.double)
    trained = sae(x, state=TrainingState()).code.to_dense()
    with torch.no_grad():
        torch.testing.assert_close(trained, sae.encode(x))
        kept = sae.pre_activations(x).topk(3).values
    torch.testing.assert_close(trained.topk(3).values, kept)


def test_the_gradient_is_that_of_the_formula_over_all_pairs() -> None:
    sae = small(k=3)
    x = torch.randn(20, 6, dtype=torch.double)
    sae(x, state=TrainingState()).losses["reconstruction"].backward()
    fast = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    p, q = pre_latents(sae, x)
    products = (p.unsqueeze(-1) * q.unsqueeze(-2)).flatten(1)
    chosen = products.topk(3).indices
    z = torch.zeros_like(products).scatter(1, chosen, products.gather(1, chosen).clamp_min(1e-300).sqrt())
    z = torch.where(products > 0, z, 0)
    (x - z @ sae.decoder.weight - sae.decoder.bias).square().sum(-1).mean().backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(fast[name], parameter.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_the_slope_at_zero_is_finite() -> None:
    sae = small(k=24)
    for tiny in (0.0, 1e-30, 1e-12):  # all base pre-latents as close to 0, all extension ones at 1
        with torch.no_grad():
            for layer, bias in ((sae.encoder.p, tiny), (sae.encoder.q, 1.0)):
                layer.weight.zero_()
                layer.bias.fill_(bias)
        sae.zero_grad()
        latents = sae(torch.randn(1, 6, dtype=torch.double), state=TrainingState()).code.to_dense()
        torch.testing.assert_close(latents, torch.full_like(latents, tiny**0.5))
        latents.sum().backward()
        # a base pre-latent is in 4 pairs
        slope = torch.full((6,), 4 * MAX_SLOPE if tiny else 0.0, dtype=torch.double)
        torch.testing.assert_close(sae.encoder.p.bias.grad, slope)
        assert torch.isfinite(sae.encoder.q.bias.grad).all()


def test_auxk_reaches_the_parents_of_dead_latents_and_no_live_row() -> None:
    sae, x = small(k=2).float(), torch.randn(64, 6)
    with torch.no_grad():  # every pre-latent is positive on some tokens
        for bias in (sae.encoder.p.bias, sae.encoder.q.bias, sae.decoder.bias):
            bias.zero_()
    state = TrainingState(dead_after_tokens=10)
    state.tokens_since_fired = torch.zeros(24, dtype=torch.long)
    dead = torch.tensor([13, 14])  # head 1, base 0: extensions 1 and 2
    state.tokens_since_fired[dead] = 11
    losses = sae(x, state=state).losses
    assert set(losses) == {"reconstruction", "auxk"}
    losses["auxk"].backward()

    def rows(parameter: Tensor) -> list[int]:
        return parameter.grad.abs().sum(-1).nonzero().squeeze(1).tolist()

    assert rows(sae.decoder.weight) == [13, 14]
    assert rows(sae.encoder.p.weight) == [3]
    assert rows(sae.encoder.q.weight) == [5, 6]


def test_the_encoder_has_the_rows_of_the_factors() -> None:
    sae = small()
    assert sum(p.numel() for p in sae.encoder.parameters()) == 2 * (3 + 4) * (6 + 1)
    full = TopKSAE(TopKConfig(d_in=6, d_sae=24, k=2))
    assert sum(p.numel() for p in full.encoder.parameters()) == 24 * 7


def test_decoder_rows_start_at_the_sums_of_their_parents() -> None:
    sae = KronSAE(KronConfig(d_in=6, d_sae=24, heads=2, base=3, extension=4, k=4))
    p, q = sae.encoder.p.weight.view(2, 3, 1, 6), sae.encoder.q.weight.view(2, 1, 4, 6)
    torch.testing.assert_close(sae.decoder.weight, F.normalize(p + q, dim=-1).view(24, 6))
    assert abs(float(KronSAE(KronConfig(d_sae=4096)).encoder.q.weight.detach().std()) - 8192**-0.5) < 1e-4


def test_a_scaled_encoder_gives_scaled_latents() -> None:
    """Before training the latents get the least-squares length: one further factor changes nothing."""
    sae = KronSAE(KronConfig(d_in=16, d_sae=64, k=8))
    x = 5 * torch.randn(2000, 16) + 1
    sae.initialize_from(x, x, TrainingState())
    with torch.no_grad():
        out = sae(x).reconstruction - sae.decoder.bias
        best = (out * (x - sae.decoder.bias)).sum() / out.square().sum()
    torch.testing.assert_close(best, torch.tensor(1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"d_sae": 12288}, (1536, 2, 4)),
        ({"d_sae": 30}, (5, 2, 3)),
        ({"d_sae": 7}, (7, 1, 1)),
        ({"d_sae": 24, "heads": 3}, (3, 2, 4)),
        ({"d_sae": 48, "heads": 3, "base": 4}, (3, 4, 4)),
        ({"d_sae": 48, "extension": 8}, (3, 2, 8)),
        ({"d_sae": 48, "base": 4, "extension": 4}, (3, 4, 4)),
    ],
)
def test_sizes_left_open_follow_from_the_others(given: dict, shape: tuple) -> None:
    config = KronConfig(**given, k=2)
    assert config.shape == shape
    assert KronSAE(config).encoder.p.weight.shape[0] == shape[0] * shape[1]
    assert config.replace(**given, provenance={}).shape == shape


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"heads": 5}, "heads=5 do not multiply to d_sae=24"),
        ({"heads": 2, "base": 2, "extension": 4}, "multiply to d_sae=24"),
        ({"base": 0}, "base=0 must be between 1"),
        ({"extension": 48}, "extension=48"),
        ({"k": 25}, "k=25"),
        ({"aux_coefficient": -1.0}, "aux_coefficient"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        KronConfig(**{"d_sae": 24, "k": 4} | given)


def test_there_is_no_encoder_matrix_and_the_error_says_what_there_is() -> None:
    for name in ("W_enc", "b_enc"):
        with pytest.raises(ConfigError, match=r"KronSAE has no encoder matrix .* encoder\.p, encoder\.q"):
            getattr(small(), name)


def conjunctions(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two of 8 heads are on, each in one of its 2 · 4 pairs, whose atom is half its parents' and half its own."""
    fixed = torch.Generator().manual_seed(5)
    shapes = ((8, 2, 1, 64), (8, 1, 4, 64), (8, 2, 4, 64))
    p, q, own = (F.normalize(torch.randn(shape, generator=fixed), dim=-1) for shape in shapes)
    atoms = F.normalize(p + q + own, dim=-1).view(64, 64)
    heads = torch.rand(n, 8, generator=generator).topk(2).indices
    pairs = heads * 8 + torch.randint(8, (n, 2), generator=generator)
    sizes = 0.5 + torch.rand(n, 2, 1, generator=generator)
    x = (sizes * atoms[pairs]).sum(1)
    return x, x


def test_it_fits_conjunctions_better_than_topk_at_equal_encoder_parameters() -> None:
    kron = KronConfig(d_in=64, d_sae=64, heads=8, base=2, extension=4, k=2)
    topk = TopKConfig(d_in=64, d_sae=48, k=2)
    (ours, fvu), (theirs, baseline) = (fitted(c, conjunctions, steps=250, lr=2e-2) for c in (kron, topk))
    assert sum(p.numel() for p in ours.encoder.parameters()) == sum(p.numel() for p in theirs.encoder.parameters())
    assert fvu < baseline - 0.045


def test_what_reads_encoder_matrices_elsewhere_does_without_one() -> None:
    from hf_sae.conversion.writing import write
    from hf_sae.errors import ConversionError
    from hf_sae.evaluation.readings import _changes, _variant
    from hf_sae.training import SAETrainingArguments
    from hf_sae.training.estimate.machine import _reduced

    sae, x = small(heads=2).float().eval(), torch.randn(20, 6)
    changes = list(_changes(sae, x, True))
    names = [name for name, _, _ in changes]
    assert "decoder transposed" in names
    assert not [name for name in names if "encoder" in name]
    assert all(_variant(sae, config, weights)(x).reconstruction.shape == (20, 6) for _, config, weights in changes)
    with pytest.raises(ConversionError, match="KronSAE"):
        write(sae, "nowhere", "saelens")
    wide = KronConfig(d_in=6, d_sae=49152, heads=8192, base=2, extension=3)
    less, _ = _reduced(wide, SAETrainingArguments(output_dir="none"))
    assert less.d_sae < 49152, "measured on fewer latents, of which the given factors need be none"
