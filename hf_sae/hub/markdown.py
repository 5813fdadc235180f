"""Text of models and datasets inside Markdown: nothing in it may act as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence


_ACTIVE = re.compile(r"[&<>*_`\[\]~|$\\:@#]")
_VISIBLE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "→"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def escape(text: str) -> str:
    """Text as character references where Markdown or HTML would read markup; line breaks and tabs become visible."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.translate(_VISIBLE))
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", text).replace("www.", "www&#46;")


def strip(tokens: Sequence[str], activations: Sequence[float]) -> str:
    """One context as a line of code with its strongest token in bold.

    Args:
        tokens (`Sequence[str]`): decoded pieces of text; together they are the context.
        activations (`Sequence[float]`): one per token; a signed latent peaks where its magnitude does.
    """
    peak = max(range(len(tokens)), key=lambda i: abs(activations[i])) if activations else None
    cells = [f"<b>{escape(token)}</b>" if i == peak else escape(token) for i, token in enumerate(tokens)]
    return f"<code>{''.join(cells).strip()}</code>"


def table(rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A Markdown table; the first row is the head, columns of numbers are on the right. Cells are Markdown already.

    A bar ends a cell even inside a code span, so that every one is escaped.
    """
    rule = ["--:" if right else ":--" for right in numbers]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in (rows[0], rule, *rows[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def code(text: object) -> str:
    """A code span; what could end it is left out."""
    return f"`{' '.join(str(text).replace('`', '').split())}`"
