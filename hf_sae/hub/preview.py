"""A card as a page, to look at before it is pushed."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from ..errors import CheckpointError
from .blocks import parse


# what a README brings along must not run in the reader's browser: no scripts, no requests but for pictures
_POLICY = "default-src 'none'; img-src data: https:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --quiet: #59636e; --line: #d1d9e0; --soft: #f6f8fa; --link: #3182bd }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --quiet: #9198a1; --line: #3d444d; --soft: #161b22; --link: #9ecae1 } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Noto Sans", sans-serif }
main { max-width: 52rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 1rem } h2 { font-size: 1.35rem; margin: 2.2rem 0 .8rem }
h2 { padding-bottom: .3rem; border-bottom: 1px solid var(--line) } a { color: var(--link) }
pre, code { font: 13.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--soft); border-radius: 6px }
pre { padding: .9rem 1rem; overflow-x: auto } code { padding: .15em .35em } pre code { padding: 0; background: none }
table { display: block; width: max-content; max-width: 100%; overflow-x: auto; border-collapse: collapse; margin: 1rem 0 }
th, td { border: 1px solid var(--line); padding: .4rem .75rem; text-align: left; vertical-align: top }
th:empty { border: 0 } tr:nth-child(2n) td { background: var(--soft) } img { max-width: 100%; height: auto; border-radius: 6px }
blockquote { margin: 1rem 0; padding: 0 1rem; color: var(--quiet); border-left: .25rem solid var(--line) }
summary { cursor: pointer } .header { font-size: .85rem; color: var(--quiet); margin-bottom: 1.5rem }
"""


def write_page(text: str, folder: Path, page: str | Path, pictures: Mapping[str, bytes] | None = None) -> Path:
    """Writes a README with its pictures as one page of HTML that runs no script and asks nobody for anything.

    Args:
        text (`str`): the README.
        folder (`Path`): where its other pictures are looked for.
        page (`str`): the file to write.
        pictures (`Mapping[str, bytes]`, *optional*): PNG files in `assets/` by name.

    Raises:
        CheckpointError: if the page cannot be written.
    """
    import yaml
    from markdown_it import MarkdownIt

    page = Path(page)
    header = yaml.safe_dump(parse(text).header, sort_keys=False, allow_unicode=True)
    body = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S))
    )
    body = re.sub(
        r'<img src="\./assets/([\w.-]+)"', lambda found: _inline(folder / "assets", found[1], pictures or {}), body
    )
    title = escape(next((line[2:] for line in text.splitlines() if line.startswith("# ")), folder.name))
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head><body><main>'
    )
    shown = (
        f'<details class="header"><summary>Header (YAML)</summary><pre><code>{escape(header)}</code></pre></details>'
    )
    try:
        page.write_text(f"{head}{shown}{body}</main></body></html>\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {str(page)!r}: {error}. Choose another file.") from error
    return page


def _inline(folder: Path, name: str, pictures: Mapping[str, bytes]) -> str:
    if name not in pictures and not (folder / name).is_file():
        return f'<img src="./assets/{name}"'
    content = pictures[name] if name in pictures else (folder / name).read_bytes()
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}"'
