"""Several processes train what one trains: every scheme, over one sequence of global batches, and from its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file

from hf_sae.errors import CheckpointError, ConfigError
from hf_sae.models import SAE, AutoSAE, registered
from hf_sae.models.checkpoint import FEATURE_STATS
from hf_sae.training.parallel import Processes, SharedLatents, rows
from hf_sae.training.parallel.latents import SharedDictionary
from tests.forks import together
from tests.training import processes
from tests.training.cases import CASES, make, schemes_of
from tests.training.planted import topk, trainer


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemes")
    processes.expect(folder)
    return folder


@pytest.fixture(scope="module")
def two(expected: Path) -> tuple[Path, str]:
    return expected, together(2, "tests.training.processes", str(expected), output=expected / "two.log")


def test_two_processes_equal_one(two: tuple[Path, str]) -> None:
    for case in CASES:
        for scheme in schemes_of(case):
            assert f"SAME 2 {scheme} {case}" in two[1]


def test_what_goes_wrong_in_one_process_is_an_error_in_all(two: tuple[Path, str]) -> None:
    assert "END 0" in two[1]
    assert "END 1" in two[1]


@pytest.mark.slow
def test_four_processes_equal_one(expected: Path, tmp_path: Path) -> None:
    for path in expected.glob("*.*"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "alone").symlink_to(expected / "alone")
    assert together(4, "tests.training.processes", str(tmp_path), output=tmp_path / "four.log").count("SAME 4") == sum(
        len(schemes_of(case)) for case in CASES
    )


@pytest.mark.parametrize("scheme", ["data", "latents", "saes"])
@pytest.mark.parametrize("case", processes.RESUMED)
def test_one_process_goes_on_from_the_checkpoint_of_two(
    two: tuple[Path, str], tmp_path: Path, scheme: str, case: str
) -> None:
    folder, _ = two
    processes.run(tmp_path, case, "data", resume=folder / scheme / case / f"checkpoint-{processes.HALF}")
    processes.assert_close(processes.saved(tmp_path), load_file(folder / f"{case}.safetensors"), scheme)


def test_files_of_shared_latents(two: tuple[Path, str]) -> None:
    checkpoint = two[0] / "latents" / "topk" / f"checkpoint-{processes.HALF}"
    alone = two[0] / "alone" / "topk" / f"checkpoint-{processes.HALF}"
    names = {path.name for path in checkpoint.iterdir()}
    state = {f"{kind}-0000{i}-of-00002.safetensors" for kind in ("optimizer", "stream") for i in (1, 2)}
    assert names == {"config.json", "model.safetensors", "trainer_state.json"} | state
    with safe_open(checkpoint / "optimizer-00002-of-00002.safetensors", "pt") as file:
        assert file.metadata() == {"latents": "25-50"}
        assert file.get_slice("encoder.weight/exp_avg").get_shape() == [25, 16]
    # what a reader sees does not say how it was trained
    left, right = (json.loads((path / "config.json").read_text()) for path in (checkpoint, alone))
    assert left["provenance"]["training"].pop("processes") == 2
    assert right["provenance"]["training"].pop("processes") == 1
    assert left == right
    assert [p.name for p in (two[0] / "latents" / "topk").glob(".*")] == []


def test_missing_shard_is_said(two: tuple[Path, str], tmp_path: Path) -> None:
    source = two[0] / "latents" / "topk" / f"checkpoint-{processes.HALF}"
    for path in source.iterdir():
        if path.name != "optimizer-00002-of-00002.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="25 of the latents 0 to 50"):
        processes.run(tmp_path / "out", "topk", "data", resume=tmp_path)


class Unknown(SAE):
    """An architecture that says nothing of sharing."""


def test_what_cannot_be_shared_out_is_refused() -> None:
    many = Processes.__new__(Processes)
    many.rank, many.size = 0, 64
    with pytest.raises(ConfigError, match="d_sae=48, fewer than the 64 processes"):
        SharedLatents(many, {"sae": topk()})
    many.size = 2
    sae = topk()
    sae.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match="'extra'"):
        SharedLatents(many, {"sae": sae})
    with pytest.raises(ConfigError, match=r"Unknown.*parallelism='data'"):
        SharedLatents(many, {"sae": Unknown(topk().config)})


def test_any_process_writes_what_is_saved_beside_the_weights(tmp_path: Path) -> None:
    sae = make("BatchTopK", k=3)
    sae.threshold.fill_(0.25)
    (tmp_path / FEATURE_STATS).write_bytes(b"of the weights that stood there before")
    rows.save_whole(sae, tmp_path)
    assert AutoSAE.from_pretrained(tmp_path).threshold == 0.25
    assert not (tmp_path / FEATURE_STATS).exists()


def test_part_of_an_sae_is_neither_trained_nor_saved_as_a_whole(tmp_path: Path) -> None:
    sae = topk()
    sae.decoder.dictionary = SharedDictionary(Processes(Accelerator(cpu=True)), [24, 24])
    with pytest.raises(ConfigError, match=r"TopKSAE holds a part of its 48 latents.*output_dir"):
        trainer(sae, tmp_path)
    with pytest.raises(CheckpointError, match="a part of its 48 latents"):
        sae.save_pretrained(tmp_path / "sae")


def test_every_architecture_that_can_be_shared_out_is_compared_with_one_process() -> None:
    built = [build() for build, _ in CASES.values()]
    compared = {type(sae) for made in built for sae in (made.values() if isinstance(made, dict) else [made])}
    assert {cls for _, cls in registered().values() if cls.per_latent} == compared


def test_hosts_spread_over_processes(tmp_path: Path) -> None:
    done = together(2, "tests.training.sharded_hosts", str(tmp_path), output=tmp_path / "log")
    assert done.count("HOST fsdp") == done.count("HOST tensor_parallel") == 2
