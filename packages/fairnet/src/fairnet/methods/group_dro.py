"""GroupDRO (Sagawa 2020): the worst (label, group) cell gets the weight. Knows the bias of each training image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Batch, Outcome, Settings, fresh, train


class GroupWeights:
    """Exponentiated-gradient weights over the cells, step size 0.01."""

    def __init__(self, cells: int, step: float = 0.01) -> None:
        self.q = torch.full((cells,), 1 / cells)
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"q": self.q}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.q = state["q"]

    def loss(self, losses_N: torch.Tensor, cells_N: torch.Tensor) -> torch.Tensor:
        """The weighted mean of the cells' mean losses; updates the weights of the cells present."""
        cells = len(self.q)
        count = torch.bincount(cells_N, minlength=cells)
        mean = torch.zeros(cells, device=losses_N.device).index_add(0, cells_N, losses_N) / count.clamp_min(1)
        q = self.q.to(losses_N.device) * torch.exp(self.step * mean.detach() * (count > 0))
        q = q / q.sum()
        self.q = q.cpu()
        return (q * mean).sum()


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Train against the worst cell."""
    data.need_groups("groupdro")
    model = fresh(data, settings)
    groups = len(data.groups)
    weights = GroupWeights(len(data.classes) * groups)

    def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
        x, y, b, _ = batch
        return weights.loss(functional.cross_entropy(network(x), y, reduction="none"), y * groups + b)

    train(
        model,
        data.train,
        data,
        settings,
        loss,
        checkpoint=folder and folder / "group_dro.safetensors",
        extra={"cells": weights},
        description="GroupDRO",
    )
    return Outcome(model)
