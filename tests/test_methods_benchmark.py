"""The toy data of the sparsity mechanisms, and how method and baseline are compared on it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import contests, methods, planted_methods, sides
from benchmarks.contests import CONTESTS, Contest
from benchmarks.docs import put_between
from benchmarks.planted_methods import Toy
from benchmarks.short_training import calibrated, fit, measure
from benchmarks.sides import Best, Given, Side
from hf_sae.models import AutoSAE, StandardConfig, TopKConfig


MAKERS = list(dict.fromkeys(contest.toy for contest in CONTESTS))


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(planted_methods, "N_TRAIN", 512)
    monkeypatch.setattr(planted_methods, "N_HELD_OUT", 256)


def counts(toy: Toy) -> list[int]:
    return (toy.amounts != 0).sum(1).tolist()


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_toy_is_made_of_its_ground_truth_and_follows_its_seed(make):
    toy, again, other = make(0), make(0), make(1)
    assert torch.equal(toy.train, again.train)
    assert not torch.equal(toy.train, other.train)
    assert toy.atoms.norm(dim=-1).tolist() == pytest.approx([1.0] * len(toy.atoms), rel=1e-5)
    made = toy.amounts @ toy.atoms
    if toy.targets is None:
        torch.testing.assert_close(toy.held_out, made)
    if make is planted_methods.products:
        torch.testing.assert_close(toy.targets[1], made)


def test_each_toy_is_as_sparse_as_it_says():
    assert set(counts(planted_methods.two_sparse(0))) == {2}
    for mixed in (planted_methods.mixed_l0, planted_methods.crowded):
        assert set(counts(mixed(0))) == {1, 5}
    assert sum(counts(planted_methods.zipf(0))) / 256 == pytest.approx(3, rel=0.15)
    assert set(counts(planted_methods.orthogonal(0))) == set(range(1, 7))
    assert sum(counts(planted_methods.tree(0))) / 256 == pytest.approx(1.8, rel=0.15)
    assert sum(counts(planted_methods.parent_child(0))) / 256 == pytest.approx(1.02, rel=0.15)
    assert set(counts(planted_methods.and_pairs(0))) == {3}


def test_what_makes_each_toy_special_is_there():
    signed = planted_methods.signed(0).amounts
    assert (signed > 0).any()
    assert (signed < 0).any()
    often = (planted_methods.zipf(0).amounts != 0).float().mean(0)
    assert often[0] > 4 * often[16:].mean()
    for toy in (planted_methods.parent_child(0), planted_methods.tree(0)):
        for child, parent in enumerate(toy.parents.tolist()):
            assert parent < 0 or (toy.amounts[toy.amounts[:, child] != 0, parent] != 0).all()
    atoms = planted_methods.orthogonal(0).atoms
    torch.testing.assert_close(atoms @ atoms.T, torch.eye(32), atol=1e-5, rtol=0)
    influential = planted_methods.influential(0)
    felt = (influential.gradients @ influential.atoms.T).abs()
    assert felt[:, 16:].min() > 10 * felt[:, :16].max()


def test_figures_of_the_planted_dictionary_itself_are_known():
    toy, side = planted_methods.orthogonal(0), Given("topk", {"k": 6})
    sae = side.train(toy, 0, 0)
    assert sides.fvu(side, sae, toy) == pytest.approx(0, abs=1e-6)
    assert sides.gamma(side, sae, toy) == pytest.approx(1, abs=1e-5)
    assert sides.recovered(side, sae, toy) == 1
    assert sides.similarity(side, sae, toy) == pytest.approx(1)
    assert sides.dead(side, sae, toy) == 0
    assert sides.felt_error(side, sae, planted_methods.influential(0)) > 0


def test_what_a_loss_feels_is_the_part_of_the_error_that_top_k_leaves():
    toy, side = planted_methods.influential(0), Given("topk", {"k": 4})
    sae = side.train(toy, 0, 0)
    left = toy.amounts - toy.amounts * (toy.amounts >= toy.amounts.topk(4).values[:, -1:])
    assert sides.squared_error(side, sae, toy) == pytest.approx(float(left.square().sum(1).mean()), rel=1e-4)
    expected = ((left @ toy.atoms) * toy.gradients).sum(1).abs().mean()
    assert sides.felt_error(side, sae, toy) == pytest.approx(float(expected), rel=1e-4)


def test_a_parent_has_one_child_or_none():
    toy = planted_methods.parent_child(0)
    there = toy.amounts != 0
    children = there[:, 3:].view(-1, 3, 3).sum(-1)
    assert children.max() == 1
    assert float(children[there[:, :3]].float().mean()) == pytest.approx(0.7, abs=0.12)


def test_a_baseline_of_several_settings_counts_by_its_best():
    one, two = Side("topk", 32, {"k": 1}), Side("topk", 32, {"k": 2})
    both = Best((one, two), min)
    rival = Side("topk", 32, {"k": 3})
    contest = Contest("best", planted_methods.two_sparse, sides.fvu, rival, both, (0.1, 0.2))
    runs = methods.Runs(30)
    each = [runs.figure(contest, side, 0) for side in (one, two)]
    assert each[0] != each[1]
    assert runs.figure(contest, both, 0) == min(each)
    unknown = Best((one, Side("none_such", 8)), min)
    assert methods.absent(Contest("absent", planted_methods.two_sparse, sides.fvu, rival, unknown, (0.1, 0.2))) == [
        "none_such"
    ]


def test_a_parent_that_is_never_read_is_all_holes():
    toy, side = planted_methods.parent_child(0), Given("topk", {"k": 12})
    sae = side.train(toy, 0, 0)
    assert sides.holes(side, sae, toy) == 0
    with torch.no_grad():
        sae.encoder.weight[:3] = 0
        sae.encoder.bias[:3] = -1
    assert sides.holes(side, sae, toy) == 1


def test_measured_figures_follow_their_formulas():
    torch.manual_seed(0)
    sae = AutoSAE.from_config(StandardConfig(d_in=8, d_sae=8, pre_bias=False, hook_in="x")).eval()
    x = torch.rand(50, 8)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(8))
        sae.decoder.weight.copy_(torch.eye(8))
        sae.encoder.bias.fill_(-0.2)
    x_hat, mean = (x - 0.2).clamp_min(0), x.mean(0)
    found = measure(sae, x, chunk=16)
    centred = x_hat - mean
    assert found.fvu == pytest.approx(float((x - x_hat).square().sum() / (x - mean).square().sum()), rel=1e-5)
    assert found.l0 == pytest.approx(float((x_hat > 0).sum() / 50))
    assert found.dead == 0
    assert found.gamma == pytest.approx(float(centred.square().sum() / (centred * (x - mean)).sum()), rel=1e-5)


@pytest.mark.parametrize(("l0", "ends"), [(lambda c: 100 / c, (1e-2, 1e3)), (lambda c: 100 * c, (1e3, 1e-2))])
def test_a_coefficient_is_found_from_either_side_and_runs_are_used_again(l0, ends):
    known: dict[float, float] = {}
    found = calibrated(l0, 16.0, *ends, rounds=20, known=known)
    assert math.log(l0(found) / 16) == pytest.approx(0, abs=0.05)
    before = dict(known)
    assert calibrated(l0, 16.0, *ends, rounds=20, known=known) == found
    assert known == before


def test_a_short_run_learns_and_is_the_same_again():
    toy = planted_methods.two_sparse(0)
    config = TopKConfig(d_in=24, d_sae=32, k=2, hook_in="x")
    short, again, longer = (
        fit(config, {"x": toy.train}, steps=n, planned=40, batch=64, seed=0, learning_rate=1e-2).sae
        for n in (4, 4, 40)
    )
    assert torch.equal(short.decoder.weight, again.decoder.weight)
    assert measure(longer, toy.held_out).fvu < measure(short, toy.held_out).fvu


def test_half_of_the_earlier_difference_in_its_direction_passes():
    contest = CONTESTS[0]
    ours, theirs = contest.before
    assert contest.share(ours, theirs) == pytest.approx(1)
    assert contest.share(ours + 0.5 * (theirs - ours), theirs) == pytest.approx(0.5)
    assert contest.share(theirs, ours) == pytest.approx(-1)
    assert any(contest.negative for contest in CONTESTS)
    for contest in CONTESTS:  # smaller is better but for these figures; a row that should lose goes the other way
        larger = contest.figure in (sides.recovered, sides.similarity, sides.gamma)
        assert (contest.before[0] > contest.before[1]) == (larger != contest.negative)


def test_the_table_says_what_is_missing_and_what_failed(monkeypatch, capsys, tmp_path):
    side = Side("topk", 8, {"k": 2})
    rows = (
        Contest(
            "won",
            planted_methods.two_sparse,
            sides.fvu,
            Side("topk", 32, {"k": 2}),
            Side("topk", 8, {"k": 1}),
            (0.1, 0.2),
        ),
        Contest("absent", planted_methods.two_sparse, sides.fvu, Side("none_such", 8), side, (0.1, 0.2)),
        Contest(
            "solver", planted_methods.two_sparse, sides.fvu, Given("topk", solver="NoSuchSolver"), side, (0.1, 0.2)
        ),
        Contest("broken", planted_methods.two_sparse, sides.fvu, Side("topk", 8, {"k": 9}), side, (0.1, 0.2)),
    )
    monkeypatch.setattr(methods, "CONTESTS", rows)
    page, docs = tmp_path / "page.md", tmp_path / "docs.md"
    docs.write_text("above\n<!-- toy-table -->\nold\n<!-- /toy-table -->\nbelow\n")
    argv = ["--seeds", "2", "--steps", "30", "--threads", "1", "--results", str(page), "--docs", str(docs)]
    methods.main(argv)
    out = capsys.readouterr().out
    for words in (
        "2 of 2",
        "not in this version: none_such",
        "not in this version: NoSuchSolver",
        "k=9 must be between",
    ):
        assert words in out
    assert "1 of 1 rows that ran pass." in page.read_text()
    text = docs.read_text()
    assert (text.startswith("above\n"), text.endswith("below\n")) == (True, True)
    assert "old" not in text
    assert "| won |" in text
    methods.main([*argv[:6], "--only", "won", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["passed"] == [True, True]
    assert row["shares"][0] == pytest.approx((row["pairs"][0][0] - row["pairs"][0][1]) / -0.1)


def test_a_name_that_is_in_no_row_is_refused(capsys):
    with pytest.raises(SystemExit):
        methods.main(["--only", "nothing"])
    assert "abs_topk" in capsys.readouterr().err


def test_every_figure_has_words():
    assert {contest.figure for contest in CONTESTS} <= set(contests.WORDS)


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->")
    with pytest.raises(SystemExit, match="no lines <!-- a -->"):
        put_between(page, "a", ["x"])
    assert page.read_text() == "<!-- a -->"
