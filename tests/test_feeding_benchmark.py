"""The comparison of feedings: its averages by hand, its conversations, and a run that is as small as it can be."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import chats, feeding


def test_errors_are_means_per_token_and_then_per_conversation():
    values, documents = torch.tensor([1.0, 3.0, 10.0, 5.0, 0.0, 1.0]), torch.tensor([7, 7, 2, 9, 9, 9])
    assert feeding.per_dialogue(values, documents) == pytest.approx((2 + 10 + 2) / 3)


def test_conversations_are_questions_about_documented_functions():
    source = 'def f(x):\n    """Gives twice of what it was given."""\n    y = 2 * x\n    return y  # twice\n\n\ndef g():\n    return 1\n'
    (chat,) = chats._of_source(source)
    assert [turn["role"] for turn in chat["messages"]] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in chat["messages"]] == [
        "What does `f` do?",
        "Gives twice of what it was given.",
        "How is `f` written?",
        "    y = 2 * x\n    return y  # twice",
    ]
    assert list(chats._of_source("def broken(:")) == []


def test_both_feedings_train_on_as_many_tokens_and_are_judged_alike(capsys, tmp_path, monkeypatch):
    few = {split: chats.chats(split)[:30] for split in ("validation", "test")} | {"train": chats.chats("validation")}
    monkeypatch.setattr(feeding, "chats", few.__getitem__)
    argv = [
        "--host-steps",
        "1",
        "--tokens",
        "512",
        "--batch",
        "128",
        "--context-length",
        "32",
        "--held-out",
        "8",
        "--seeds",
        "1",
        "--ring-mib",
        "1",
        "--expansion",
        "1",
    ]
    feeding.main([*argv, "--k", "8", "--threads", "1", "--json", "--results", str(tmp_path / "page.md")])
    report = json.loads(capsys.readouterr().out)
    assert [row["feeding"] for row in report["rows"]] == ["packed", "FAST"]
    assert all(row["l0"] <= 8 and row["turns"] > 0 and row["mse"] > 0 for row in report["rows"])
    assert report["rows"][0]["mse"] != report["rows"][1]["mse"]
    page = (tmp_path / "page.md").read_text()
    assert "log2 of MSE" in page
    assert page.count("| packed |") == page.count("| FAST |") == 2
    mine, theirs = (report["means"][feed]["turns"] for feed in ("FAST", "packed"))
    assert f"{mine / theirs:.3f} over turn tokens (smaller in {int(mine < theirs)} of 1)" in page
