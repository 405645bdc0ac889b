"""Two processes on gloo: selective training under DistributedDataParallel is that of the whole batch, across a change of selection."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.layers import Selection
from torch import nn
from torch.nn.parallel import DistributedDataParallel

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4)).double()

x, y = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4

def train(rows, wrap):
    model = make()
    prepared = SelectiveModel(model, x[rows], biases=2)
    prepared.apply(Selection("input", {"0": (1,), "3": (0, 5)}))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    called = wrap(model)
    for epoch in range(3):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(called(x[rows]), y[rows]).backward()
            optimizer.step()
        prepared.apply(Selection("input", {"3": (epoch, 5), "6": (7, 9)}), optimizer)
    prepared.restore()
    return torch.cat([p.detach().flatten() for p in model.parameters()])

whole = train(slice(0, 8), lambda model: model)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mine = train(slice(4 * rank, 4 * rank + 4), DistributedDataParallel)
other = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(other, mine)
print(json.dumps({"error": float((mine - whole).abs().max()), "apart": float((other[0] - other[1]).abs().max())}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
        found = json.loads(out.splitlines()[-1])
        assert found["apart"] == 0.0
        assert found["error"] < 1e-12
