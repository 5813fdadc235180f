"""Latents below zero fire too: what is counted, kept and shown of a latent that has two ends."""

from __future__ import annotations

import pytest
import torch

from hf_sae.commands.inspect import _stats
from hf_sae.data import TokenBatch
from hf_sae.evaluation.trial import Trial
from hf_sae.features import Example, LatentExamples, describe_latent, top_contexts
from hf_sae.features.contexts import ContextStore
from hf_sae.hub.examples import for_card
from hf_sae.models import AbsTopKConfig, AbsTopKSAE, SparseCode
from hf_sae.steering import add, clamp

from .conftest import TEXTS


D_SAE, N = 3, 5


def stream(seed: int = 0) -> tuple[TokenBatch, torch.Tensor]:
    """40 documents of 6 tokens, no two windows alike, and signed latents; those below zero are far weaker."""
    torch.manual_seed(seed)
    ids = torch.arange(240).view(40, 6)
    values = torch.randn(240, D_SAE)
    values = torch.where(values < 0, 0.01 * values, values) * (torch.rand(240, D_SAE) < 0.3)
    values[:, 1] = values[:, 1].abs()  # one end only
    values[values[:, 2].argsort()[2:], 2] = values[:, 2].abs()[values[:, 2].argsort()[2:]]  # two below zero
    mask = torch.ones_like(ids)
    documents = torch.arange(40)[:, None].expand(40, 6).contiguous()
    return TokenBatch(ids, mask, mask.bool(), documents), values


def fill(store: ContextStore, batch: TokenBatch, values: torch.Tensor, rows: torch.Tensor) -> ContextStore:
    part = TokenBatch(*(getattr(batch, name)[rows] for name in ("input_ids", "attention_mask", "keep", "documents")))
    of = values.view(40, 6, D_SAE)[rows].flatten(0, 1)
    tokens, latents = of.nonzero(as_tuple=True)
    store.add(part, tokens, latents, of[tokens, latents])
    return store


def empty() -> ContextStore:
    return ContextStore(torch.arange(D_SAE), D_SAE, N, 2)


def expected(values: torch.Tensor, latent: int) -> list[float]:
    """Strongest first: per document the peak of either sign; each sign keeps half of the places if it needs them."""
    by_document = values[:, latent].view(40, 6)
    up = sorted((float(v) for v in by_document.amax(1) if v > 0), reverse=True)
    down = sorted(float(v) for v in by_document.amin(1) if v < 0)
    both = up[: N - min(len(down), N // 2)] + down[: N - min(len(up), N // 2)]
    return sorted(both, key=lambda v: -abs(v))[:N]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_both_ends_are_kept_however_the_text_was_split(size: int) -> None:
    batch, values = stream()
    for order in (torch.arange(40), torch.arange(39, -1, -1), torch.randperm(40)):
        store = empty()
        for rows in order.split(size):
            fill(store, batch, values, rows)
        for latent in range(D_SAE):
            assert store.values[latent].tolist() == pytest.approx(expected(values, latent)), latent
    signs = [(store.values[latent] < 0).sum() for latent in range(D_SAE)]
    assert signs == [2, 0, 2]


def test_merged_stores_are_one_pass() -> None:
    batch, values = stream()
    whole = fill(empty(), batch, values, torch.arange(40))
    halves = [fill(empty(), batch, values, rows) for rows in (torch.arange(20, 40), torch.arange(20))]
    halves[0].merge(halves[1])
    for name in ("values", "windows", "activations", "documents", "fired"):
        assert torch.equal(getattr(halves[0], name), getattr(whole, name)), name


def signed(host) -> AbsTopKSAE:
    torch.manual_seed(0)
    width = host.config.hidden_size
    return AbsTopKSAE(AbsTopKConfig(d_in=width, d_sae=40, k=4, hook_in="resid_post.0")).eval()


def test_contexts_of_a_signed_autoencoder_show_both_tails(host, tokenizer) -> None:
    texts = [t + f"# {i}\n" for i, t in enumerate(TEXTS * 3)]
    top = top_contexts(signed(host), host, tokenizer, texts, n_tokens=10**6, n_examples=6, context_length=24)
    two = [found for found in top.values() if len(found.ends()) == 2]
    assert two
    for found in two:
        stronger, weaker = found.ends()
        assert abs(found.maximum) == max(abs(a) for e in found.examples for a in e.activations)
        assert {e.is_negative for e in stronger} != {e.is_negative for e in weaker}
        assert {e.is_negative for e in found.strongest(2)} == {True, False}
        shown = [c["activations"] for c in for_card(found)["contexts"]]
        assert min(map(min, shown)) < 0 < max(map(max, shown))


def test_description_names_each_end() -> None:
    up = [Example(["a", "king"], [1, 2], [0.0, 3.0 - i], 1, i, frozenset()) for i in range(3)]
    down = [Example(["a", "queen"], [1, 3], [0.0, -1.0], 1, 9 + i, frozenset()) for i in range(2)]
    found = LatentExamples(0, up + down, 0.1, 3.0, 100)
    assert describe_latent(found) == "'king' 100% of 3 peaks; other sign: 'queen' 100% of 2 peaks"
    assert [len(end) for end in found.ends()] == [3, 2]


def test_statistics_keep_the_sign_and_count_negative_firing() -> None:
    sae = signed_small()
    trial = Trial(sae, "resid_post.0", "resid_post.0", tokens=2)
    trial.record(SparseCode(torch.tensor([[1.0, -4.0], [-2.0, 0.0]]), torch.tensor([[0, 1], [0, 1]]), None, 4))
    trial.norms.append(torch.ones(2))
    stats = trial.feature_stats()
    assert stats["density"].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert stats["maximum"].tolist() == [-2.0, -4.0, 0.0, 0.0]
    sae.feature_stats = stats
    assert _stats(sae)["largest_maximum"] == -4.0


def signed_small() -> AbsTopKSAE:
    return AbsTopKSAE(AbsTopKConfig(d_in=2, d_sae=4, k=2, hook_in="resid_post.0"))


def test_a_clamp_that_only_raises_goes_the_way_of_its_value() -> None:
    z = torch.tensor([[-3.0], [-1.0], [0.0], [1.0], [3.0]])
    for value, after in ((2.0, [2, 2, 2, 2, 3]), (-2.0, [-3, -2, -2, -2, -2]), (0.0, [0, 0, 0, 1, 3])):
        edit = clamp({0: value}, only_raise=True)
        assert (z + edit.delta(z, torch.tensor([value]))).flatten().tolist() == after
    assert add({0: -1.0}).delta(z, torch.tensor([-1.0])).flatten().tolist() == [-1.0] * 5
