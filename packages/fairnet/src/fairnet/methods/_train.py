"""What all methods share: batches with groups and row numbers, predictions with features, outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from edge_shared.evaluating import evaluating
from edge_shared.training import Step, TrainConfig, fit
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fairnet import networks
from fairnet.data.parts import BiasedSet, Part

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # images, labels, groups, rows


@dataclass(frozen=True)
class Settings:
    """What all methods train with, so that they compare: the same network, recipe and seed.

    Attributes:
        model: ``small``, ``mlp`` or a torchvision classifier.
        epochs: of every training phase.
        batch_size, weight_decay: of every step; the learning rate falls to 0 along a cosine.
        optimizer: ``sgd`` with momentum 0.9, or ``adam``; by default adam for ``mlp`` (as DebiAN trains it; SGD fast enough to learn
            the digits diverges under group weights there) and sgd for networks with norms.
        lr: by default 0.05 for sgd, 0.001 for adam.
        seed: of weights and data order.
    """

    model: str = "small"
    epochs: int = 12
    batch_size: int = 100
    optimizer: Literal["sgd", "adam"] | None = None
    lr: float | None = None
    weight_decay: float = 1e-4
    seed: int = 0

    @property
    def rule(self) -> Literal["sgd", "adam"]:
        """The optimiser in use."""
        return self.optimizer or ("adam" if self.model == "mlp" else "sgd")

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return self.lr if self.lr is not None else {"sgd": 0.05, "adam": 0.001}[self.rule]

    def config(self, epochs: int | None = None, seed: int | None = None) -> TrainConfig:
        """The shared training loop's settings."""
        return TrainConfig(
            epochs=self.epochs if epochs is None else epochs,
            batch_size=self.batch_size,
            optimizer=self.rule,
            lr=self.rate,
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


def fresh(data: BiasedSet, settings: Settings, offset: int = 0) -> nn.Module:
    """An untrained network for the data; the same weights for the same seed (and offset)."""
    return networks.make(settings.model, len(data.classes), settings.seed + offset, data.shape)


class Rows:
    """Images kept as uint8; a whole batch is fetched and normalised at once."""

    def __init__(self, part: Part, data: BiasedSet) -> None:
        self.images = torch.tensor(np.ascontiguousarray(part.x.transpose(0, 3, 1, 2)))
        self.labels, self.groups = torch.tensor(part.y), torch.tensor(part.b)
        self.mean, self.std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        index = torch.as_tensor(rows)
        return (self.images[index].float() / 255 - self.mean) / self.std, self.labels[index], self.groups[index], index


def tensors(part: Part, data: BiasedSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised float images (N, 3, H, W), labels and groups."""
    return Rows(part, data).__getitems__(range(len(part)))[:3]


def loader(part: Part, data: BiasedSet, batch_size: int, seed: int) -> DataLoader[Any]:
    """Shuffled batches (images, labels, groups, rows)."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(Rows(part, data), batch_size=batch_size, shuffle=True, generator=generator, collate_fn=_whole)  # type: ignore[arg-type]


def _whole(batch: Batch) -> Batch:
    return batch


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
    stop_after: int | None = None,
    description: str = "training",
) -> nn.Module:
    """Train on `part` with `loss` of (model, batch); resumes from `checkpoint` where it exists.

    `stop_after` epochs the run ends, on the learning rates of the whole: the network as it was at that moment.
    """
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
        on_epoch=None if stop_after is None else (lambda epoch: epoch.epoch + 1 >= stop_after),
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
    rows = Rows(part, data)
    device = next(model.parameters()).device
    features, predictions = [], []
    with evaluating(model), networks.bottleneck(model) as caught:
        for start in range(0, len(rows), batch_size):
            x = rows.__getitems__(range(start, min(start + batch_size, len(rows))))[0]
            predictions.append(model(x.to(device)).argmax(1).cpu())
            features.append(caught[0].cpu())
    return torch.cat(features).numpy(), torch.cat(predictions).numpy()
