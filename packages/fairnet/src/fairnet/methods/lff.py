"""Learning from failure (Nam 2020): a network that loves easy samples tells a second one which are hard. No group labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Batch, Outcome, Settings, fresh, train

Q = 0.7
"""Exponent of the generalised cross-entropy, as in the paper."""


class _Pair(nn.Module):
    def __init__(self, biased: nn.Module, debiased: nn.Module) -> None:
        super().__init__()
        self.biased, self.debiased = biased, debiased

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.biased(x), self.debiased(x)


class LossAverages:
    """Exponential moving average of each sample's loss (decay 0.7), scaled by the largest of its class."""

    def __init__(self, labels_N: torch.Tensor, decay: float = 0.7) -> None:
        self.labels, self.decay = labels_N, decay
        self.value = torch.zeros(2, len(labels_N))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.value = state["value"]

    def difficulty(self, rows: torch.Tensor, losses_2N: torch.Tensor) -> torch.Tensor:
        """Relative difficulty in [0, 1]: loss of the biased network over the sum of both, after averaging and scaling."""
        rows = rows.cpu()
        self.value[:, rows] = self.decay * self.value[:, rows] + (1 - self.decay) * losses_2N.detach().cpu()
        current = self.value[:, rows].clone()
        for label in self.labels[rows].unique():
            here = self.labels[rows] == label
            current[:, here] /= self.value[:, self.labels == label].amax(1, keepdim=True) + 1e-8
        return current[0] / (current.sum(0) + 1e-8)


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Train both networks together; the debiased one is the result."""
    pair = _Pair(fresh(data, settings), fresh(data, settings, 1000))
    averages = LossAverages(torch.tensor(data.train.y))

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        x, y, _, rows = batch
        biased, debiased = model(x)
        losses = torch.stack([functional.cross_entropy(logits, y, reduction="none") for logits in (biased, debiased)])
        difficulty = averages.difficulty(rows, losses).to(x.device)
        confidence = biased.softmax(1).gather(1, y[:, None]).squeeze(1).detach()
        return (losses[0] * confidence**Q * Q).mean() + (losses[1] * difficulty).mean()

    train(
        pair,
        data.train,
        data,
        settings,
        loss,
        checkpoint=folder and folder / "lff.safetensors",
        extra={"losses": averages},
        description="LfF",
    )
    return Outcome(pair.debiased)
