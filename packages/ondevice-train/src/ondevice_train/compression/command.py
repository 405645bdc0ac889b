"""What the commands `plan` and `bench` do: load a model and one batch, then plan or measure."""

from __future__ import annotations

from dataclasses import replace

from edge_shared.cli import say
from edge_shared.data.vision import load_images
from edge_shared.errors import InputError
from torch import Tensor, nn

from ondevice_train import models
from ondevice_train.compression.bench import BenchRow, evaluation_norms, peak_rss
from ondevice_train.compression.bench import bench as compare
from ondevice_train.compression.planner import METHODS, plan
from ondevice_train.compression.plans import Plan


def _load(model: str, data: str, weights: str | None, batch: int, size: int, seed: int) -> tuple[nn.Module, str, Tensor, Tensor]:
    images = load_images(data, size=size, limit=4 * batch, seed=seed)
    x, y = next(iter(images.loader("train", batch)))
    if x.shape[0] < batch:
        raise InputError(f"--batch-size {batch}: {data} has only {x.shape[0]} training images here")
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1).contiguous()
    network, head = models.build(model, classes=len(images.classes), size=size, weights=weights, seed=seed)
    return evaluation_norms(network), head, x, y


def plan_command(
    model: str,
    method: str,
    budget: str | None,
    last: int | None,
    data: str,
    weights: str | None,
    batch: int,
    size: int,
    epsilon: float,
    seed: int,
) -> Plan:
    """A plan for a named model on the first batch of an image set."""
    network, head, x, y = _load(model, data, weights, batch, size, seed)
    return plan(network, x, budget, method, labels=y, last=last, head=head, epsilon=epsilon)


def bench_command(
    model: str,
    methods: str,
    last: int | None,
    data: str,
    weights: str | None,
    batch: int,
    size: int,
    epsilon: float,
    steps: int,
    rss: bool,
    seed: int,
) -> list[BenchRow]:
    """Rows of the comparison; with `rss`, each with the peak memory of a process of its own."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METHODS]:
        raise InputError(f"--methods {unknown[0]}: unknown; known: {', '.join(METHODS)}")
    network, head, x, y = _load(model, data, weights, batch, size, seed)
    contenders = {name: (name, {"epsilon": epsilon, "head": head}) for name in names if name != "plain"}
    rows = compare(network, x, y, contenders, last=last, steps=steps, say=say)
    if not rss:
        return rows
    found = []
    for row in rows:
        made = plan(network, x, method=row.method, labels=y, last=last, epsilon=epsilon, head=head)
        say(f"peak memory of {row.method}")
        found.append(replace(row, peak_rss=peak_rss(model, made, batch, size, int(y.max()) + 1)))
    return found
