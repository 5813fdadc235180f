"""Search by direction, by prompt and by contrast, against brute force over dense latents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae.errors import ConfigError, DataError
from hf_sae.features.index import FeatureIndex
from hf_sae.features.manifest import SAESource
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.search.contrast import MAX_EFFECT
from hf_sae.features.search.filters import Filters
from hf_sae.features.search.firing import Maximum, Mean, TfIdf, Total
from hf_sae.features.writing import FeatureWriter
from tests.features.conftest import TEXTS
from tests.features.toy_features import feature


TEXT = "def close(self):\n\tself.file.close()"
ABSENT = 7  # a latent of which the dataset says nothing


@pytest.fixture
def index(tmp_path: Path) -> FeatureIndex:
    saes = {"layer_0": SAESource(d_sae=40, hook_in="resid_post.0", n_tokens=1000)}
    with FeatureWriter(tmp_path / "d", saes) as writer:
        rows = [feature("layer_0", i, density=i / 100, max_act=i / 2, nn_idx=[1, 2]) for i in range(40) if i != ABSENT]
        writer.append("features", rows)
    return FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), tmp_path / "c")


@pytest.fixture(autouse=True)
def lively(sae: Any) -> None:
    """Without biases, what fires depends on the token: the hidden states of the toy host are small."""
    with torch.no_grad():
        sae.encoder.bias.zero_()
        sae.decoder.bias.zero_()


def dense(sae: Any, host: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """`[tokens, d_sae]` without BOS."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return sae.encode(host.model(ids, output_hidden_states=True).hidden_states[1])[0, 1:].double()


def best(scores: torch.Tensor, n: int, size: torch.Tensor | None = None) -> dict[int, float]:
    order = (scores if size is None else size).argsort(descending=True, stable=True).tolist()
    return {j: float(scores[j]) for j in [j for j in order if j != ABSENT][:n]}


def found(hits: list[Any]) -> dict[int, float]:
    return {hit.feature: hit.score for hit in hits}


def same(given: dict[int, float], wanted: dict[int, float]) -> None:
    assert list(given) == list(wanted)
    assert given == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_by_direction_is_the_cosine_with_every_row(index: FeatureIndex, sae: Any):
    with torch.no_grad():
        sae.decoder.weight[3] = 0
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    rows = sae.decoder.weight.detach()
    expected = torch.tensor([float(vector @ row / (vector.norm() * row.norm())) if row.any() else 0.0 for row in rows])
    same(found(index.by_direction(vector * 100, sae, limit=40)), best(expected, 40))
    same(found(index.by_direction(vector.tolist(), sae.to(torch.float64), "layer_0", limit=5)), best(expected, 5))
    (hit,) = index.by_direction(rows[12], sae, limit=1)
    assert (hit.feature, hit.reasons[0].kind) == (12, "direction")
    assert hit.reasons[0].value == pytest.approx(1)
    rare = index.by_direction(vector, sae, filters=Filters(max_density=0.1), limit=40)
    same(found(rare), {j: v for j, v in best(expected, 40).items() if j <= 10})
    for wrong, message in (
        (torch.zeros(16), "zero"),
        (torch.full((16,), torch.nan), "finite"),
        ([1.0], r"shape \[1\]"),
    ):
        with pytest.raises(DataError, match=message):
            index.by_direction(wrong, sae)


def test_by_prompt_sorts_in_four_ways(index: FeatureIndex, sae: Any, host: Any, tokenizer: Any):
    latents = dense(sae, host, tokenizer, TEXT).abs()
    peak, total = latents.amax(0), latents.sum(0)
    recorded = torch.arange(40).double() / 2
    density = (torch.arange(40) / 100).clamp(min=0.0005)
    weights = torch.tensor([-math.log(d) for d in density.tolist()])
    tf_idf = peak / torch.maximum(peak, recorded).clamp(min=1e-9) * weights
    fires = int((peak > 0).sum()) - int(peak[ABSENT] > 0)
    assert 15 < fires < 40
    for order, scores in (
        (Maximum(), peak),
        (Total(), total),
        (Mean(), total / len(latents)),
        (TfIdf(), tf_idf),
        (None, tf_idf),
    ):
        hits = index.by_prompt(TEXT, host, tokenizer, sae, order=order, limit=40)
        same(found(hits), best(scores, fires))


def test_by_prompt_says_where(index: FeatureIndex, sae: Any, host: Any, tokenizer: Any):
    encode = sae.encode_sparse
    latents = dense(sae, host, tokenizer, TEXT)
    tokens = [tokenizer.decode([i]) for i in tokenizer(TEXT)["input_ids"]][1:]
    for sign in (1, -1):

        def signed(x: torch.Tensor, sign: int = sign) -> Any:
            code = encode(x)
            code.values = code.values * sign
            return code

        sae.encode_sparse = signed
        for hit in index.by_prompt(TEXT, host, tokenizer, sae, order=Maximum(), limit=5):
            (reason,) = hit.reasons
            column = latents[:, hit.feature]
            assert reason.kind == "fires here"
            assert reason.value == pytest.approx(sign * float(column.max()), rel=1e-5)
            ((start, end),) = reason.spans
            assert reason.snippet[start:end] == tokens[int(column.argmax())]
            assert reason.snippet in "<|bos|>" + TEXT


def test_by_contrast_is_cohens_d_over_tokens(index: FeatureIndex, sae: Any, host: Any, tokenizer: Any):
    a, b = (torch.cat([dense(sae, host, tokenizer, t) for t in texts]) for texts in (TEXTS[:2], TEXTS[2:]))
    pooled = (((a - a.mean(0)) ** 2).sum(0) + ((b - b.mean(0)) ** 2).sum(0)) / (len(a) + len(b) - 2)
    difference = a.mean(0) - b.mean(0)
    expected = torch.where(difference != 0, difference / pooled.sqrt(), 0.0)
    n = int((expected != 0).sum()) - int(expected[ABSENT] != 0)
    assert n > 20
    given = index.by_contrast(iter(TEXTS[:2]), TEXTS[2:], host, tokenizer, sae, limit=40)
    same(found(given), best(expected, n, expected.abs()))
    swapped = found(index.by_contrast(TEXTS[2:], TEXTS[:2], host, tokenizer, sae, limit=3))
    same(swapped, {j: -v for j, v in best(expected, 3, expected.abs()).items()})
    hit = given[0]
    assert hit.reasons[0].snippet.startswith(f"mean {a.mean(0)[hit.feature]:.3g} in texts_a")
    assert index.by_contrast(TEXTS, TEXTS, host, tokenizer, sae) == [], "no difference"


def test_a_latent_that_never_varies_within_the_sets_has_a_bounded_effect(
    index: FeatureIndex, sae: Any, host: Any, tokenizer: Any
):
    encode = sae.encode_sparse

    def constant(x: torch.Tensor) -> Any:
        code = encode(x)
        code.values, code.indices = torch.full((len(x), 1), 0.1 + 0.2 * (len(x) > 17)), torch.full((len(x), 1), 5)
        return code

    lengths = [len(dense(sae, host, tokenizer, text)) for text in TEXTS]
    long, short = TEXTS[lengths.index(max(lengths))], "def"
    sae.encode_sparse = constant
    assert found(index.by_contrast([long, long], [short, short], host, tokenizer, sae)) == {5: MAX_EFFECT}


def test_impossible_requests_say_why(index: FeatureIndex, sae: Any, host: Any, tokenizer: Any, tmp_path: Path):
    with pytest.raises(DataError, match="empty"):
        index.by_prompt("", host, tokenizer, sae)
    with pytest.raises(DataError, match="the host reads 64"):
        index.by_prompt("x" * 1000, host, tokenizer, sae)
    with pytest.raises(DataError, match="texts_a= is one text"):
        index.by_contrast("a text", ["b"], host, tokenizer, sae)
    with pytest.raises(DataError, match="texts_b= has 0 tokens"):
        index.by_contrast(["def close"], [], host, tokenizer, sae)
    with pytest.raises(ConfigError, match="Did you mean 'layer_0'"):
        index.by_prompt(TEXT, host, tokenizer, sae, "layer_1")
    with pytest.raises(ConfigError, match="1 to 1000"):
        index.by_prompt(TEXT, host, tokenizer, sae, limit=0)
    sae.config.d_sae = 41
    with pytest.raises(ConfigError, match="40 latents, and the autoencoder 41"):
        index.by_direction(torch.ones(16), sae)
    saes = {name: SAESource(d_sae=40) for name in ("a", "b")}
    FeatureWriter(tmp_path / "two", saes).__enter__().__exit__(None, None, None)
    with pytest.raises(ConfigError, match="one of 'a', 'b'"):
        FeatureIndex.open(FeatureDataset.open(tmp_path / "two"), tmp_path / "c").by_direction(torch.ones(16), sae)
