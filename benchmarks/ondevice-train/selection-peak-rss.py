"""Peak resident memory of a training process: dense fine-tuning against a selection, each in a process of its own.

python benchmarks/ondevice-train/selection-peak-rss.py
"""

import argparse
import sys

import torch
from _subjects import RESULTS
from edge_shared import architectures
from edge_shared.files import write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--child", choices=["import", "inference", "dense", "selected"])
parser.add_argument("--model", default="mobilenet_v2")
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--units", type=int, default=192312)
parser.add_argument("--out", default=RESULTS / "ondevice-train-selection-peak-rss.json")
arguments = parser.parse_args()


def prepared_model(example):
    from ondevice_train.selection.full_random import FullRandom
    from ondevice_train.selection.install import SelectiveModel
    from ondevice_train.selection.selector import Setting

    torch.manual_seed(0)
    prepared = SelectiveModel(architectures.module(arguments.model, resolution=128, classes=10), example)
    prepared.layers = prepared.layers[-16:]
    costs = prepared.costs("units", "input")
    prepared.apply(FullRandom(Setting(costs, arguments.units)).start(None))
    return prepared


if arguments.child:
    torch.manual_seed(0)
    x, y = torch.randn(arguments.batch, 3, 128, 128), torch.arange(arguments.batch) % 10
    if arguments.child == "selected":
        module = prepared_model(x).model
    else:
        module = architectures.module(arguments.model, resolution=128, classes=10).train()
    if arguments.child == "inference":
        with torch.no_grad():
            module.eval()(x)
    elif arguments.child != "import":
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
    sys.exit()

x = torch.randn(arguments.batch, 3, 128, 128)
dense = architectures.module(arguments.model, resolution=128, classes=10).train()
saved = {"dense": measure.training_bytes(dense, x).bytes, "selected": prepared_model(x).measure(), "inference": 0, "import": 0}
common = [
    sys.executable,
    "-W",
    "ignore",
    __file__,
    "--model",
    arguments.model,
    "--batch",
    str(arguments.batch),
    "--units",
    str(arguments.units),
]
rows = [
    {"process": child, "peak_rss_bytes": measure.peak_rss([*common, "--child", child]), "saved_bytes": saved[child]}
    for child in ("import", "inference", "selected", "dense")
]
for row in rows:
    print(row)
write_json(
    arguments.out,
    {
        "command": " ".join(["python benchmarks/ondevice-train/selection-peak-rss.py", *sys.argv[1:]]),
        "what": "two training steps of the model at 128x128; selected: random channels of the last 16 layers within the units",
        "model": arguments.model,
        "batch": arguments.batch,
        "units": arguments.units,
        "rows": rows,
        "environment": environment(),
    },
)
