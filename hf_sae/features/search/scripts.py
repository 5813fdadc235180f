"""Scripts that are written without spaces: every character is a word of its own, and a word of several is a phrase.

So any part of a run is found, and nothing else: "東京" in "東京都に住む", not in "東西京". A character takes the marks above and below
it along, as Thai vowels are. Korean words are cut as well, since particles are joined to them.
"""

from __future__ import annotations

import re


JOINT = "\x04"  # between two such words: no letter, so that the full-text index cuts there
_BASES = (
    "\u0e00-\u0e7f\u0e80-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese syllables
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\u1100-\u11ff\uac00-\ud7a3"  # Korean
)
_MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
    "\u102b-\u103e\u1056-\u1059\u17b6-\u17d3\u3099\u309a\uff9e\uff9f\ufe00-\ufe0f"
)
_CHARACTER = re.compile(f"[{_BASES}][{_MARKS}]*")


def cut(text: str) -> str:
    """Text with a joint around each character of such a script."""
    return _CHARACTER.sub(f"{JOINT}\\g<0>{JOINT}", text)


def joined(text: str) -> str:
    """Text without joints."""
    return text.replace(JOINT, "")
