"""A harvest against counting by hand, on a host whose activations are a table: latent j on token t is `TABLE[t, j]`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae.data import TokenDataset
from hf_sae.errors import DataError, HookPointError
from hf_sae.features import corpus_pass, top_contexts
from hf_sae.features import harvest as harvesting
from hf_sae.features.harvest import harvest
from hf_sae.features.latent_state import ExampleCounts, LatentState, kept_bytes
from hf_sae.features.reading import FeatureDataset
from hf_sae.models import StandardConfig, StandardSAE, TopKConfig, TopKSAE
from tests import toy_text

from . import conftest


WIDTH, LATENTS, DEAD = 128, 40, 7
OPTIONS: dict[str, Any] = {"context_length": 32, "batch_size": 4, "progress": False}
COUNTS = ExampleCounts(top=6, random=5, bins=3, per_bin=4, zero=5, window=4, pool=64)


def make_table(seed: int = 0) -> torch.Tensor:
    """`[tokens, latents]`: the first latents fire on one token each, the others on several, one on none."""
    torch.manual_seed(seed)
    table = torch.rand(WIDTH, LATENTS) * 10 * (torch.rand(WIDTH, LATENTS) < 0.15)
    table[:, :5] = 0
    table[range(20, 25), range(5)] = torch.arange(1.0, 6.0)
    table[:, DEAD] = 0
    return table


def make_host() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=toy_text.FIRST_WORD + toy_text.WORDS, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    host = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        host.get_input_embeddings().weight.zero_()[:WIDTH].copy_(torch.eye(WIDTH))
        host.model.norm.weight.uniform_(0.5, 2)
    return host


def make_sae(table: torch.Tensor, **fields: Any) -> StandardSAE:
    sae = StandardSAE(StandardConfig(d_in=WIDTH, d_sae=table.shape[1], hook_in="embed", **fields)).eval()
    with torch.no_grad():
        sae.encoder.weight.copy_(table.T)
        sae.encoder.bias.zero_()
        sae.decoder.weight.copy_(DECODER)
    return sae


def make_texts() -> list[str]:
    rng = random.Random(0)
    return [toy_text.word(*(rng.randrange(100) for _ in range(rng.randrange(5, 50)))) for _ in range(60)]


DECODER = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(4))
TABLE, HOST, TOKENIZER, TEXTS = make_table(), make_host(), toy_text.tokenizer(), make_texts()


def gather(folder: Path, sae: Any = None, **options: Any) -> FeatureDataset:
    sae = make_sae(TABLE) if sae is None else sae
    return harvest(sae, HOST, TOKENIZER, TEXTS, folder, n_tokens=10**6, examples=COUNTS, **OPTIONS | options)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> FeatureDataset:
    return gather(tmp_path_factory.mktemp("harvest") / "out")


@pytest.fixture(scope="module")
def read() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Activations `[tokens, latents]` of all kept tokens, and the same in parts, one for each document in each row."""
    parts = []
    for batch in TokenDataset(TEXTS, TOKENIZER, context_length=32, batch_size=4):
        for ids, documents, keep in zip(batch.input_ids, batch.documents, batch.keep, strict=True):
            for document in documents[keep].unique().tolist():
                parts.append(TABLE[ids[keep & (documents == document)]])
    return torch.cat(parts), parts


def facts(dataset: FeatureDataset, latent: int, sae_id: str = "sae") -> dict[str, Any]:
    return dataset.feature(sae_id, latent).facts


def of_kind(dataset: FeatureDataset, latent: int, *kinds: str, sae_id: str = "sae") -> list[dict[str, Any]]:
    return [e for e in dataset.feature(sae_id, latent).examples if e["kind"] in kinds]


def test_every_row_is_as_the_schema_says(dataset: FeatureDataset, read: Any):
    dataset.validate()
    assert dataset.manifest.rows("features") == LATENTS
    assert dataset.saes["sae"].n_tokens == dataset.data["n_tokens"] == len(read[0])


def test_statistics_are_those_of_counting(dataset: FeatureDataset, read: Any):
    for latent in range(LATENTS):
        row, values = facts(dataset, latent), read[0][:, latent]
        values = values[values != 0]
        assert row["n_fired"] == len(values)
        assert row["density"] == pytest.approx(len(values) / len(read[0]), rel=1e-12)
        if latent == DEAD:
            assert (row["max_act"], row["mean_act"], row["hist_counts"], row["hist_edges"]) == (0, 0, [], [])
            continue
        assert row["max_act"] == pytest.approx(float(values.max()), rel=1e-6)
        assert row["mean_act"] == pytest.approx(float(values.mean()), rel=1e-5)
        edges = np.array(row["hist_edges"])
        assert edges[0] == 0
        assert 33 <= len(edges) <= 65  # the strongest is in the upper half of 64 bins
        assert row["hist_counts"] == np.histogram(values.numpy().astype(np.float64), edges)[0].tolist()
        assert sum(row["hist_counts"]) == len(values)


def test_top_examples_are_those_of_top_contexts(dataset: FeatureDataset):
    top = top_contexts(
        make_sae(TABLE), HOST, TOKENIZER, TEXTS, n_tokens=10**6, n_examples=6, window=4, split="test", **OPTIONS
    )
    for latent, expected in top.items():
        found = of_kind(dataset, latent, "top")
        assert [e["token_ids"] for e in found] == [e.token_ids for e in expected.examples]
        assert [e["max_pos"] for e in found] == [e.peak for e in expected.examples]
        assert [e["doc_id"] for e in found] == [e.document for e in expected.examples]
        assert [e["tokens"] for e in found] == [e.tokens for e in expected.examples]


def test_each_example_shows_the_activations_of_its_tokens(dataset: FeatureDataset):
    for latent in range(LATENTS):
        for example in dataset.feature("sae", latent).examples:
            expected = TABLE[example["token_ids"], latent] * (torch.tensor(example["token_ids"]) != toy_text.BOS)
            assert example["acts"] == pytest.approx(expected.tolist(), rel=1e-5)
            assert len(example["tokens"]) <= 9
            if example["kind"] in ("random", "quantile"):
                assert example["acts"][example["max_pos"]] == max(example["acts"]) > 0
            words = [f"w{i - toy_text.FIRST_WORD}" for i in example["token_ids"] if i >= toy_text.FIRST_WORD]
            assert example["text"] == " ".join(words)


def test_zero_examples_never_fire_and_differ(dataset: FeatureDataset):
    some = set()
    for latent in range(LATENTS):
        found = of_kind(dataset, latent, "zero")
        assert len(found) == (0 if latent == DEAD else 5)
        assert all(not any(example["acts"]) for example in found)
        assert len({tuple(example["token_ids"]) for example in found}) == len(found)
        some |= {tuple(example["token_ids"]) for example in found}
    assert len(some) > 30  # not the same ones for all


def test_intervals_hold_the_shares_they_say_and_about_equal_ones(dataset: FeatureDataset, read: Any):
    for latent in (10, 20, 39):
        peaks = np.array([float(part[:, latent].max()) for part in read[1] if part[:, latent].any()])
        found = of_kind(dataset, latent, "quantile")
        bins = {e["bin"]: (e["bin_min"], e["bin_max"], e["bin_share"]) for e in found}
        assert set(bins) == {0, 1, 2}
        for low, high, share in bins.values():
            assert share == pytest.approx(((low <= peaks) & (peaks < high)).mean(), rel=1e-6)
            assert 0.1 < share < 0.6
        assert sum(share for *_, share in bins.values()) == pytest.approx(1)
        assert all(e["bin_min"] <= max(e["acts"]) < e["bin_max"] for e in found)
        seen = [tuple(e["token_ids"]) for e in of_kind(dataset, latent, "quantile", "random")]
        assert len(set(seen)) == len(seen)
        assert len(of_kind(dataset, latent, "random")) == 5


def test_neighbours_are_those_of_all_cosines(dataset: FeatureDataset):
    rows = torch.nn.functional.normalize(DECODER, dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    for latent in range(LATENTS):
        expected = cosines[latent].sort(descending=True)
        row = facts(dataset, latent)
        assert row["nn_cos"] == pytest.approx(expected.values[:10].tolist(), abs=1e-5)
        assert row["nn_idx"] == expected.indices[:10].tolist()


def test_coactivation_counts_tokens_on_which_both_fire(dataset: FeatureDataset, read: Any):
    fires = (read[0] != 0).long()
    counts = (fires.T @ fires).fill_diagonal_(0)
    for latent in range(LATENTS):
        expected = sorted(((-n, j) for j, n in enumerate(counts[latent].tolist()) if n))[:10]
        row = facts(dataset, latent)
        assert list(zip(row["coact_count"], row["coact_idx"], strict=True)) == [(-n, j) for n, j in expected]
    assert dataset.data["coactivation"] == "exact"


def test_logit_effects_are_the_decoder_through_gain_and_unembedding(dataset: FeatureDataset):
    effects = (DECODER * HOST.model.norm.weight.detach()) @ HOST.lm_head.weight.detach().T
    for latent in range(LATENTS):
        row, expected = facts(dataset, latent), effects[latent]
        for side, order in (("pos", expected.argsort(descending=True)), ("neg", expected.argsort())):
            assert row[f"{side}_token_ids"] == order[:10].tolist()
            assert row[f"{side}_logits"] == pytest.approx(expected[order[:10]].tolist(), rel=1e-4)
            assert row[f"{side}_tokens"] == TOKENIZER.convert_ids_to_tokens(order[:10].tolist())
        assert sum(row["logit_hist_counts"]) == len(TOKENIZER)
        ends = [row["logit_hist_edges"][0], row["logit_hist_edges"][-1]]
        assert ends == pytest.approx([float(expected.min()), float(expected.max())], rel=1e-4)
        inner = np.histogram(expected.numpy(), np.array(row["logit_hist_edges"]))[0]
        assert np.abs(np.cumsum(inner) - np.cumsum(row["logit_hist_counts"])).max() <= 1  # rounding on one edge
        assert row["text"] == " ".join(row["pos_tokens"])
    assert "gain is applied" in dataset.data["logit_effects"]


def rows_of(dataset: FeatureDataset, sae_id: str = "sae") -> list[dict[str, Any]]:
    rows = [row for table in ("features", "examples") for row in getattr(dataset, table).to_list()]
    return [{k: v for k, v in row.items() if k != "sae_id"} for row in rows if row["sae_id"] == sae_id]


def test_two_autoencoders_in_one_pass_are_two_passes(dataset: FeatureDataset, tmp_path: Path):
    other = TopKSAE(TopKConfig(d_in=WIDTH, d_sae=24, k=3, hook_in="resid_post.0")).eval()
    both = gather(tmp_path / "both", {"b": make_sae(TABLE), "a": other})
    both.validate()
    alone = gather(tmp_path / "alone", other)
    assert rows_of(both, "b") == rows_of(dataset)
    assert rows_of(both, "a") == rows_of(alone)
    assert both.saes["a"].d_sae == 24


def test_a_seed_gives_the_same_rows_whatever_the_batch_and_another_seed_others(
    dataset: FeatureDataset, tmp_path: Path
):
    # the order of documents is the seed's too, and with it which of equal windows comes first: texts of one row each
    texts = [toy_text.word(*range(start, start + 20)) for start in range(0, 80, 2)]
    options: dict[str, Any] = {"n_tokens": 10**6, "examples": COUNTS, "progress": False, "context_length": 32}
    runs = []
    for number, (batch_size, seed) in enumerate(((4, 0), (4, 0), (1, 0), (4, 1))):
        options |= {"batch_size": batch_size, "seed": seed}
        runs.append(harvest(make_sae(TABLE), HOST, TOKENIZER, texts, tmp_path / str(number), **options))
    first, again, by_one, other = (rows_of(run) for run in runs)
    assert first == again
    assert [row | {"mean_act": None} for row in by_one] == [row | {"mean_act": None} for row in first]
    assert other != first


def test_working_in_parts_changes_nothing(dataset: FeatureDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_pass, "_ENTRIES_AT_ONCE", 3 * LATENTS)
    monkeypatch.setattr(harvesting, "_LATENTS_AT_ONCE", 7)
    for module in ("neighbours", "logit_effects"):
        monkeypatch.setattr(f"hf_sae.features.{module}._BYTES_AT_ONCE", 1)
    for one, other in zip(rows_of(gather(tmp_path / "out")), rows_of(dataset), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            near = key in ("nn_cos", "pos_logits", "neg_logits", "logit_hist_edges")
            if key != "logit_hist_counts":  # an effect on an edge may be rounded to either side
                assert value == (pytest.approx(other[key], rel=1e-4, abs=1e-6) if near else other[key])


def test_activations_below_zero_count_by_their_size(dataset: FeatureDataset, tmp_path: Path):
    sae, sign = make_sae(TABLE), torch.ones(LATENTS)
    sign[10:20] = -1
    encode = sae.encode_sparse

    def signed(hidden: torch.Tensor) -> Any:
        code = encode(hidden)
        code.values = code.values * sign[code.indices]
        return code

    sae.encode_sparse = signed
    found = gather(tmp_path / "out", sae)
    found.validate()
    for latent in range(LATENTS):
        row, plain = facts(found, latent), facts(dataset, latent)
        if sign[latent] > 0:
            assert row == plain
            continue
        assert (row["max_act"], row["mean_act"]) == (-plain["max_act"], -plain["mean_act"])
        assert row["hist_counts"] == plain["hist_counts"][::-1]
        assert row["hist_edges"] == [-edge for edge in plain["hist_edges"][::-1]]
        for kind in ("top", "random"):
            contexts = [[e["token_ids"] for e in of_kind(data, latent, kind)] for data in (found, dataset)]
            assert contexts[0] == contexts[1]
        for example in of_kind(found, latent, "quantile"):
            assert example["bin_min"] < example["acts"][example["max_pos"]] <= example["bin_max"] <= 0


def test_only_as_many_tokens_as_asked_for_are_read(tmp_path: Path):
    found = harvest(make_sae(TABLE), HOST, TOKENIZER, TEXTS, tmp_path / "few", n_tokens=100, **OPTIONS)
    assert 100 <= found.data["n_tokens"] < 100 + 32


def test_memory_does_not_grow_with_the_text_and_has_the_bound_that_is_stated():
    state, sae = LatentState(LATENTS, COUNTS, 0), make_sae(TABLE)
    sizes = []
    for batch in TokenDataset(TEXTS * 4, TOKENIZER, context_length=32, batch_size=4):
        kept = batch.keep.flatten().nonzero().squeeze(1)
        hidden = torch.eye(WIDTH)[batch.input_ids.flatten()[kept]]
        rows, latents, values = sae.encode_sparse(hidden).flat()
        state.add(batch, kept[rows], latents.detach(), values.detach())
        sizes.append(state.nbytes())
    assert len(sizes) > 40
    assert max(sizes) == sizes[10] == sizes[-1]
    assert 0.8 * kept_bytes(LATENTS, COUNTS) < sizes[-1] <= kept_bytes(LATENTS, COUNTS)
    assert kept_bytes(16_384, ExampleCounts()) < 1.5e9
    assert kept_bytes(131_072, ExampleCounts()) < 4e9


@pytest.mark.parametrize("place", ["attn_z.1", "mlp_in.1", "model.layers.1.mlp:input"])
def test_no_logit_effects_of_places_that_are_not_in_the_stream(
    sae: TopKSAE, host: LlamaForCausalLM, tokenizer: Any, tmp_path: Path, place: str
):
    sae.config.hook_in = place
    found = harvest(sae, host, tokenizer, conftest.TEXTS, tmp_path / "out", **OPTIONS)
    row = facts(found, 0)
    assert (row["pos_tokens"], row["neg_tokens"], row["logit_hist_counts"], row["text"]) == ([], [], [], "")
    assert repr(place) in found.data["logit_effects"]
    found.validate()


def test_a_host_without_a_head_gives_no_logit_effects(tmp_path: Path):
    found = harvest(make_sae(TABLE), HOST.model, TOKENIZER, TEXTS, tmp_path / "out", n_tokens=500, **OPTIONS)
    assert facts(found, 0)["pos_tokens"] == []
    assert "no language-model head" in found.data["logit_effects"]
    assert len(of_kind(found, 10, "top")) > 5


def test_a_transcoder_acts_on_what_it_writes(host: LlamaForCausalLM, tokenizer: Any, tmp_path: Path):
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=16, k=4, hook_in="mlp_in.0", hook_out="mlp_out.0")).eval()
    found = harvest(sae, host, tokenizer, conftest.TEXTS, tmp_path / "out", **OPTIONS)
    effects = (sae.W_dec * host.model.norm.weight.detach()) @ host.lm_head.weight.detach().T
    assert facts(found, 3)["pos_token_ids"] == effects[3].topk(10).indices.tolist()
    assert (found.saes["sae"].hook_in, found.saes["sae"].hook_out) == ("mlp_in.0", "mlp_out.0")


def test_what_cannot_be_written_or_read_is_refused_before_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harvesting, "CorpusPass", None)  # nothing may run
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="no feature dataset"):
        gather(tmp_path / "full")
    narrow = TopKSAE(TopKConfig(d_in=8, d_sae=16, k=4, hook_in="embed"))
    with pytest.raises(HookPointError, match="128 wide, and 'sae' has d_in=8"):
        gather(tmp_path / "new", narrow)
    with pytest.raises(ValueError, match="n_tokens=0"):
        harvest(make_sae(TABLE), HOST, TOKENIZER, TEXTS, tmp_path / "new", n_tokens=0)
    with pytest.raises(ValueError, match="top, bins and pool"):
        ExampleCounts(top=0)
    assert not (tmp_path / "new").exists()


def test_activations_that_are_not_finite_are_an_error_and_leave_nothing(tmp_path: Path):
    sae = make_sae(TABLE)
    with torch.no_grad():
        sae.encoder.weight[10, 30] = float("inf")
    with pytest.raises(DataError, match="latent 10 has an activation that is not finite"):
        gather(tmp_path / "out", sae)
    assert list(tmp_path.iterdir()) == []
