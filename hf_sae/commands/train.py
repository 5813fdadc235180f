"""`hf-sae train`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Host, Json, did_you_mean, fail, load_host, pairs
from .settings import read_config


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..evaluation import EvalReport
    from ..models import SAE, SAEConfig

Option = typer.Option
PLACES = "PLACE[,PLACE…]"
HOOK = Option("--hook", "--hook-in", metavar=PLACES, help="Place to read (mlp_in.8), or several: `hf-sae hooks`.")
HOOK_OUT = Option(metavar=PLACES, help="Place (or several) to predict: makes a transcoder.")
ARCH = Option(
    help="Sparsity mechanism: topk, batch_topk, gated, … (docs/methods.md). Default: topk; of several places crosscoder, or "
    "with --hook-out cross_layer."
)
LAST = ("last", "true", "True")
DEFAULT_HOOK = "resid_post.1"  # of the default host
EXPANSION = 16
DEFAULT_K = 32  # of the architecture that is chosen by the places
ALIASES = {"mutual_choice": "batch_topk"}  # other papers' names of the same method


def train(
    context: typer.Context,
    host: Host = None,
    dataset: Annotated[
        str | None, Option(help="Hub id, folder or file. Default: the source code of Python's standard library.")
    ] = None,
    cache: Annotated[
        str | None,
        Option(metavar="PATH_OR_REPO", help="Train on activations that `hf-sae cache write` kept, without the host."),
    ] = None,
    skip_corrupt: Annotated[bool, Option("--skip-corrupt", help="Pass over damaged shards of --cache.")] = False,
    split: Annotated[str, Option(help="Split to train on.")] = "train",
    column: Annotated[str | None, Option(help="Column with the text. Default: the first that looks like it.")] = None,
    hook: Annotated[list[str] | None, HOOK] = None,
    hook_out: Annotated[list[str] | None, HOOK_OUT] = None,
    layer: Annotated[int | None, Option(help="Short for --hook resid_post.LAYER.")] = None,
    arch: Annotated[str | None, ARCH] = None,
    d_sae: Annotated[int | None, Option(help="Number of latents.")] = None,
    expansion: Annotated[int, Option(help="Latents per input dimension, where --d-sae is not given.")] = EXPANSION,
    k: Annotated[float | None, Option(help="Active latents per token (topk), or in the mean (batch_topk).")] = None,
    l1_coefficient: Annotated[float | None, Option(help="Weight of the L1 penalty (standard).")] = None,
    target_l0: Annotated[float | None, Option(help="Mean active latents per token (jumprelu).")] = None,
    set_: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Any other config field; repeatable.")
    ] = None,
    skip: Annotated[bool, Option(help="Affine skip connection (transcoders).")] = False,
    input_norm: Annotated[str, Option(help="none, scalar, center, layer_norm, unit_ln or unit_rms.")] = "scalar",
    output_dir: Annotated[Path, Option(help="Checkpoints, the final model and its card go here.")] = Path("sae"),
    total_tokens: Annotated[int, Option(help="Activations to train on.")] = 10_000_000,
    tokens_per_batch: Annotated[int, Option(help="Activations per optimiser step.")] = 4096,
    context_length: Annotated[int, Option(help="Tokens per row of text.")] = 128,
    positions: Annotated[str, Option(help="all, assistant, user, or a mask column.")] = "all",
    learning_rate: Annotated[float | None, Option(help="Peak rate. Default: a rule by --d-sae.")] = None,
    save_steps: Annotated[int | None, Option(help="Steps between checkpoints.")] = None,
    save_total_limit: Annotated[int | None, Option(help="Keep the newest so many checkpoints.")] = None,
    seed: Annotated[int, Option(help="Of initialisation and data order.")] = 0,
    resume_from_checkpoint: Annotated[
        str | None, Option(metavar="last|hub|PATH", help="Go on from a checkpoint.")
    ] = None,
    report_to: Annotated[str, Option(help="Tracker: none, trackio, tensorboard, wandb, …")] = "none",
    push_to_hub: Annotated[bool, Option(help="Upload checkpoints and the final model.")] = False,
    hub_model_id: Annotated[str | None, Option(help="user/name to upload to.")] = None,
    hub_strategy: Annotated[str, Option(help="To upload: checkpoint, all_checkpoints or end.")] = "checkpoint",
    parallelism: Annotated[str, Option(help="How several processes share the work: data, latents or saes.")] = "data",
    bf16: Annotated[bool | None, Option(help="Encoder products in bfloat16. Default: on a GPU that can.")] = None,
    eval_tokens: Annotated[int, Option(help="Tokens to measure the result on; 0 does not.")] = 32_768,
    card_features: Annotated[int, Option(help="Example features in the card, found on that text.")] = 6,
    eval_split: Annotated[str | None, Option(help="Split to measure on. Default: test of the default data.")] = None,
    dry_run: Annotated[bool, Option(help="Estimate time, memory and disk of the run, and do not train.")] = False,
    config: Annotated[
        Path | None,
        Option(help="YAML file with these options as keys; flags win.", is_eager=True, callback=read_config),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a sparse autoencoder or a transcoder.

    Example: `hf-sae train --host openai-community/gpt2 --dataset roneneldan/TinyStories --layer 8 --k 32`

    On several devices: `accelerate launch -m hf_sae train …`
    """
    run(SimpleNamespace(**context.params))


def run(options: Any) -> None:
    """The whole command; `options` has an attribute for each."""
    from accelerate import Accelerator

    from ..corpus import stdlib_corpus
    from ..models import AutoSAE
    from ..training import SAETrainer, SAETrainingArguments
    from ..training.recipes import open_stream

    names = SAETrainingArguments.__dataclass_fields__.keys() & vars(options).keys()
    chosen: dict[str, Any] = {name: getattr(options, name) for name in names} | {"output_dir": str(options.output_dir)}
    args = SAETrainingArguments(**chosen)
    console, process = Console(options.as_json), Accelerator()  # before the host: it chooses this process's device
    if options.cache is not None:
        from .train_cached import run_cached

        run_cached(options, args, console, process)
        return
    host, tokenizer = load_host(options.host)
    if tokenizer is None:
        fail(f"the host {options.host!r} has no tokenizer. Train on its activations from Python with SAETrainer.")
    model_config = build_config(options, host)
    dataset = stdlib_corpus(options.split) if options.dataset is None else options.dataset
    stream = open_stream(host, tokenizer, dataset, model_config, args, **stream_options(options))
    if options.dry_run:
        from .rehearse import rehearse

        rehearse(options, console, model_config, args, stream)
        return
    sae = new_model(model_config, options.seed)
    trainer = SAETrainer(sae, args, stream)
    began = time.monotonic()
    resume = options.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume in LAST else resume)
    if not sae.dictionary.whole:  # this process has a part of it
        sae = AutoSAE.from_pretrained(args.output_dir)
    if process.is_main_process:
        conclude(options, console, sae.eval(), host, tokenizer, {"seconds": round(time.monotonic() - began, 1)})


def build_config(
    options: Any, host: PreTrainedModel | Any, cached_widths: Mapping[str, int] | None = None
) -> SAEConfig:
    """The autoencoder's config from `--arch`, its own flags and `--set`; widths from the host, or from a cache."""
    from ..corpus import corpus_info
    from ..hosts import width_of
    from ..models import ConfigError

    hook_in, hook_out = places_read(options), places_in(options.hook_out)
    if not hook_in and options.host is not None:
        fail("no place to read: give --layer 8, or --hook mlp_in.8. `hf-sae hooks HOST` lists the places of a host.")
    hook_in = hook_in or [DEFAULT_HOOK]
    config_class = _architecture(options.arch, hook_in, hook_out)
    width = partial(width_of, host) if cached_widths is None else cached_widths.__getitem__
    widths = [[width(place) for place in places] for places in (hook_in, hook_out or hook_in)]
    d_in = sum(widths[0])
    fields: dict[str, Any] = {
        "hook_in": hook_in,
        "hook_out": hook_out or None,
        "d_in": d_in,
        "d_out": sum(widths[1]),
        "d_sae": options.d_sae or options.expansion * d_in,
        "skip": options.skip,
        "input_norm": options.input_norm,
        "provenance": {"corpus": corpus_info("train")} if options.dataset is None else None,
    }
    if len(set(widths[0])) > 1 and hasattr(config_class, "widths"):
        fields["widths"] = widths[0]
    fields |= _sparsity(options) | pairs(options.set_ or (), "--set")
    try:
        return config_class(**fields)
    except ConfigError as error:
        if not getattr(config_class, "has_no_defaults_at_init", False):
            raise
        fail(f"{error} As flags, lists have commas: --hook resid_post.0,resid_post.1, and --hook-out likewise.")


def _architecture(name: str | None, hook_in: list[str], hook_out: list[str]) -> type[SAEConfig]:
    """The config class that `--arch` names, or what places like these are usually read with."""
    from ..models import registered
    from ..training.recipes import usual_architecture

    if name is None:
        return usual_architecture(hook_in, hook_out)
    known = {model_type.removeprefix("hf_sae_"): config for model_type, (config, _) in registered().items()}
    known |= {alias: known[of] for alias, of in ALIASES.items()}
    if name not in known:
        fail(f"--arch {name!r} does not exist. {did_you_mean(name, known)}")
    return known[name]


def _sparsity(options: Any) -> dict[str, Any]:
    """What the flags say about how many latents are active."""
    own = {name: getattr(options, name) for name in ("k", "l1_coefficient", "target_l0")}
    if own["k"] is not None and own["k"].is_integer():
        own["k"] = int(own["k"])
    if options.arch is None and own["k"] is own["l1_coefficient"] is None:
        own["k"] = DEFAULT_K  # without k a crosscoder has a penalty
    return {name: value for name, value in own.items() if value is not None}


def places_read(options: Any) -> list[str]:
    """The places of `--hook` or `--layer`; none where neither was given."""
    named = places_in(options.hook)
    if named and options.layer is not None:
        fail(f"--hook {','.join(named)} and --layer {options.layer} both name the place to read: give one of them.")
    return named if options.layer is None else [f"resid_post.{options.layer}"]


def places_in(option: Sequence[str] | None) -> list[str]:
    """The places that an option names: given several times, separated by commas, or both; none where it was not given."""
    return [place.strip() for part in option or () for place in part.split(",") if place.strip()]


def stream_options(options: Any) -> dict[str, Any]:
    """What the flags say about the data."""
    return {name: getattr(options, name) for name in ("context_length", "positions", "column", "split", "seed")}


def new_model(config: SAEConfig, seed: int) -> SAE:
    """A freshly initialised autoencoder, the same on every process."""
    import torch

    from ..models import AutoSAE

    torch.manual_seed(seed)
    return AutoSAE.from_config(config)


def conclude(options: Any, console: Console, sae: SAE, host: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
    """Measures the result, writes its statistics and card, uploads, says what to do next."""
    from ..hub import push_folder, save_card

    report = examples = None
    if options.eval_tokens > 0:
        report, examples = measure(options, console, sae, host, tokenizer)
    provenance = sae.config.provenance or {}
    sae.config.provenance = {**provenance, "training": {**(provenance.get("training") or {}), **facts}}
    sae.save_pretrained(options.output_dir)
    save_card(options.output_dir, sae, report, examples=examples, repo_id=options.hub_model_id)
    payload: dict[str, Any] = {"output": str(options.output_dir), **facts}
    if report is not None:
        console.show(report.to_table())
        payload["report"] = report.to_dict()
    if options.push_to_hub:
        payload["url"] = push_folder(options.output_dir, options.hub_model_id)
        console.say(f"Uploaded: {payload['url']}")
    console.finish(payload, f"hf-sae info {options.output_dir}")


def measure(options: Any, console: Console, sae: SAE, host: Any, tokenizer: Any) -> tuple[EvalReport, Any]:
    """A report and example features on held-out text where there is some; a note in it where there is not."""
    from ..corpus import stdlib_corpus
    from ..evaluation import evaluate
    from ..hub import example_features

    names = ("context_length", "positions", "column")
    choice = {name: getattr(options, name) for name in names} | {"n_tokens": options.eval_tokens}
    console.say(f"Measuring on {options.eval_tokens:,} tokens.")
    text = options.dataset
    if text is None:
        text = stdlib_corpus(options.eval_split or "test")
    else:
        choice["split"] = options.eval_split or options.split
    report = evaluate(sae, host, tokenizer, text, **choice)
    if choice.get("split") == options.split:
        report.notes.append(f"Measured on the split {options.split!r} that it was trained on: not held-out text.")
    n_features = options.card_features if isinstance(sae.config.hook_in, str) else 0
    if n_features < options.card_features:
        console.say("No example features in the card: they are found for autoencoders that read one place.")
    examples = example_features(sae, host, tokenizer, text, n_features=n_features, **choice) if n_features else None
    return report, examples
