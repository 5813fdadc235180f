"""Tables of results inside a page that is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def put_between(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->` in a page.

    Raises:
        SystemExit: if the page does not have both marks.
    """
    text = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise SystemExit(f"{path} has no lines {start} and {end}: write them where the table has to stand.")
    path.write_text("\n".join([before + start, "", *lines, "", end + after]), encoding="utf-8")
