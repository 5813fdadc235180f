from __future__ import annotations

from hf_sae.features.record import FeatureRecord
from hf_sae.features.search.hits import Hit, Hits, Reason
from hf_sae.features.showing import context_groups, feature_view, grid_view, label_views
from hf_sae.features.top import TopFeatures
from hf_sae.views import token_grid


FACTS = {
    "density": 0.01, "n_fired": 10, "max_act": 4.0, "mean_act": 2.0, "hist_counts": [9, 1], "hist_edges": [0.0, 2.0, 4.0],
    "pos_tokens": [" a"], "pos_logits": [1.0], "neg_tokens": [], "neg_logits": [], "logit_hist_counts": [],
    "logit_hist_edges": [], "nn_idx": [7], "nn_cos": [0.5], "coact_idx": [8], "coact_count": [3],
}  # fmt: skip


def example(kind, bin_=None, rank=0, text="<b>"):
    ends = (None, None, None) if bin_ is None else (float(bin_), bin_ + 1.0, 0.25)
    return dict(zip(("bin_min", "bin_max", "bin_share"), ends, strict=True)) | {
        "kind": kind, "bin": bin_, "rank": rank, "tokens": [text], "token_ids": [1], "acts": [4.0], "max_pos": 0,
        "special_pos": [], "doc_id": 5, "doc_name": None,
    }  # fmt: skip


def label(text, score):
    names = ("model", "score_method", "score_chance", "score_low", "score_high", "score_count", "score_failed")
    return dict.fromkeys(names) | {"text": text, "method": "rule", "score": score, "counterexamples": []}


def test_intervals_are_split_into_middle_and_low_strongest_first():
    rows = [example("quantile", b, text=str(b)) for b in range(4)] + [example("top"), example("zero")]
    groups = context_groups(rows)
    assert {name: [c.tokens[0] for c in group] for name, group in groups.items()} == {
        "Top": ["<b>"], "Middle": ["3", "2"], "Low": ["1", "0"], "Not firing": ["<b>"]
    }  # fmt: skip
    assert groups["Low"][1].note == "peak 0 to 1, 25 % of its contexts"
    assert groups["Top"][0].document == "record 5"


def test_the_best_scored_label_is_first():
    assert [one.text for one in label_views([label("a", None), label("b", 0.4), label("c", 0.8)])] == ["c", "b", "a"]


def test_a_record_renders_as_a_page_of_its_own():
    record = FeatureRecord("<i>", 3, FACTS, [example("top")], [label("<u>", 0.8)], effects_note="gain applied")
    view = feature_view(record, labels={7: "near"}, href=lambda j: f"?feature={j}")
    assert (view.nearest[0].label, view.nearest[0].href, view.together[0].value) == ("near", "?feature=7", 3)
    one, other = record._repr_html_(), record._repr_html_()
    body = one.partition("</style>")[2]
    assert one.startswith("<style>")
    assert not any(tag in body for tag in ("<b>", "<i>", "<u>"))
    assert "gain applied" in body
    assert body.split('id="')[1].split('"')[0] != other.partition("</style>")[2].split('id="')[1].split('"')[0]


def test_hits_are_a_list_that_prints_and_renders():
    hit = Hit("sae", 3, 0.5, (Reason("example", "<b>\x1b", ((0, 3),)),), "files", "rule", 0.9, 1 / 850, 4.0)
    hits = Hits([hit])
    assert hits == [hit]
    assert str(hits) == 'sae 3  "files"  1 in 850 tokens  example: <b>\\x1b'
    assert "<mark>&lt;b&gt;</mark>" in hits._repr_html_()
    assert "Search raw examples instead" in Hits()._repr_html_()


def test_the_grid_is_sorted_by_share_of_the_maximum_or_by_a_token():
    top = TopFeatures(
        ["a", "b"], [1, 2], [[1, 2], [3]], [[4.0, 3.0], [1.0]], frozenset(), {1: 8.0, 2: 3.0, 3: 2.0}, "s"
    )
    assert grid_view(top).latents == [2, 1, 3]
    assert grid_view(top, position=1).latents == [3, 2, 1]
    assert grid_view(top, limit=1).activations == [[3.0, 0.0]]
    assert 'data-latent="2" data-position="0"' in token_grid(grid_view(top))
