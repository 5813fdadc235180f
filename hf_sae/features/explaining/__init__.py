"""Labels for latents: by rules about tokens or by a language model, each with a score on contexts that it was not made from."""

from .detection import Detection, balanced_accuracy, detect
from .explain import explain_features
from .judge_labeller import Estimate, JudgeLabeller
from .judges import ChoosingJudge, InferenceClientJudge, Judge, ResponseCache, ScriptedJudge, TransformersJudge
from .labels import Detector, Label, Labeller
from .ngram import NGramLabeller
from .report import Explained, ExplainReport


__all__ = [
    "ChoosingJudge",
    "Detection",
    "Detector",
    "Estimate",
    "ExplainReport",
    "Explained",
    "InferenceClientJudge",
    "Judge",
    "JudgeLabeller",
    "Label",
    "Labeller",
    "NGramLabeller",
    "ResponseCache",
    "ScriptedJudge",
    "TransformersJudge",
    "balanced_accuracy",
    "detect",
    "explain_features",
]
