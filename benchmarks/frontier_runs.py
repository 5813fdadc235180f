"""One run of the frontier: train, measure, write a line; runs that have their line are not made again."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hf_sae import default_host, evaluate
from hf_sae.errors import ConfigError, DataError, HookPointError
from hf_sae.models import SAE, registered

from .frontier_settings import SETTINGS, TARGETS, config_of, further_places
from .short_training import calibrated, fit, measure


Line = dict[str, Any]
SIZES = ("d_sae", "steps", "batch")  # lines of other sizes belong to another frontier
GIVEN = "with_gradient"  # ends the names of figures of a g-SAE that is given the gradient at inference too


@dataclass(frozen=True)
class Sizes:
    """Of every run: latents, optimiser steps, tokens of each, steps of a run that finds a coefficient, tokens of evaluation."""

    d_sae: int = 3072
    steps: int = 600
    batch: int = 1024
    calibration: int = 200
    evaluated: int = 8_192


@dataclass(frozen=True)
class Cache:
    """Activations of the same tokens at one place of the default host or several, as `benchmarks.real_activations` writes them.

    Args:
        hook (`str`): the place of all architectures that read one.
        rows (`dict`): `[tokens, d]` by place, or `"<place>/<what an architecture needs besides>"`.
        held_out (`dict`): `[tokens, d]` of other files by place.
        name (`str`): of the file.
    """

    hook: str
    rows: dict[str, Tensor]
    held_out: dict[str, Tensor]
    name: str = ""

    @classmethod
    def load(cls, path: Path) -> Cache:
        """Reads the file.

        Raises:
            DataError: for a file without `train`, `held_out` and the hook that they were taken at.
        """
        with safe_open(path, framework="pt") as file:
            hook, keys = (file.metadata() or {}).get("hook"), set(file.keys())
            if hook is None or not keys >= {"train", "held_out"}:
                raise DataError(
                    f"{path} has {', '.join(sorted(keys))} and hook={hook!r}; train, held_out and a hook are needed. "
                    "Write it with python -m benchmarks.real_activations."
                )

            def part(name: str) -> dict[str, Tensor]:
                mine = {
                    key.removeprefix(name): key
                    for key in keys
                    if key == name or key.startswith((f"{name}/", f"{name}@"))
                }
                places = {end: end[1:] if end.startswith("@") else hook + end for end in mine}
                return {places[end]: file.get_tensor(key) for end, key in mine.items()}

            return cls(hook, part("train"), part("held_out"), path.name)

    @property
    def widths(self) -> dict[str, int]:
        """Of the activations, by place."""
        return {place: x.shape[1] for place, x in self.rows.items()}

    def keys_for(self, name: str) -> list[str]:
        """The places that the architecture reads and writes, and `"<place>/<what it needs of each token besides>"`."""
        _, model_class = registered()[f"hf_sae_{name}"]
        reads, writes = SETTINGS[name].places(self.hook)
        besides = [f"{place}/{need}" for place in writes for need in model_class.needs]
        return list(dict.fromkeys((*reads, *writes, *besides)))

    def require(self, name: str) -> None:
        """Refuses architectures that need what the cache does not have.

        Raises:
            DataError: with the option that writes it.
        """
        keys = self.keys_for(name)
        missing = [key for key in keys if key not in self.rows or not ("/" in key or key in self.held_out)]
        if not missing:
            return
        places = [key for key in missing if "/" not in key]
        needs = dict.fromkeys(key.partition("/")[2] for key in missing if "/" in key)
        option = f"--also {' '.join(further_places(self.hook))}" if places else f"--needs {' '.join(needs)}"
        raise DataError(
            f"needs {', '.join(missing)} of each token: write the cache with python -m benchmarks.real_activations {option}."
        )

    def rows_for(self, name: str) -> dict[str, Tensor]:
        """The rows that the architecture takes."""
        return {key: self.rows[key] for key in self.keys_for(name)}

    def held_out_for(self, name: str, n_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """The first held-out tokens as the architecture reads and is to write them, `[tokens, d_in]` and `[tokens, d_out]`."""
        reads, writes = SETTINGS[name].places(self.hook)
        x = self._side_by_side(reads, n_tokens)
        return x, x if writes == reads else self._side_by_side(writes, n_tokens)

    def _side_by_side(self, places: Sequence[str], n_tokens: int | None) -> Tensor:
        return torch.cat([self.held_out[place][:n_tokens].float() for place in places], dim=-1)


class Log:
    """Lines of JSON, one a run or a coefficient found; the first file is added to, the others are only read.

    Args:
        paths (`list` of `Path`): a last line that was cut off when a run was stopped is left out.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.path = paths[0] if paths else None
        self.lines: list[Line] = []
        for path in paths:
            if path.exists():
                self.lines += _lines(path)

    def add(self, line: Line) -> None:
        """Keeps a line, and writes it at once."""
        self.lines.append(line)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps(line) + "\n")

    def find(self, **wanted: Any) -> list[Line]:
        """Lines with these values."""
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]


def _lines(path: Path) -> Iterable[Line]:
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def run(name: str, target: int, seed: int, cache: Cache, sizes: Sizes, log: Log) -> Line:
    """The line of a run; it is made and kept where the log does not have it."""
    key = {"arch": name, "target": target, "seed": seed, **{size: getattr(sizes, size) for size in SIZES}}
    if found := log.find(kind="run", **key):
        return found[-1]
    line: Line = {"kind": "run", **key}
    try:
        line |= _measured(name, target, seed, cache, sizes, log)
    except (ConfigError, DataError, HookPointError) as error:
        return line | {"failed": " ".join(str(error).split())}  # not kept: the next run tries again
    log.add(line)
    return line


def _measured(name: str, target: int, seed: int, cache: Cache, sizes: Sizes, log: Log) -> Line:
    cache.require(name)
    found = coefficient(name, target, cache, sizes, log)
    config = config_of(name, cache.widths, sizes.d_sae, cache.hook, target, found)
    trained = fit(config, cache.rows_for(name), steps=sizes.steps, batch=sizes.batch, seed=seed)
    figures = asdict(measure(trained.sae, *cache.held_out_for(name)))
    fields = SETTINGS[name].fields(target, found)
    made = {"fields": fields, "cache": cache.name, "seconds": trained.seconds}
    return made | figures | _in_the_host(trained.sae, sizes)


def _in_the_host(sae: SAE, sizes: Sizes) -> Line:
    if not sizes.evaluated:
        return {}
    found = _losses(sae, sizes)
    if "gradient" not in type(sae).needs:
        return found
    sae.config.inference = "gradient"
    return found | {f"{key}_{GIVEN}": value for key, value in _losses(sae, sizes).items()}


def _losses(sae: SAE, sizes: Sizes) -> Line:
    host, tokenizer = _host()
    report = evaluate(sae, host, tokenizer, n_tokens=sizes.evaluated, progress=False)
    return {key: report.metrics[key].value for key in ("ce_recovered", "delta_ce")}


@functools.cache
def _host() -> tuple[Any, Any]:
    return default_host()


def coefficient(name: str, target: int, cache: Cache, sizes: Sizes, log: Log) -> float | None:
    """The coefficient that gives an L0 of `target` in a short run of seed 0; `None` where the L0 itself is a field."""
    between = SETTINGS[name].between
    if between is None:
        return None
    key = {"kind": "coefficient", "arch": name, "d_sae": sizes.d_sae, "batch": sizes.batch, "steps": sizes.calibration}
    known = {line["value"]: line["l0"] for line in log.find(**key)}

    def l0_at(value: float) -> float:
        config = config_of(name, cache.widths, sizes.d_sae, cache.hook, target, value)
        trained = fit(config, cache.rows_for(name), steps=sizes.calibration, batch=sizes.batch, seed=0)
        l0 = measure(trained.sae, *cache.held_out_for(name, 4096)).l0
        log.add({**key, "value": value, "l0": l0})
        return l0

    return calibrated(l0_at, target, *between, known=known)


def estimate(names: Sequence[str], n_seeds: int, cache: Cache, sizes: Sizes, log: Log) -> dict[str, float]:
    """Seconds that the runs still to be made will take, by architecture, from a few steps of each."""
    out = {}
    for name in names:
        wanted = [(target, seed) for target in SETTINGS[name].targets for seed in range(n_seeds)]
        done = {(line["target"], line["seed"]) for line in log.find(kind="run", arch=name, **_sizes(sizes))}
        left = len([pair for pair in wanted if pair not in done])
        short = 8 if SETTINGS[name].between is not None and left else 0
        try:
            step = _seconds_per_step(name, cache, sizes) if left else 0.0
        except (ConfigError, DataError, HookPointError):
            step = 0.0  # its rows will say why
        out[name] = step * (left * sizes.steps + short * sizes.calibration) + left * sizes.evaluated / 3000
    return out


def _sizes(sizes: Sizes) -> dict[str, int]:
    return {size: getattr(sizes, size) for size in SIZES}


def _seconds_per_step(name: str, cache: Cache, sizes: Sizes, steps: int = 4) -> float:
    cache.require(name)
    between = SETTINGS[name].between
    found = None if between is None else (between[0] * between[1]) ** 0.5
    config = config_of(name, cache.widths, sizes.d_sae, cache.hook, TARGETS[1], found)
    trained = fit(config, cache.rows_for(name), steps=steps, planned=sizes.steps, batch=sizes.batch, seed=0)
    return trained.seconds / steps
