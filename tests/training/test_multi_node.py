"""Two machines, as two launchers on one: the example's own script, and the same numbers as one process."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests.training import processes


ROOT = Path(__file__).parents[2]


def test_two_launchers_equal_one_process(tmp_path: Path) -> None:
    cases = ["standard"]
    processes.expect(tmp_path, cases)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"NNODES": "2", "GPUS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / "examples/multi_node/torchrun.sh"), "-m", "tests.training.processes", str(tmp_path), *cases]
    nodes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | shared | {"NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    for scheme in ("data", "latents", "saes"):
        assert f"SAME 2 {scheme} standard" in outputs[0]
    assert "END 1" in outputs[1]
