"""Language models that are asked: on this machine, behind an API, or a script."""

from .cache import ResponseCache
from .client import InferenceClientJudge
from .local import TransformersJudge
from .protocol import ChoosingJudge, Judge, Message
from .scripted import ScriptedJudge


__all__ = [
    "ChoosingJudge",
    "InferenceClientJudge",
    "Judge",
    "Message",
    "ResponseCache",
    "ScriptedJudge",
    "TransformersJudge",
]
