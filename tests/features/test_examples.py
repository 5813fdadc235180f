from __future__ import annotations

import pytest
import torch

from hf_sae.data import TokenDataset
from hf_sae.errors import DataError
from hf_sae.features import Example, LatentExamples, describe_latent, top_contexts
from hf_sae.features.contexts import ABSENT, window_hashes

from .conftest import TEXTS


def every_activation(sae, host, tokenizer, texts, **options):
    """Brute force: per batch and row, the dense latents of every token, BOS and padding zeroed."""
    found = []
    for batch in TokenDataset(texts, tokenizer, **options):
        with torch.no_grad():
            out = host.model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
            latents = sae.encode(out.hidden_states[1]) * batch.keep[..., None]
        found += list(zip(batch.input_ids, batch.documents, batch.keep, latents, strict=True))
    return found


def expected_contexts(rows, latent, n, window):
    """The strongest token of each document in each row, equal windows once, strongest first."""
    found = []
    for ids, documents, _, latents in rows:
        for document in documents.unique().tolist():
            here = (documents == document) & (documents >= 0)
            values = torch.where(here, latents[:, latent], 0.0)
            if not values.any():
                continue
            peak = int(values.abs().argmax())
            around = [p for p in range(peak - window, peak + window + 1) if 0 <= p < len(ids) and here[p]]
            padded = [int(ids[p]) if p in around else ABSENT for p in range(peak - window, peak + window + 1)]
            tie = int(window_hashes(torch.tensor([padded]), torch.zeros(1, dtype=torch.long)))
            shown = [float(values[p]) for p in around]
            found.append((float(values[peak]), tuple(ids[around].tolist()), shown, document, tie))
    found.sort(key=lambda each: (-abs(each[0]), each[3], each[4]))  # of equals the earlier record, then by a hash
    kept, seen = [], set()
    for each in found:
        if each[1] not in seen:
            seen.add(each[1])
            kept.append(each)
    return kept[:n]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("window", [2, 12])
def test_contexts_are_those_of_brute_force(sae, host, tokenizer, sign, window) -> None:
    if sign < 0:
        decode = sae.encode_sparse
        sae.encode_sparse = lambda x: negated(decode(x))
    options = {"context_length": 24, "batch_size": 2}
    texts = [t + f"# {i}\n" for i, t in enumerate(TEXTS * 3)] + TEXTS
    rows = every_activation(sae, host, tokenizer, texts, **options)
    total = sum(int(keep.sum()) for _, _, keep, _ in rows)
    top = top_contexts(sae, host, tokenizer, texts, n_tokens=10**6, n_examples=4, window=window, **options)
    fires = sum((latents != 0).sum(0) for *_, latents in rows)
    assert list(top) == fires.nonzero().squeeze(1).tolist()
    for latent in top:
        got, expected = top[latent], expected_contexts(rows, latent, 4, window)
        assert got.tokens == total
        assert got.density == pytest.approx(float(fires[latent]) / total)
        assert got.maximum == pytest.approx(sign * expected[0][0], rel=1e-4)
        assert [e.token_ids for e in got.examples] == [list(e[1]) for e in expected]
        assert [e.document for e in got.examples] == [e[3] for e in expected]
        for example, (peak, _, activations, *_) in zip(got.examples, expected, strict=True):
            assert example.activations[example.peak] == pytest.approx(sign * peak, rel=1e-4)
            assert example.activations == pytest.approx([sign * a for a in activations], rel=1e-4, abs=1e-5)
            assert len(example.tokens) == len(example.token_ids)


def negated(code):
    code.values = -code.values
    return code


def test_only_the_latents_asked_for_are_kept_and_silent_ones_are_empty(sae, host, tokenizer) -> None:
    with torch.no_grad():
        sae.encoder.bias[7] = -1e4
    everything = top_contexts(sae, host, tokenizer, TEXTS, n_tokens=50, context_length=16)
    some = list(everything)[-1]
    top = top_contexts(sae, host, tokenizer, TEXTS, latents=[some, 7, some], n_tokens=50, context_length=16)
    assert list(top) == [some, 7]
    assert top[some] == everything[some]
    assert (top[7].examples, top[7].density, top[7].maximum) == ([], 0.0, 0.0)
    assert 7 not in everything
    assert describe_latent(top[7]).startswith("never fired in")
    assert top.store.windows.shape == (2, 10, 25)


def test_repeated_text_is_one_example(sae, host, tokenizer) -> None:
    top = top_contexts(
        sae, host, tokenizer, [TEXTS[0]] * 50, n_tokens=10**6, packed=False, context_length=32, batch_size=4
    )
    assert all(len(top[latent].examples) == 1 for latent in top)


def test_reading_stops_at_the_number_of_tokens(sae, host, tokenizer) -> None:
    top = top_contexts(sae, host, tokenizer, TEXTS * 10, n_tokens=40, context_length=16, batch_size=2)
    assert 40 <= next(iter(top.values())).tokens < 40 + 2 * 16


def test_examples_print_as_strips(sae, host, tokenizer) -> None:
    top = top_contexts(sae, host, tokenizer, TEXTS, n_tokens=100, context_length=32)
    text = str(next(iter(top.values())).examples[0])
    assert "]9*" in text
    assert "\n" not in text.replace("\n", "", 2)


def test_impossible_requests_say_why(sae, host, tokenizer) -> None:
    with pytest.raises(ValueError, match="d_sae=40"):
        top_contexts(sae, host, tokenizer, TEXTS, latents=[40])
    with pytest.raises(ValueError, match="n_examples=0"):
        top_contexts(sae, host, tokenizer, TEXTS, n_examples=0)
    with pytest.raises(DataError):
        top_contexts(sae, host, tokenizer, [])


def latent_of(*pairs: tuple[str, str]) -> LatentExamples:
    examples = [Example([before, at], [1, 2], [0.0, 1.0], 1, i, frozenset()) for i, (before, at) in enumerate(pairs)]
    return LatentExamples(3, examples, 0.1, 1.0, 500)


def test_a_latent_is_described_by_what_its_peaks_share() -> None:
    assert (
        describe_latent(latent_of(("(", "self"), (" ", " self"), (",", "Self"), ("a", "b"))) == "'self' 75% of 4 peaks"
    )
    assert describe_latent(latent_of(("def", " a"), ("def", " b"), ("def", " c"))) == "after 'def' 100% of 3 peaks"
    assert describe_latent(latent_of(("x", "a"), ("y", "b"), ("z", "c"))).startswith("mixed: ")
    assert describe_latent(latent_of(("x", "\x1b[2J"))) == "'\\x1b[2J' 100% of 1 peak"
    assert describe_latent(latent_of(("x", "\n"), ("y", "\n"))) == "'⏎' 100% of 2 peaks"
    assert describe_latent(latent_of()) == "never fired in 500 tokens"
