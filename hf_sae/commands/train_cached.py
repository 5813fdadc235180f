"""`hf-sae train --cache`: the places and widths are the cache's, and the host is loaded for the final measurement only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .console import Console, fail, load_host
from .rehearse import rehearse
from .train import LAST, build_config, conclude, new_model, places_in, places_read


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..activations import CachedStream
    from ..training import SAETrainingArguments


def run_cached(options: Any, args: SAETrainingArguments, console: Console, process: Accelerator) -> None:
    """The whole command; `options` has an attribute for each flag."""
    from ..activations import CachedStream, Prefetched
    from ..models import registered
    from ..training import SAETrainer

    chosen: dict[str, Any] = {"repeat": True, "seed": options.seed, "skip_corrupt": options.skip_corrupt}
    chosen |= {"rank": process.process_index, "world_size": process.num_processes}
    whole = CachedStream(options.cache, **chosen)
    options.hook, options.layer = _places(options, whole), None
    _require_points(options.cache, whole, [*options.hook, *places_in(options.hook_out)])
    model_config = build_config(options, None, whole.widths)
    model_config.provenance = None  # the stream says which text it was
    points = registered()[model_config.model_type][1].keys_for(model_config)
    _require_points(options.cache, whole, points)
    stream = CachedStream(options.cache, points, **chosen)
    if options.dry_run:
        rehearse(options, console, model_config, args, stream)
        return
    sae = new_model(model_config, options.seed)
    trainer = SAETrainer(sae, args, Prefetched(stream, trainer_device(process)))
    began = time.monotonic()
    resume = options.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume in LAST else resume)
    if not process.is_main_process:
        return
    facts: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if skipped := stream.counts["skipped_tokens"]:
        console.say(f"{skipped:,} tokens of damaged shards were passed over.")
        facts["skipped_tokens"] = skipped
    host, tokenizer = _host_for_measuring(options, console, stream)
    conclude(options, console, sae.eval(), host, tokenizer, facts)


def trainer_device(process: Accelerator) -> Any:
    """Where batches are put ahead of their step: nowhere on a CPU, where they are already."""
    return None if process.device.type == "cpu" else process.device


def _require_points(cache: str, stream: CachedStream, points: list[str]) -> None:
    for point in points:
        if point not in stream.widths:
            fail(
                f"{cache!r} does not hold {point!r}. It holds {', '.join(stream.widths)}. "
                f"`hf-sae cache write FOLDER {' '.join(f'--hook {name}' for name in points)}` writes one that does."
            )


def _places(options: Any, stream: CachedStream) -> list[str]:
    """The places to read: those that were named, or the only one."""
    from ..activations.columns import is_gradient

    places = [column for column in stream.widths if not is_gradient(column)]
    named = places_read(options)
    if not named and len(places) != 1:
        fail(
            f"{options.cache!r} holds several places: give --hook with one of {', '.join(places or stream.widths)}, or "
            "several of them with commas."
        )
    return named or places


def _host_for_measuring(options: Any, console: Console, stream: CachedStream) -> tuple[Any, Any]:
    """The cache's host and the text to measure on; where there is none, `options.eval_tokens` becomes 0."""
    from ..assets import DEFAULT_HOST

    if options.eval_tokens <= 0:
        return None, None
    source = stream.manifest.source
    data = source.get("data") if isinstance(source.get("data"), dict) else {}
    name, why = options.host or source.get("base_model"), None
    if isinstance(data, dict):
        options.context_length = data.get("context_length", options.context_length)
        recorded = data.get("dataset")
        if options.dataset is None and name != DEFAULT_HOST:
            options.dataset = recorded if isinstance(recorded, str) and "/" in recorded else None
    if options.dataset is None and name not in (None, DEFAULT_HOST):
        why = "the cache does not say on which text; give --dataset"
    elif name is None:
        why = "the cache does not name its host; give --host"
    if why is None:
        pinned = {} if options.host or not source.get("base_revision") else {"revision": source["base_revision"]}
        try:
            host, tokenizer = load_host(name, **pinned)
            if tokenizer is not None:
                return host, tokenizer
            why = f"the host {name!r} has no tokenizer"
        except (OSError, ValueError) as error:
            why = str(error)
    console.say(f"Not measured on the host: {why}. `hf-sae eval` does it later.")
    options.eval_tokens = 0
    return None, None
