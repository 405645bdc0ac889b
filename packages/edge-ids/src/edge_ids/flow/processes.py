"""Training over several processes or machines: each takes its share of a batch's windows, and the gradients add up to those of one process.

Started by ``torchrun`` or ``fabric run``; Lightning Fabric connects the processes (gloo on CPUs).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def rank() -> int:
    """This process's number, 0 being the one that writes; known before anything is connected."""
    return int(os.environ.get("RANK", os.environ.get("LT_GLOBAL_RANK", "0")))


@dataclass(frozen=True)
class Processes:
    """Who trains together.

    Attributes:
        rank: this process's number.
        size: their number.
        fabric: Lightning Fabric; None for one process.
    """

    rank: int = 0
    size: int = 1
    fabric: Any = None

    @classmethod
    def connect(cls) -> Processes:
        """Meet the processes that were started together with this one; by itself a process is alone."""
        if not {"WORLD_SIZE", "LT_DEVICES"} & set(os.environ):
            return cls()
        from edge_shared.training import open_fabric

        fabric = open_fabric("cpu", "32-true")
        return cls(fabric.global_rank, fabric.world_size, fabric)

    def add_up(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Replace each gradient by its sum over all processes; returns the sum of `loss`."""
        if self.size == 1:
            return loss
        import torch

        held = list(parameters)
        parts = [torch.zeros_like(item) if item.grad is None else item.grad for item in held]
        flat = torch.cat([*(part.flatten() for part in parts), torch.tensor([loss])])
        flat = self.fabric.all_reduce(flat, reduce_op="sum")
        place = 0
        for item in held:
            item.grad = flat[place : place + item.numel()].view_as(item)
            place += item.numel()
        return float(flat[-1])
