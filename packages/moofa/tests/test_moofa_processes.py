"""A supernet trained by two processes on gloo is the one that a single process trains on both batches together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from moofa.presets import PRESETS
from moofa.supernet import Supernet
from moofa.training import SupernetConfig, train_supernet
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(1)
torch.manual_seed(0)
supernet = Supernet(PRESETS["digits8"]())
x = torch.randn(48, 1, 8, 8) + torch.linspace(-1, 1, 48).view(-1, 1, 1, 1)
loader = DataLoader(TensorDataset(x, torch.arange(48) % 10), batch_size=int(sys.argv[1]))
config = SupernetConfig(schedule=sys.argv[3], epochs=int(sys.argv[4]), lr=0.02)
train_supernet(supernet, loader, config, Path(sys.argv[2] + "-run"), device="cpu")
weights = {name: value.flatten().tolist() for name, value in supernet.named_parameters()}
Path(sys.argv[2] + os.environ.get("RANK", "")).write_text(json.dumps(weights))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("schedule", "epochs"), [("sandwich", 2), ("progressive", 6)])
def test_two_processes_train_as_one(tmp_path: Path, schedule: str, epochs: int) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LT_ACCELERATOR": "cpu"}
    rest = [schedule, str(epochs)]
    fabric = [sys.executable, "-m", "lightning_fabric.cli", "--accelerator=cpu", "--devices=2", "--strategy=ddp"]
    for command in ([sys.executable, script, "16", tmp_path / "one", *rest], [*fabric, script, "8", tmp_path / "two", *rest]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("one", "two0", "two1"))
    assert first == second
    start_to_end = 0.0
    for name, values in one.items():
        assert first[name] == pytest.approx(values, abs=2e-4), name
        start_to_end = max(start_to_end, *map(abs, values))
    assert start_to_end > 0.1
