"""Published autoencoders on their own hosts, over the network: `pytest -m online` (a GPU helps), one row at a time.

`pytest -m online -k gpt2` runs the rows that fit a laptop; gated hosts need an accepted licence and `hf auth login`.
"""

from __future__ import annotations

import math

import pytest

import hf_sae
from hf_sae import AutoSAE
from hf_sae.evaluation import check
from hf_sae.hosts.loading import load_host
from tests.online.table import load, save


ROWS = load()


@pytest.mark.online
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("index", range(len(ROWS)), ids=[f"{row['repo']}/{row['subfolder']}" for row in ROWS])
def test_published_figures_come_out_again(index: int) -> None:
    rows = load()  # again: each row that ran is written down
    row = rows[index]
    sae = AutoSAE.from_pretrained(row["repo"], subfolder=row["subfolder"], revision=row["revision"])
    host, tokenizer = load_host(row["host"], dtype="bfloat16" if "gpt2" not in row["host"] else "float32")
    sae.to(host.device)
    report = check(
        sae,
        host,
        tokenizer,
        "NeelNanda/pile-10k",
        n_tokens=8192,
        published_l0=row["published"].get("l0"),
        split="train",
    )
    loaded = report.loaded
    row["revision"] = row["revision"] or sae.config.provenance["conversion"]["commit"]
    row["measured"] = {
        "l0": loaded["l0"],
        "fvu": loaded["fvu"],
        "delta_ce": loaded.get("delta_ce"),
        "best_reading": report.readings[0].name,
        "version": hf_sae.__version__,
    }
    save(rows)
    assert report.ok, report.verdict
    if l0 := row["published"].get("l0"):
        assert abs(math.log(loaded["l0"] / l0)) < math.log(1.5)
