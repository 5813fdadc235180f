"""How large a visitor's repo is, and that it holds nothing but safetensors, before anything of it is downloaded."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..access import explained
from .limits import Place, RequestError


RISKY = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".joblib", ".py")
ADAPTER = "adapter_config.json"


def files_of(repo: str, kind: str = "model", revision: str | None = None) -> tuple[dict[str, int], str]:
    """Sizes of all files of a repo, and its commit; asked without a token.

    Raises:
        RequestError: for a name that is a folder here.
        OSError: if the repo cannot be seen by everybody.
    """
    from huggingface_hub import HfApi

    if Path(repo).exists():  # everything else would read that folder instead
        raise RequestError(f"{repo} is no repo of the Hub.")
    with explained(repo, kind):
        info = HfApi(token=False).repo_info(repo, repo_type=kind, revision=revision, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or ()}, str(info.sha)


def check_size(
    repo: str, kind: str, endings: tuple[str, ...], most: int, revision: str | None = None, folder: str = ""
) -> str:
    """The commit of a repo whose files of some kind are not too large.

    Raises:
        RequestError: if they are, or if there are none.
        OSError: if the repo cannot be seen.
    """
    sizes, commit = files_of(repo, kind, revision)
    inside = f"{folder}/" if folder else ""
    kept = [size for name, size in sizes.items() if name.startswith(inside) and name.endswith(endings)]
    if not kept:
        raise RequestError(f"{repo} holds no {endings[0]} file{f' in {folder}' if folder else ''}.")
    if sum(kept) > most:
        raise RequestError(
            f"{repo} has {_gib(sum(kept))} to download, and this Space loads {_gib(most)} at most. Open it on your own machine: "
            f"hf-sae space open {repo}"
        )
    return commit


def check_place(place: Place, most: int) -> str:
    """The commit of a repo whose autoencoder at that place is small enough and safe to read.

    Raises:
        RequestError: if it is not.
        OSError: if the repo cannot be seen.
    """
    sizes, commit = files_of(place.repo)
    folder = PurePosixPath(place.subfolder or ".")
    here = {PurePosixPath(name).name: size for name, size in sizes.items() if PurePosixPath(name).parent == folder}
    weights = [size for name, size in here.items() if name.endswith(".safetensors")]
    if not weights:
        inside = sorted({str(PurePosixPath(n).parent) for n in sizes if n.endswith(".safetensors")} - {str(folder)})
        hint = (
            f" It has autoencoders in {', '.join(inside[:8])}: add one, as in {place.repo}/{inside[0]}."
            if inside
            else ""
        )
        raise RequestError(f"{place} holds no .safetensors file, and nothing else is loaded here.{hint}")
    if risky := sorted(name for name in here if name.endswith(RISKY)):
        raise RequestError(f"{place} also holds {', '.join(risky[:3])}: only safetensors are loaded here.")
    if ADAPTER in here:
        raise RequestError(f"{place} is an adapter of another model. Merge it, and push the whole autoencoder.")
    if sum(weights) > most:
        raise RequestError(f"{place} has {_gib(sum(weights))} of weights, and this Space loads {_gib(most)} at most.")
    return commit


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
