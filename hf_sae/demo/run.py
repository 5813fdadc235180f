"""`hf-sae demo`: a sparse autoencoder from nothing to steering, on text and a model that are already there.

Trains on the standard library's source code as the default host reads it, measures on files it has not seen, shows what
its features respond to, and turns one of them up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..activations import ActivationStream
from ..assets import default_host
from ..corpus import NAME, corpus_info, stdlib_corpus, stdlib_files
from ..errors import ConfigError
from ..evaluation import EvalReport, evaluate
from ..features import LatentExamples, top_contexts
from ..features.choice import Consistent, choose_features, consistent_features
from ..hub import save_card
from ..hub.cards import README, is_generated
from ..hub.examples import N_FEATURES, for_card
from ..models import SAE, TopKConfig, TopKSAE
from ..steering import OfMax, add, steer
from ..training import SAETrainer, SAETrainingArguments
from .labelled import label_features, save_preset
from .showcase import Effect, largest_effect


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..features.explaining import ExplainReport

HEADLINE = ("l0", "fvu", "ce_recovered", "ce_recovered_mean", "delta_ce", "dead_fraction")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo trains, measures and shows.

    Args:
        hook, d_sae, k: place, number of latents, active latents per token.
        total_tokens, tokens_per_batch, learning_rate, context_length, seed: of training.
        ring_bytes (`int`): of the shuffle ring; filling it is what happens before the first step.
        eval_characters (`int`): length of the excerpt of each held-out file behind the metrics.
        example_characters (`int`): of those that example contexts are looked for in.
        label_characters (`int`): of those that features are harvested from and labelled on.
        n_features (`int`), n_contexts (`int`): features shown, contexts of each.
        least_density, most_density (`float`): features that fire on a smaller or larger share of tokens are not shown.
        prompt (`str`), new_tokens (`int`): of the steered continuation.
        strengths (`tuple`), most_kl (`float`): strengths tried, in maxima, and how far the host may go from itself, in nats.
        n_candidates (`int`), least_consistency (`float`): features tried, and the share of contexts that have to agree.
    """

    hook: str = "resid_post.1"
    d_sae: int = 3072
    k: int = 32
    total_tokens: int = 1_600_000
    tokens_per_batch: int = 1024
    learning_rate: float | None = None
    context_length: int = 128
    seed: int = 0
    ring_bytes: int = 32 * 2**20
    eval_characters: int = 5_000
    example_characters: int = 12_000
    label_characters: int = 20_000
    n_features: int = 12
    n_contexts: int = 2
    least_density: float = 1e-4
    most_density: float = 2e-2
    prompt: str = "import os\n\ndef main("
    strengths: tuple[float, ...] = (2.0, 4.0)
    most_kl: float = 1.0
    n_candidates: int = 256
    least_consistency: float = 0.8
    new_tokens: int = 40


@dataclass
class DemoResult:
    """What a run of the demo made: `payload` is its summary as JSON values."""

    sae: SAE
    report: EvalReport
    features: list[LatentExamples]
    effect: Effect | None
    texts: dict[str, str]
    labels: ExplainReport
    output: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def payload(self) -> dict[str, Any]:
        """The summary that `hf-sae demo --json` prints."""
        controls = {
            name: {key: metric.value for key, metric in values.items()}
            for name, values in self.report.controls.items()
        }
        effect = None
        if self.effect is not None:
            effect = {
                "feature": self.effect.examples.latent,
                "strength": self.effect.strength,
                "token": self.effect.token,
            }
        labels = self.labels.to_dict()
        return {
            **{key: self.report[key] for key in HEADLINE},
            "tokens": (self.sae.config.provenance or {})["training"]["total_tokens"],
            "seconds": round(sum(self.seconds.values()), 1),
            "controls": controls,
            "features": [examples.latent for examples in self.features],
            "steered": effect,
            "labels": {key: labels[key] for key in ("labelled", "scored", "mean_score", "chance", "control")},
            "features_folder": str(self.labels.folder),
            "output": str(self.output),
        }


def run_demo(
    output: str | Path, settings: DemoSettings | None = None, say: Callable[[str], None] = lambda text: None
) -> DemoResult:
    """Trains, measures, picks features, steers, and saves a folder with a card.

    Args:
        output (`str`): the folder.
        settings ([`DemoSettings`], *optional*): everything else.
        say (`Callable`): is told what happens next.

    Raises:
        ConfigError: if the folder has a README that was written by hand.
        DataError: if the installation lacks the default host, or Python its sources.
    """
    settings, output = settings or DemoSettings(), Path(output)
    if not is_generated(output / README):
        raise ConfigError(f"{str(output)!r} has a README of its own: choose another folder for the demo.")
    watch = _Watch()
    host, tokenizer = default_host()
    say(f"Training {settings.d_sae:,} latents on {settings.total_tokens:,} tokens of Python's standard library.")
    with watch("training"):
        sae, sample = _train(settings, host, tokenizer, output)
    say("Measuring on files that were not trained on, beside PCA and random weights of equal L0.")
    with watch("evaluation"):
        report = _measure(settings, sae, host, tokenizer, sample)
    say("Looking for what its features respond to.")
    with watch("features"):
        contexts = top_contexts(sae, host, tokenizer, excerpts(settings.example_characters, settings.seed))
        ranked = consistent_features(contexts, settings.least_density, settings.most_density)
        features = choose_features(ranked, settings.n_features)
    with watch("steering"):
        effect = _effect(settings, sae, host, tokenizer, ranked)
        texts = _continue(settings, sae, host, tokenizer, effect)
    say("Harvesting and labelling every feature, on the same held-out files.")
    with watch("labels"):
        excerpt = excerpts(settings.label_characters, settings.seed)
        n_tokens = _tokens_in(tokenizer, excerpt)
        labels = label_features(
            output, sae, host, tokenizer, excerpt, n_tokens, settings.context_length, settings.seed
        )
    if effect is not None and effect.examples not in features:
        features = [effect.examples, *features[: settings.n_features - 1]]
    training = (sae.config.provenance or {})["training"]
    training["seconds"] = round(watch.seconds["training"], 1)
    sae.save_pretrained(output)
    save_card(output, sae, report, examples=[for_card(f, settings.n_contexts) for f in features[:N_FEATURES]])
    save_preset(output, effect, settings.prompt)
    return DemoResult(sae, report, features, effect, texts, labels, output, watch.seconds)


def _train(
    settings: DemoSettings, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path
) -> tuple[SAE, torch.Tensor]:
    """The trained autoencoder, and a sample of training activations to fit baselines on."""
    config = TopKConfig(
        d_in=host.config.hidden_size,
        d_sae=settings.d_sae,
        k=settings.k,
        hook_in=settings.hook,
        input_norm="scalar",
        provenance={"corpus": corpus_info("train")},
    )
    args = SAETrainingArguments(
        output_dir=str(output),
        total_tokens=settings.total_tokens,
        tokens_per_batch=settings.tokens_per_batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    stream = ActivationStream(
        host,
        tokenizer,
        stdlib_corpus("train"),
        [settings.hook],
        context_length=settings.context_length,
        ring_bytes=settings.ring_bytes,
        seed=settings.seed,
        repeat=True,
    )
    torch.manual_seed(settings.seed)
    sae = TopKSAE(config)
    SAETrainer(sae, args, stream).train()
    return sae.eval(), stream.sample(16_384)[settings.hook]


def excerpts(characters: int, seed: int) -> Dataset:
    """A stretch of every held-out file, whole lines: all files count, not the few longest ones."""
    from datasets import Dataset

    rng, texts, paths = random.Random(seed), [], []
    for path, text in stdlib_files("test"):
        start = rng.randrange(max(len(text) - characters, 0) + 1)
        start = text.find("\n", start) + 1 if start else 0
        texts.append(text[start : start + characters])
        paths.append(path)
    return Dataset.from_dict({"text": texts, "path": paths})


def _tokens_in(tokenizer: PreTrainedTokenizerBase, texts: Dataset) -> int:
    return sum(map(len, tokenizer(list(texts["text"]), verbose=False)["input_ids"]))


def _measure(settings: DemoSettings, sae: SAE, host: Any, tokenizer: Any, sample: torch.Tensor) -> EvalReport:
    held_out = excerpts(settings.eval_characters, settings.seed)
    report = evaluate(
        sae,
        host,
        tokenizer,
        held_out,
        n_tokens=_tokens_in(tokenizer, held_out),
        context_length=settings.context_length,
        controls=True,
        control_sample=sample,
    )
    report.dataset |= {"name": NAME, "split": "test"}
    return report


def _effect(
    settings: DemoSettings, sae: SAE, host: Any, tokenizer: Any, ranked: Sequence[Consistent]
) -> Effect | None:
    """The feature to steer with, among the most consistent ones that peak at a word."""
    words = [c for c in ranked if not c.before and c.token.isalpha() and len(c.token) > 2]
    candidates = [c.examples for c in words if c.share >= settings.least_consistency]
    text = excerpts(200, settings.seed)[0]["text"]
    return largest_effect(
        sae, host, tokenizer, candidates[: settings.n_candidates], text, settings.strengths, settings.most_kl
    )


def _continue(settings: DemoSettings, sae: SAE, host: Any, tokenizer: Any, effect: Effect | None) -> dict[str, str]:
    """A sampled continuation of the prompt, alone and with the feature turned up; the same random numbers for both."""
    inputs = tokenizer(settings.prompt, return_tensors="pt", return_token_type_ids=False)
    start = inputs["input_ids"].shape[1]
    edits = {} if effect is None else {"steered": add({effect.examples.latent: OfMax(effect.strength)})}
    texts = {}
    for name, edit in {"baseline": None, **edits}.items():
        torch.manual_seed(settings.seed)
        with steer(host, sae, edit):
            ids = host.generate(**inputs, max_new_tokens=settings.new_tokens, do_sample=True, top_p=0.9)
        texts[name] = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    return texts


class _Watch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._began = "", 0.0

    def __call__(self, name: str) -> _Watch:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = time.monotonic() - self._began
