"""Answers on disk, so that a question is paid for once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....evaluation.writing import write_json
from .protocol import Message


class ResponseCache:
    """One small file for each answer, whole or not there. Neither the question nor a key is in it.

    Args:
        folder (`str` or `Path`, *optional*): default: `hf_sae/judge` in the cache of Hugging Face libraries.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:
            from huggingface_hub import constants

            folder = Path(constants.HF_HOME) / "hf_sae" / "judge"
        self.folder = Path(folder)

    def key(self, model: str, revision: str | None, messages: Sequence[Message], params: Mapping[str, Any]) -> str:
        """SHA-256 of all that an answer depends on."""
        facts = [model, revision, [dict(message) for message in messages], dict(params)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer, with `text`; `None` where it is not there or damaged."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("text"), str) else None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keeps an answer.

        Raises:
            OSError: if it cannot be written.
        """
        write_json(answer, self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
