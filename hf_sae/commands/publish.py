"""`hf-sae card`, `push`, `pull` and `ls`: what is on the Hub, and how it gets there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console, Json, Repo, Revision, Subfolder, aligned, columns, fail, load_pair


if TYPE_CHECKING:
    from ..evaluation import EvalReport
    from ..models import SAE

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a saved autoencoder.")]


def card(
    folder: Folder,
    report: Annotated[
        Path | None, typer.Option(help="Report of `hf-sae eval --output`. Default: the folder's.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="user/name that the quickstart loads.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="License of the weights, such as mit.")] = None,
    features: Annotated[
        int, typer.Option(help="Look for so many example features on text. Default: those that are there.")
    ] = 0,
    dataset: Annotated[
        str | None, typer.Option(help="That text. Default: the source code of Python's standard library.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Its host. Default: the one it was trained on.")] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Write the card to this page (.html) to look at, and nothing else.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a README written by hand. Default: only its header is changed."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the model card of a saved autoencoder; text outside its blocks is kept.

    Example: `hf-sae card ./sae --license mit --preview card.html`
    """
    from ..hub.cards import is_generated

    console = Console(as_json)
    if not folder.is_dir():
        fail(f"{str(folder)!r} is no folder here. Give the folder of a saved autoencoder.")
    examples = find_examples(folder, host, dataset, features) if features else None
    metadata = {"license": license_} if license_ else None
    choice: dict[str, Any] = {"report": report, "examples": examples, "metadata": metadata, "overwrite": overwrite}
    if preview is not None:
        show_card(folder, repo_id, preview, **choice)
        console.show(f"Wrote {preview}; open it in a browser.")
        step = f"hf-sae card {folder}" + (f" --license {license_}" if license_ else "")
        console.finish({"preview": str(preview)}, step)
        return
    path = make_card(folder, repo_id, **choice)
    kept = "" if is_generated(path) else " It was written by hand: only its header was changed (see --overwrite)."
    console.show(f"Wrote {path}.{kept}")
    console.finish({"card": str(path)}, f"hf-sae push {folder} {repo_id or 'user/name'}")


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.")],
    subfolder: Annotated[str | None, typer.Option(help="Folder in the repo. Default: its root.")] = None,
    private: Annotated[bool | None, typer.Option(help="Visibility of a repo that is created.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="Title of a Hub collection of yours to list the repo in.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload a saved autoencoder, a folder with many, or a feature dataset to the Hub in one commit, with its own card.

    Example: `hf-sae push ./sae user/gpt2-layer-8`
    """
    from ..features.manifest import is_feature_dataset
    from ..hub import group, push_features, push_folder
    from ..hub.collections import build_index

    console = Console(as_json)
    saved = (folder / "config.json").is_file()
    options: dict[str, Any] = {
        "private": private,
        "revision": revision,
        "create_pr": create_pr,
        "commit_message": message,
    }
    table = is_feature_dataset(folder)
    if table:
        if subfolder is not None:
            fail(f"{str(folder)!r} is a feature dataset, which has a repo of its own: leave --subfolder out.")
        url = push_features(folder, repo_id, **options)
    else:
        for place in [""] if saved else build_index(folder):
            inside = "/".join(part for part in (subfolder, place) if part) or None
            make_card(folder / place, repo_id, subfolder=inside)
        url = push_folder(folder, repo_id, subfolder=subfolder, **options)
    if collection is not None:
        console.show(group([repo_id], collection, repo_type="dataset" if table else "model"))
    console.show(url)
    where = f"{repo_id} --subfolder {subfolder}" if subfolder else repo_id
    at = f" --revision {revision}" if revision else ""
    step = f'load_features("{repo_id}") in Python' if table else f"hf-sae {'info' if saved else 'ls'} {where}{at}"
    console.finish({"url": url}, f"review the pull request at {url}" if create_pr else step)


def pull(
    repo_or_path: Repo,
    output_dir: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put it.")],
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Download one autoencoder, at one commit, and save it in our format; its card and figures come along.

    Example: `hf-sae pull user/gpt2-saes ./layer_8 --subfolder layer_8`
    """
    from ..conversion.files import open_files
    from ..hub.companions import fetch_companions
    from ..models import AutoSAE
    from ..models.pinning import split_name

    console = Console(as_json)
    sae = AutoSAE.from_pretrained(repo_or_path, subfolder=subfolder, revision=revision)
    commit = getattr(sae.config, "_commit_hash", None)
    sae.save_pretrained(output_dir)
    name, place = split_name(repo_or_path, subfolder)
    if ":" not in name or Path(name).exists():  # a prefix names another library's
        fetch_companions(open_files(name, place, commit or revision), output_dir)
    console.show(f"Saved {output_dir}" + (f", from commit {commit}." if commit else "."))
    console.finish({"output": str(output_dir), "commit": commit}, f"hf-sae info {output_dir}")


def ls(
    repo_or_path: Repo,
    subfolder: Subfolder = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """List the autoencoders of a repo or folder; none of them is downloaded.

    Example: `hf-sae ls user/gpt2-saes`
    """
    from ..hub import load_saes

    console = Console(as_json)
    saes = load_saes(repo_or_path, revision, subfolder)
    keys = {"hook_in": "place", "architecture": "kind", "d_sae": "latents"}
    shown = [key for key in keys if any(key in entry for entry in saes.index.values())]
    figures = [key for key in ("l0", "fvu", "delta_ce") if any(key in _figures(e) for e in saes.index.values())]
    rows = [("folder", *(keys[key] for key in shown), *figures)]
    for place, entry in saes.index.items():
        facts = [_fact(entry, key) for key in shown]
        numbers = [f"{_figures(entry)[key]:.4g}" if key in _figures(entry) else "" for key in figures]
        rows.append((place, *facts, *numbers))
    rest = sum(2 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
    rows = [(_without_middle(place, columns() - rest), *facts) for place, *facts in rows]
    console.show(aligned(rows, "".join(">" if key == "d_sae" else "<" for key in ("", *shown)) + ">" * len(figures)))
    first = next(iter(saes))
    listed = [{"place": place, **entry} for place, entry in saes.index.items()]
    name = f"{repo_or_path} --subfolder {first}" if first != "." else repo_or_path
    console.finish({"name": repo_or_path, "commit": saes.commit, "autoencoders": listed}, f"hf-sae info {name}")


def _fact(entry: dict[str, Any], key: str) -> str:
    value, target = entry.get(key, ""), entry.get("hook_out")
    if key == "hook_in":
        several = [", ".join(v) if isinstance(v, list) else str(v) for v in (value, target) if v is not None]
        return several[0] if target in (None, value) else " → ".join(several)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _without_middle(text: str, width: int) -> str:
    """A long name without its middle: beginnings and ends tell folders apart."""
    width = max(width, 12)
    if len(text) <= width:
        return text
    return f"{text[: (width - 1) // 2]}…{text[len(text) - width // 2 :]}"


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    metrics = entry.get("metrics")
    found = metrics if isinstance(metrics, dict) else {}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def make_card(folder: Path, repo_id: str | None, **options: Any) -> Path:
    """The card from the files of a folder; `options` are those of `save_card`."""
    from ..hub import save_card

    return save_card(folder, *_parts(folder, options), repo_id, **options)


def show_card(folder: Path, repo_id: str | None, page: Path, **options: Any) -> None:
    """The same as a page, and nothing else is written."""
    from ..hub.cards import compose_card
    from ..hub.preview import write_page

    text, plots = compose_card(folder, *_parts(folder, options), repo_id, **options)
    write_page(text, folder, page, {plot.file: plot.png for plot in plots})


def _parts(folder: Path, options: dict[str, Any]) -> tuple[SAE, EvalReport | None, None, Any]:
    """The autoencoder, its report and its example features; `options` gives up the last two, where it names others."""
    from ..hub.cards import EXAMPLES, RESULTS
    from ..models import AutoSAE

    report, examples = options.pop("report", None), options.pop("examples", None)
    sae = AutoSAE.from_pretrained(str(folder))
    measured = _report(report or folder / RESULTS) if report is not None or (folder / RESULTS).exists() else None
    if examples is None and (folder / EXAMPLES).exists():
        examples = _json(folder / EXAMPLES)
    return sae, measured, None, examples


def find_examples(folder: Path, host: str | None, dataset: str | None, n_features: int) -> Any:
    """Example features on text that was not trained on, for a card."""
    from ..corpus import stdlib_corpus
    from ..hub import example_features

    sae, model, tokenizer = load_pair(str(folder), host)
    return example_features(sae, model, tokenizer, dataset or stdlib_corpus("test"), n_features=n_features)


def _report(path: Path) -> EvalReport:
    from ..evaluation import EvalReport

    return EvalReport.from_dict(_json(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        fail(f"cannot read {str(path)!r}: {error}")
