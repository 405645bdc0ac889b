"""Gradient checkpointing: the baseline that pays with time. Blocks keep their input and are run again in the backward pass."""

from __future__ import annotations

from torch import nn

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
