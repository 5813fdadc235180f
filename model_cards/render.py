"""Makes the cards in this folder again from the files beside them: `python model_cards/render.py`.

No weights are needed: a card rests on `config.json`, `eval_results.json`, `examples.json`, `training_log.json` and
`feature_stats.safetensors` (or, for a repo with many autoencoders, on the index in its root `config.json`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hf_sae.evaluation import EvalReport
from hf_sae.hub import render_card
from hf_sae.hub.cards import ASSETS, EXAMPLES, README, RESULTS, read_log
from hf_sae.hub.collection_cards import render_collection_card
from hf_sae.hub.plots import Plot, card_plots, frontier
from hf_sae.models import AutoSAE, registered
from hf_sae.models.checkpoint import FEATURE_STATS


FOLDER = Path(__file__).parent
METADATA = {"license": "apache-2.0"}


def examples() -> list[Path]:
    """The folders that hold an example."""
    return sorted(path.parent for path in FOLDER.glob("*/config.json"))


def render(folder: Path) -> tuple[str, Sequence[Plot]]:
    """The README of an example and its plots."""
    config, repo_id = _json(folder / "config.json"), f"your-name/{folder.name}"
    if config["model_type"] == "sae_collection":
        plot = frontier(config["index"])
        return render_collection_card(repo_id, config["index"], plot=plot), [plot] if plot else []
    config_class, _ = registered()[config["model_type"]]
    sae = AutoSAE.from_config(config_class.from_dict(config))
    sae.feature_stats = load_file(folder / FEATURE_STATS)
    report = EvalReport.from_dict(_json(folder / RESULTS))
    plots = card_plots(sae, report, read_log(folder))
    features = _json(folder / EXAMPLES)
    return render_card(sae, report, None, features, repo_id, metadata=METADATA, plots=plots), plots


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for example in examples():
        text, pictures = render(example)
        (example / README).write_text(text, encoding="utf-8")
        (example / ASSETS).mkdir(exist_ok=True)
        for picture in pictures:
            (example / ASSETS / picture.file).write_bytes(picture.png)
