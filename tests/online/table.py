"""`docs/reproduce.md` from `docs/reproduce.json`: published autoencoders, what was published and what was measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


DOCS = Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "reproduce.json", DOCS / "reproduce.md"
HEAD = """# Published autoencoders, measured again

Each row is loaded with `AutoSAE.from_pretrained(repo, subfolder=…, revision=…)` on its own host, and measured by `hf-sae check` on
8,192 tokens of `NeelNanda/pile-10k` without padding and BOS. `pytest -m online` fills the columns on the right, pins the commit that it
saw, and fails where L0 is off by more than half or another reading of the weights fits better than ours. Rows that nobody has run yet
say so. Texts differ from those of the publications, so figures agree roughly, not to the digit.

"""
COLUMNS = ["autoencoder", "commit", "host", "published", "source", "L0", "FVU", "ΔCE", "best reading", "version"]


def load() -> list[dict[str, Any]]:
    """The rows."""
    return json.loads(DATA.read_text(encoding="utf-8"))


def render(rows: list[dict[str, Any]]) -> str:
    """The page."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join([":--"] * 5 + ["--:"] * 3 + [":--"] * 2) + " |"]
    for row in rows:
        name = f"[`{row['repo']}`](https://huggingface.co/{row['repo']})<br>`{row['subfolder']}`"
        published = ", ".join(f"{key} {value:g}" for key, value in row["published"].items()) or "–"
        commit = f"`{row['revision'][:8]}`" if row["revision"] else "pinned by the first run"
        cells = [name, commit, f"`{row['host']}`", published, row["source"], *_measured(row["measured"])]
        lines.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def _measured(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["not run yet", "", "", "", ""]
    numbers = [f"{found[key]:.3g}" if found.get(key) is not None else "–" for key in ("l0", "fvu", "delta_ce")]
    return [*numbers, found["best_reading"], found["version"]]


def save(rows: list[dict[str, Any]]) -> None:
    """Writes both files."""
    DATA.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(render(rows), encoding="utf-8")
