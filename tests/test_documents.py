"""Documents that are made from data say what the data say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_sae
from hf_sae import TopKConfig, TopKSAE, default_host
from hf_sae.conversion import write
from hf_sae.evaluation import check
from tests.online import test_reproduce as online
from tests.online.table import PAGE, load, render


def test_the_table_of_published_autoencoders_is_rendered_from_its_data():
    rows = load()
    assert PAGE.read_text(encoding="utf-8") == render(rows)
    assert render(rows).count("not run yet") == sum(row["measured"] is None for row in rows)


def test_a_measured_row_shows_its_figures_and_its_commit():
    row = load()[0] | {
        "revision": "0123456789abcdef",
        "measured": {"l0": 61.234, "fvu": 0.1, "delta_ce": None, "best_reading": "as loaded", "version": "1.2"},
    }
    line = render([row]).splitlines()[-1]
    assert "| `01234567` |" in line
    assert line.endswith("| 61.2 | 0.1 | – | as loaded | 1.2 |")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One row, of an autoencoder in SAELens' layout on the host that ships here; the text is the standard library's."""
    host, _ = default_host()
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=host.config.hidden_size, d_sae=256, k=8, hook_in="resid_post.1"))
    with torch.no_grad():
        sae.decoder.weight.mul_(30)  # too much of anything: no reading can fit by luck
    write(sae, tmp_path / "blocks.1.hook_resid_post", "saelens")
    folder = str(Path(hf_sae.__file__).parent / "assets" / "default_host")
    row = {"repo": str(tmp_path), "subfolder": "blocks.1.hook_resid_post", "revision": None, "host": folder}
    table = [row | {"published": {"l0": 8}, "source": "here", "measured": None}]

    def short(sae: Any, host: Any, tokenizer: Any, dataset: str, *, n_tokens: int, split: str, **options: Any) -> Any:
        assert (dataset, n_tokens, split) == ("NeelNanda/pile-10k", 8192, "train")
        return check(sae, host, tokenizer, n_tokens=256, progress=False, **options)

    monkeypatch.setattr(online, "load", lambda: table)
    monkeypatch.setattr(online, "save", lambda rows: None)
    monkeypatch.setattr(online, "check", short)
    return table


def test_running_a_row_fills_it_before_it_judges(rows: list[dict[str, Any]]):
    assert "not run yet" in render(rows)
    with pytest.raises(AssertionError, match="No reading fits"):  # its weights are random
        online.test_published_figures_come_out_again(0)
    assert rows[0]["measured"]["l0"] == 8
    assert rows[0]["measured"]["fvu"] > 0.5
    assert "not run yet" not in render(rows)
    assert f"| 8 | {rows[0]['measured']['fvu']:.3g} |" in render(rows)
