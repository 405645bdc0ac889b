"""Time and saved bytes of one whole training step of MCUNet-in1: dense fine-tuning against selections under budgets.

Steps of all variants are interleaved, so that other load on the machine hits all alike; medians are compared.

    python benchmarks/ondevice-train/selection-step-time.py
"""

import argparse
import os
import statistics
import sys
import time

import torch
from _subjects import RESULTS
from edge_shared import architectures
from edge_shared.files import write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from ondevice_train.selection.importance import Ranking
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.scheme import read_scheme
from ondevice_train.selection.selector import Setting
from ondevice_train.selection.table import selector_class
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
parser.add_argument("--steps", type=int, default=15)
parser.add_argument("--out", default=RESULTS / "ondevice-train-selection-step-time.json")
arguments = parser.parse_args()
BUDGETS = (15936, 64832, 112640)  # units of the papers for this network


def model():
    torch.manual_seed(0)
    return architectures.module("mcunet-in1", resolution=128, classes=10)


def ranking(layers_of, x, y):
    prepared = SelectiveModel(model(), x)
    prepared.apply(Selection.everything("input", prepared.layers))
    nn.functional.cross_entropy(prepared.model(x), y).backward()
    norms = {name: value.double().numpy() for name, value in prepared.gradient_norms().items()}
    return Ranking.of(norms, prepared.layers)


def variants(batch):
    x, y = torch.randn(batch, 3, 128, 128), torch.arange(batch) % 10
    dense = model().train()
    yield "dense, norms trained", dense, list(dense.parameters()), measure.training_bytes(dense, x).bytes, x, y
    frozen = model().train()
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    weights = [p for p in frozen.parameters() if p.ndim > 1]
    yield "dense, norms in eval mode", frozen, weights, measure.training_bytes(frozen, x).bytes, x, y
    whole = SelectiveModel(model(), x)
    whole.apply(Selection.everything("input", whole.layers))
    yield "all channels selected", whole.model, whole.parameters(), whole.measure(), x, y
    scheme = read_scheme("49kb", "mcunet-5fps")
    convs = architectures.network("mcunet-5fps").convs()
    ratios = {convs[i].name: r for i, r in zip(scheme["convs"], scheme["ratios"], strict=True)}
    rank = ranking(None, x, y)
    for method, budget, options, biases in (
        ("sparse-update", 15936, {"ratios": ratios}, scheme["n_bias"]),
        *((name, budget, {}, 0) for budget in BUDGETS for name in ("trady", "medyate", "full-random")),
        ("head-only", 0, {}, 0),
    ):
        prepared = SelectiveModel(model(), x, biases=biases)
        cls = selector_class(method)
        from ondevice_train.selection.driver import weight_norms

        setting = Setting(
            prepared.costs("units", cls.unit), budget, 0, rank, lambda prepared=prepared: weight_norms(prepared), None, options
        )
        prepared.apply(cls(setting).start(None))
        assert prepared.measure() == prepared.predict().total
        yield f"{method}, {budget} units" if budget else method, prepared.model, prepared.parameters(), prepared.measure(), x, y


def step(entry, optimizer):
    """Seconds of a step: wall, and CPU time of the process, which other load does not lengthen."""
    _, module, _, _, x, y = entry
    start, busy = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()
    return time.perf_counter() - start, time.process_time() - busy


results, load = [], []
for batch in arguments.batch:
    entries = list(variants(batch))
    optimizers = [torch.optim.SGD(entry[2], lr=1e-3) for entry in entries]
    times = [[] for _ in entries]
    for index in range(arguments.steps + 2):
        for number, (entry, optimizer) in enumerate(zip(entries, optimizers, strict=True)):
            seconds = step(entry, optimizer)
            if index >= 2:
                times[number].append(seconds)
    load.append(os.getloadavg()[0])
    wall, cpu = ([statistics.median(pair[kind] for pair in values) for values in times] for kind in (0, 1))
    for number, entry in enumerate(entries):
        row = {
            "batch": batch, "variant": entry[0], "median_ms": 1000 * wall[number], "cpu_ms": 1000 * cpu[number],
            "ratio_to_dense": wall[number] / wall[0], "cpu_ratio_to_dense": cpu[number] / cpu[0],
            "ratio_to_dense_in_eval_mode": wall[number] / wall[1], "cpu_ratio_to_dense_in_eval_mode": cpu[number] / cpu[1],
            "saved_bytes": entry[3], "trained_parameters": sum(p.numel() for p in entry[2]),
        }  # fmt: skip
        results.append(row)
        print(row, flush=True)
write_json(
    arguments.out,
    {
        "command": " ".join(["python benchmarks/ondevice-train/selection-step-time.py", *sys.argv[1:]]),
        "what": "whole step (forward, loss, backward, SGD) of MCUNet-in1 at 128x128; fresh weights, random inputs; steps interleaved",
        "steps": arguments.steps,
        "threads": torch.get_num_threads(),
        "seed": 0,
        "load_average_by_batch": load,
        "rows": results,
        "environment": environment(),
    },
)
