"""Gradient checkpointing: the baseline that pays with time. Blocks keep their input and are run again in the backward pass."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from edge_shared.evaluating import evaluating
from torch import Tensor, nn

from ondevice_train.compression.plans import Plan


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks of a model, in order: the members of its Sequentials and ModuleLists that have parts of their own.

    A plain Sequential of such members is opened, so that a block is one residual block and not a whole stage.
    """
    found: list[str] = []

    def visit(name: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}" if name else child_name
            if not any(True for _ in child.parameters()):
                continue
            stage = type(child) in (nn.Sequential, nn.ModuleList) and any(any(True for _ in part.children()) for part in child.children())
            listed = isinstance(module, nn.Sequential | nn.ModuleList)
            if listed and not stage and any(True for _ in child.children()):
                found.append(path)
            elif stage or not listed:
                visit(path, child)

    visit("", model)
    return tuple(found)


def checkpointing_plan(model: nn.Module, every: int = 1, trained: tuple[str, ...] | None = None) -> Plan:
    """Run every `every`-th block again."""
    return Plan("checkpointing", (), trained=trained, pack=False, blocks=blocks(model)[::every])


@dataclass(frozen=True)
class BlockCost:
    """Running a block again: bytes of the tensors that it is called with, and milliseconds of its forward pass."""

    name: str
    bytes: int
    milliseconds: float


def block_costs(model: nn.Module, example: Tensor, names: Sequence[str], repeats: int = 3) -> list[BlockCost]:
    """Measure the named blocks on the example (median of `repeats`); those called other than once are left out."""
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {name: [] for name in names}
    hooks = []
    for name in names:

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            calls[name].append((tuple(value.clone() if isinstance(value, Tensor) else value for value in args), kwargs))

        hooks.append(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    found = []
    with torch.no_grad():
        try:
            with evaluating(model):
                model(example)
        finally:
            for hook in hooks:
                hook.remove()
        for name, made in calls.items():
            if len(made) != 1:
                continue
            block, (args, kwargs) = copy.deepcopy(model.get_submodule(name)).eval(), made[0]
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            times = []
            for _ in range(repeats + 1):
                inputs = [value.clone() if isinstance(value, Tensor) else value for value in args]
                start = time.perf_counter()
                block(*inputs, **kwargs)
                times.append(time.perf_counter() - start)
            size = sum(value.numel() * value.element_size() for value in tensors)
            found.append(BlockCost(name, size, 1000 * statistics.median(times[1:])))
    return found
