"""The same grid on a cluster of two nodes, and training on two processes as on one: `uv run pytest -m slow -n 0 tests/test_scale.py`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_shared.sweep import run_grid

SCRIPTS = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Two `ray start` processes, one core each; yields the address of the head."""
    pytest.importorskip("ray")
    port = free_port()
    address = f"127.0.0.1:{port}"
    common = ["--num-cpus", "1", "--disable-usage-stats", "--object-store-memory", "80000000", "--node-ip-address", "127.0.0.1"]
    # On one machine both nodes would agree on ports of the same default range.
    commands = [
        [
            str(SCRIPTS / "ray"),
            "start",
            "--head",
            "--port",
            str(port),
            "--include-dashboard",
            "false",
            "--temp-dir",
            f"/tmp/ray{os.getpid()}",
            *common,
        ],
        [str(SCRIPTS / "ray"), "start", "--address", address, "--min-worker-port", "20000", "--max-worker-port", "20100", *common],
    ]
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
            assert done.returncode == 0, done.stdout + done.stderr
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address
    finally:
        subprocess.run([str(SCRIPTS / "ray"), "stop", "--force"], capture_output=True, check=False, timeout=120)


def where(x: int) -> dict[str, object]:
    """One cell: its value, and the node that it ran on."""
    import ray

    time.sleep(0.5)
    return {"square": x * x, "node": ray.get_runtime_context().get_node_id()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")
def test_a_grid_runs_on_both_nodes_of_a_cluster(cluster: str, tmp_path: Path) -> None:
    found = run_grid(where, {"x": list(range(12))}, backend="ray", out=tmp_path / "cells", workers=2)
    assert [cell["result"]["square"] for cell in found] == [x * x for x in range(12)]
    assert len({cell["result"]["node"] for cell in found}) == 2
    # The kept cells are not run again: no node is asked.
    again = run_grid(where, {"x": list(range(12))}, backend="joblib", out=tmp_path / "cells", workers=1)
    assert again == found
