"""Two processes on gloo: compressed training under DistributedDataParallel is that of the whole batch, and both stay in step."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from ondevice_train.compression.planner import plan
from ondevice_train.compression.prepare import prepare, restore
from torch import nn
from torch.nn.parallel import DistributedDataParallel

rank, store, method = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                      nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4)).double()
x, y = torch.randn(8, 3, 6, 6, dtype=torch.float64), torch.arange(8) % 4
model.train()[1].eval()
nn.functional.cross_entropy(model(x), y).backward()
exact = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
model.zero_grad(set_to_none=True)
half = slice(4 * rank, 4 * rank + 4)
made = plan(model, x[half], method=method, epsilon=1.0, weight_epsilon=1.0, labels=y[half])
prepare(model, made)
model[1].eval()
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
nn.functional.cross_entropy(parallel(x[half]), y[half]).backward()
names = dict(model.named_parameters())
error = max(float((names[name].grad - grad).abs().max()) for name, grad in exact.items() if name in names and names[name].grad is not None
            and not name.startswith(("0.", "1.", "6.", "8.")))
optimizer.step()
for _ in range(3):
    optimizer.zero_grad()
    nn.functional.cross_entropy(parallel(x[half]), y[half]).backward()
    optimizer.step()
mine = torch.cat([p.detach().flatten() for p in model.parameters()])
other = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(other, mine)
print(json.dumps({"error": error, "apart": float((other[0] - other[1]).abs().max()), "finite": bool(torch.isfinite(mine).all())}))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["asi", "wasi", "fixed-bases"])
def test_two_processes_train_as_one(method, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), method], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
        found = json.loads(out.splitlines()[-1])
        assert found["finite"]
        assert found["apart"] == 0.0
        assert found["error"] < 1e-10  # the convolution between exact masks: full ranks, the gradient of the whole batch
