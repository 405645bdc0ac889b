"""What all methods share: batches with groups and row numbers, predictions with features, outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edge_shared.training import Step, TrainConfig, fit
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fairnet import networks
from fairnet.data.parts import BiasedSet, Part

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # images, labels, groups, rows


@dataclass(frozen=True)
class Settings:
    """What all methods train with, so that they compare: the same network, recipe and seed.

    Attributes:
        model: ``small`` or a torchvision classifier.
        epochs: of every training phase.
        batch_size, lr, weight_decay: SGD with momentum 0.9, cosine to 0.
        seed: of weights and data order.
    """

    model: str = "small"
    epochs: int = 12
    batch_size: int = 100
    lr: float = 0.05
    weight_decay: float = 1e-4
    seed: int = 0

    def config(self, epochs: int | None = None, seed: int | None = None) -> TrainConfig:
        """The shared training loop's settings."""
        return TrainConfig(
            epochs=self.epochs if epochs is None else epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=self.seed if seed is None else seed,
        )


@dataclass
class Outcome:
    """A method's result: the network, and what it found on the way (plain data; arrays for plots)."""

    model: nn.Module
    details: dict[str, Any] = field(default_factory=dict)
    smaller: nn.Module | None = None


Loss = Callable[[nn.Module, Batch], torch.Tensor]


def tensors(part: Part, data: BiasedSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised float images (N, 3, H, W), labels and groups."""
    x = torch.tensor(np.ascontiguousarray(part.x.transpose(0, 3, 1, 2))).float() / 255
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (data.mean, data.std))
    return (x - mean) / std, torch.tensor(part.y), torch.tensor(part.b)


def loader(part: Part, data: BiasedSet, batch_size: int, seed: int) -> DataLoader[Any]:
    """Shuffled batches (images, labels, groups, rows)."""
    x, y, b = tensors(part, data)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y, b, torch.arange(len(y))), batch_size=batch_size, shuffle=True, generator=generator)


def train(
    model: nn.Module,
    part: Part,
    data: BiasedSet,
    settings: Settings,
    loss: Loss,
    *,
    checkpoint: Path | None = None,
    epochs: int | None = None,
    parameters: Any = None,
    on_step: Callable[[Step], None] | None = None,
    extra: dict[str, Any] | None = None,
    description: str = "training",
) -> nn.Module:
    """Train on `part` with `loss` of (model, batch); resumes from `checkpoint` where it exists."""
    batches = loader(part, data, settings.batch_size, settings.seed)
    fit(
        model,
        batches,
        None,
        settings.config(epochs),
        loss=loss,
        checkpoint=checkpoint,
        parameters=parameters,
        on_step=on_step,
        extra=extra,
        device="cpu" if not torch.cuda.is_available() else "auto",
        description=description,
    )
    return model.eval()


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Plain empirical risk."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def weighted(weights_N: NDArray[np.floating]) -> Loss:
    """Cross-entropy with a fixed weight per training row."""
    table = torch.tensor(weights_N, dtype=torch.float32)

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        x, y, _, rows = batch
        return (table.to(x.device)[rows] * functional.cross_entropy(model(x), y, reduction="none")).mean()

    return loss


@torch.no_grad()
def predict(model: nn.Module, part: Part, data: BiasedSet, *, batch_size: int = 500) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Bottleneck features (N, D) and predicted classes (N,), in evaluation mode; training flags are put back."""
    x, _, _ = tensors(part, data)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    device = next(model.parameters()).device
    features, predictions = [], []
    with networks.bottleneck(model) as caught:
        for start in range(0, len(x), batch_size):
            predictions.append(model(x[start : start + batch_size].to(device)).argmax(1).cpu())
            features.append(caught[0].cpu())
    for module, mode in modes.items():
        module.training = mode
    return torch.cat(features).numpy(), torch.cat(predictions).numpy()
