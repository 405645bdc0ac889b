"""Step time, saved bytes and peak memory of methods side by side: steady state, whole steps, medians.

Methods take turns, so that other load on the machine falls on all of them alike.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from edge_shared.files import write_json
from edge_shared.memory import measure
from torch import Tensor, nn

from ondevice_train.compression._geometry import geometry_of
from ondevice_train.compression.flops import layer_macs, vanilla_macs
from ondevice_train.compression.hosvd import HOSVD
from ondevice_train.compression.perplexity import layers_of
from ondevice_train.compression.planner import plan
from ondevice_train.compression.plans import Plan
from ondevice_train.compression.predict import predict
from ondevice_train.compression.prepare import codecs, prepare
from ondevice_train.ops.allocator import return_freed_blocks


@dataclass(frozen=True)
class BenchRow:
    """One method.

    Attributes:
        milliseconds: median of a whole step: zero_grad, forward, loss, backward, SGD step.
        ratio: to the vanilla step of the same trained layers; the median of the turns' ratios.
        cpu_milliseconds, cpu_ratio: the same in CPU time of the process, which other load on the machine does not lengthen; with
            several threads their times add up.
        saved_bytes: measured, whole model; `predicted_bytes` must be equal.
        vanilla_bytes: measured, whole model, plain torch.
        paper_bytes, paper_vanilla_bytes: the papers' count: inputs of the chosen layers only.
        keeping_milliseconds, gradient_milliseconds: of one step, median, CPU time: keeping the inputs of the chosen layers (their
            decomposition), and making dW from what was kept, alone.
        macs, vanilla_macs: of forward, dX, overhead and dW of the chosen layers, true convention; `paper_macs` in the papers'.
        peak_rss: of a process of its own, if asked for.
    """

    method: str
    milliseconds: float
    quartiles: tuple[float, float]
    ratio: float
    cpu_milliseconds: float
    cpu_ratio: float
    saved_bytes: int
    predicted_bytes: int
    vanilla_bytes: int
    paper_bytes: int
    paper_vanilla_bytes: int
    keeping_milliseconds: float
    gradient_milliseconds: float
    macs: int
    vanilla_macs: int
    paper_macs: int
    paper_vanilla_macs: int
    peak_rss: int | None = None


def training_step(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One whole step on a batch."""
    optimizer.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def evaluation_norms(model: nn.Module) -> nn.Module:
    """Training mode, but BatchNorms keep their statistics, as the papers fine-tune."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


class _Watch:
    """Adds up the time that the codecs of a prepared model take; works inside both passes."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds = {"encode": 0.0, "weight_gradient": 0.0}
        for _, codec in codecs(model):
            for name in self.seconds:
                setattr(codec, name, self._timed(name, getattr(codec, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.process_time()
            result = function(*args)
            self.seconds[name] += time.process_time() - start
            return result

        return run

    def take(self) -> tuple[float, float]:
        """Seconds since the last call: keeping, dW."""
        kept, made = self.seconds.values()
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return kept, made


def sgd(model: nn.Module, lr: float = 1e-3, momentum: float = 0.0) -> torch.optim.SGD:
    """SGD over what trains."""
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr, momentum=momentum)


def bench(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    methods: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    last: int | None = None,
    steps: int = 9,
    warmup: int = 2,
    say: Callable[[str], None] = lambda message: None,
) -> list[BenchRow]:
    """Compare methods on copies of one model.

    Args:
        model: plain, in training mode (see `evaluation_norms`).
        x, y: one batch, used at every step.
        methods: label -> (method of the planner, its settings); ``plain`` is added as the first. Also ``hosvd-svd`` (thin SVD of
            every unfolding, as published), ``packed`` (plain layers between compact activations and norms) and
            ``checkpointing-N`` (every N-th block).
        last: train the last so many convolutions, or all layers.
        steps, warmup: turns of each method; the second of a turn's two steps counts, but for the first turns.
        say: told what happens.
    """
    contenders: dict[str, tuple[nn.Module, Plan, torch.optim.Optimizer]] = {}
    for label, (method, settings) in {"plain": ("plain", {}), **methods}.items():
        say(f"planning {label}")
        own = copy.deepcopy(model)
        made = _plan(own, x, y, method, last, settings)
        prepare(own, made)
        if method == "hosvd-svd":
            for _, codec in codecs(own):
                assert isinstance(codec, HOSVD)
                codec.solver = "svd"
        contenders[label] = (own, made, sgd(own))
    times: dict[str, list[float]] = {label: [] for label in contenders}
    cpu: dict[str, list[float]] = {label: [] for label in contenders}
    parts: dict[str, list[tuple[float, float]]] = {label: [] for label in contenders}
    watches = {label: _Watch(own) for label, (own, _, _) in contenders.items()}
    for step in range(warmup + steps):
        for label, (own, _, optimizer) in contenders.items():
            # Steady state: the allocator and the caches hold what this method left, not what the one before it did.
            training_step(own, x, y, optimizer)
            watches[label].take()
            start, busy = time.perf_counter(), time.process_time()
            training_step(own, x, y, optimizer)
            if step >= warmup:
                cpu[label].append(time.process_time() - busy)
                times[label].append(time.perf_counter() - start)
                parts[label].append(watches[label].take())
            watches[label].take()
        say(f"step {step + 1} of {warmup + steps}")
    vanilla = measure.training_bytes(contenders["plain"][0], x).bytes
    shapes = {name: (shape, out, geometry_of(module)) for name, module, shape, out in layers_of(model, x)}
    rows = []
    for label, (own, made, _) in contenders.items():
        names = [choice.name for choice in made.layers]
        true = [
            layer_macs(choice, made.method, shapes[choice.name][1], _known(shapes, choice.name), "true").total for choice in made.layers
        ]
        paper = [
            layer_macs(choice, made.method, shapes[choice.name][1], _known(shapes, choice.name), "paper").total for choice in made.layers
        ]
        dense = {
            kind: sum(vanilla_macs(*shapes[name][:2], _known(shapes, name), kind).total for name in names)
            for kind in ("true", "paper")  # type: ignore[arg-type]
        }
        quarters = statistics.quantiles(times[label], n=4)
        rows.append(
            BenchRow(
                label,
                statistics.median(times[label]) * 1000,
                (quarters[0] * 1000, quarters[2] * 1000),
                _ratio(times[label], times["plain"]),
                statistics.median(cpu[label]) * 1000,
                _ratio(cpu[label], cpu["plain"]),
                measure.training_bytes(own, x).bytes,
                predict(own, x).bytes,
                vanilla,
                made.layer_bytes,
                sum(4 * choice_elements(shapes[name][0]) for name in names),
                statistics.median(kept for kept, _ in parts[label]) * 1000,
                statistics.median(made for _, made in parts[label]) * 1000,
                sum(true),
                dense["true"],
                sum(paper),
                dense["paper"],
            )
        )
    return rows


def _ratio(own: list[float], plain: list[float]) -> float:
    """Median over the turns of one's time by the other's in the same turn: a machine that slows down for a while then does not count."""
    return statistics.median(mine / theirs for mine, theirs in zip(own, plain, strict=True))


def _plan(model: nn.Module, x: Tensor, y: Tensor, method: str, last: int | None, settings: Mapping[str, Any]) -> Plan:
    if method == "packed":
        return replace(plan(model, x, method="plain", last=last, **settings), pack=True)
    if method.startswith("checkpointing-"):
        made = plan(model, x, method="checkpointing", last=last, **settings)
        return replace(made, blocks=made.blocks[:: int(method.removeprefix("checkpointing-"))])
    return plan(model, x, method="hosvd" if method == "hosvd-svd" else method, labels=y, last=last, **settings)


def _known(shapes: dict[str, Any], name: str) -> Any:
    return shapes[name][2]


def choice_elements(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def train_alone(model: nn.Module, made: Plan, batch: int, size: int, steps: int = 3) -> None:
    """A few steps under a plan: what a process of its own runs when its peak memory is measured."""
    if made.method != "plain":
        return_freed_blocks()  # as `fit` does
    prepare(evaluation_norms(model), made)
    optimizer = sgd(model)
    x, y = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    for _ in range(steps):
        training_step(model, x, y, optimizer)


_ALONE = """
import json, sys
from pathlib import Path
import torch
from ondevice_train import models
from ondevice_train.compression.bench import train_alone
from ondevice_train.compression.plans import Plan
name, plan, batch, size, classes = sys.argv[1:]
torch.set_num_threads(2)
model, _ = models.build(name, classes=int(classes), size=int(size))
train_alone(model, Plan.from_json(json.loads(Path(plan).read_text())), int(batch), int(size))
"""


def peak_rss(model: str, made: Plan, batch: int, size: int, classes: int = 10) -> int:
    """Peak resident set, bytes, of a fresh process that builds the named model and takes three steps under the plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_json(path, made.to_json())
        return measure.peak_rss([sys.executable, "-c", _ALONE, model, str(path), str(batch), str(size), str(classes)])
