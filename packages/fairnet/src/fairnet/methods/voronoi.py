"""Voronoi (ICCV 2023): find the shortcut without bias labels, then train a network that does not take it.

1. Train a vanilla network and measure, several times an epoch, how deep misclassified samples lie in the wrong Voronoi cell.
2. At the deepest moment its predictions are the pseudo bias labels; who is right then is aligned.
3. Train a new network with alignment weights (Eq. 5) and, through an information head on the bottleneck, with the conditional mutual
   information between pseudo label and features taken away on conflicting samples (Eq. 7-8, lambda = 2).

The mutual information of a handful of samples is exactly 0 or mostly bias, so every step takes a batch of conflicting samples of its own
for it; every step updates the network, whoever is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edge_shared.errors import InputError
from edge_shared.training import Step
from torch import nn
from torch.nn import functional

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.geometry import Alignment, Moment, alignment, alignment_weights, measure, revealing_moment
from fairnet.information import InformationHead
from fairnet.methods._train import Batch, Outcome, Settings, cross_entropy, predict, tensors, train


@dataclass(frozen=True)
class VoronoiConfig:
    """Settings.

    Attributes:
        strength: lambda, weight of the mutual information.
        conflicting_batch: conflicting samples drawn for it at each step.
        measures_per_epoch: measurements in each of the first `early_epochs` epochs of phase 1; one an epoch after that.
        early_epochs: see there.
        head_lr: learning rate of the information head.
    """

    strength: float = 2.0
    conflicting_batch: int = 64
    measures_per_epoch: int = 4
    early_epochs: int = 3
    head_lr: float = 0.1


class Watch:
    """Measures the network during phase 1; its state goes into the checkpoint."""

    def __init__(self, data: BiasedSet, steps_per_epoch: int, config: VoronoiConfig) -> None:
        self.data, self.steps_per_epoch, self.config = data, steps_per_epoch, config
        self.moments: list[Moment] = []

    def __call__(self, step: Step) -> None:
        """Measure, if it is time."""
        done = step.step + 1
        early = done <= self.config.early_epochs * self.steps_per_epoch
        interval = max(self.steps_per_epoch // self.config.measures_per_epoch, 1) if early else self.steps_per_epoch
        if done % interval == 0:
            features, predictions = predict(step.model, self.data.train, self.data)
            self.moments.append(measure(done, features, self.data.train.y, predictions, len(self.data.classes)))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "steps": [moment.step for moment in self.moments],
            "depths": [moment.depth if np.isfinite(moment.depth) else -1.0 for moment in self.moments],
            "predictions": torch.tensor(np.array([moment.predictions for moment in self.moments])),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.moments = [
            Moment(step, predictions.numpy(), int((predictions.numpy() != self.data.train.y).sum()), depth if depth >= 0 else float("nan"))
            for step, depth, predictions in zip(state["steps"], state["depths"], state["predictions"], strict=True)
        ]


@dataclass(frozen=True)
class Discovery:
    """What phase 1 found: the vanilla network, the alignment of every training sample, and the measurements behind it."""

    model: nn.Module
    found: Alignment
    moments: tuple[Moment, ...]
    chosen: int

    def quality(self, data: BiasedSet) -> dict[str, Any]:
        """Against the true groups, where they are known and paired with the labels: precision and recall of the conflicting set, and
        zeta (Eq. 10), the share of conflicting samples whose pseudo label is the true group."""
        true = data.train.b != data.train.y
        said = ~self.found.aligned
        hit = int((true & said).sum())
        return {
            "conflicting_found": int(said.sum()),
            "conflicting_true": int(true.sum()),
            "precision": hit / max(int(said.sum()), 1),
            "recall": hit / max(int(true.sum()), 1),
            "zeta": float((self.found.pseudo_label[said] == data.train.b[said]).mean()) if said.any() else None,
        }


def discover(data: BiasedSet, settings: Settings, folder: Path | None = None, config: VoronoiConfig | None = None) -> Discovery:
    """Phase 1: train a vanilla network and find who follows the shortcut.

    Raises:
        InputError: if no training sample is ever misclassified: nothing contradicts a shortcut.
    """
    config = config or VoronoiConfig()
    model = networks.make(settings.model, len(data.classes), settings.seed)
    watch = Watch(data, -(-len(data.train) // settings.batch_size), config)
    train(
        model,
        data.train,
        data,
        settings,
        cross_entropy,
        checkpoint=folder and folder / "discover.safetensors",
        on_step=watch,
        extra={"watch": watch},
        description="discover",
    )
    chosen = revealing_moment(watch.moments, len(data.classes))
    found = alignment(data.train.y, watch.moments[chosen].predictions, len(data.classes))
    if found.aligned.all():
        raise InputError("no conflicting samples found: every training sample follows its class, so there is nothing to extract")
    return Discovery(model, found, tuple(watch.moments), chosen)


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: VoronoiConfig | None = None) -> Outcome:
    """Both phases."""
    config = config or VoronoiConfig()
    discovery = discover(data, settings, folder, config)
    model = debias(data, settings, discovery.found, config, folder)
    chosen = discovery.moments[discovery.chosen]
    details: dict[str, Any] = {
        "revealing_step": chosen.step,
        "depth": chosen.depth,
        "rho": discovery.found.rho,
        "moments": [{"step": moment.step, "depth": moment.depth, "misclassified": moment.misclassified} for moment in discovery.moments],
        "discovery": discovery.quality(data) if len(data.groups) == len(data.classes) else None,
    }
    return Outcome(model, details)


class _Both(nn.Module):
    """The network and its information head, one call for both."""

    def __init__(self, model: nn.Module, head: InformationHead) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, x: torch.Tensor, pseudo: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits; the leak of the rows from `first` on; the head's own loss on all rows."""
        with networks.bottleneck(self.model) as caught:
            logits = self.model(x)
            features = caught[0]
        return logits, self.head.leak(features[first:], pseudo[first:]), self.head.learn(features, pseudo)


def debias(data: BiasedSet, settings: Settings, found: Alignment, config: VoronoiConfig, folder: Path | None = None) -> nn.Module:
    """Phase 2: a new network with weights and information removal."""
    classes = len(data.classes)
    model = networks.make(settings.model, classes, settings.seed)
    head = InformationHead(networks.head_of(model).in_features, classes)
    both = _Both(model, head)
    weights = torch.tensor(alignment_weights(found, data.train.y), dtype=torch.float32)
    pseudo = torch.tensor(found.pseudo_label)
    conflicting = torch.tensor(np.flatnonzero(~found.aligned))
    images, _, _ = tensors(data.train, data)

    def loss(pair: nn.Module, batch: Batch) -> torch.Tensor:
        x, y, _, rows = batch
        drawn = conflicting[torch.randint(len(conflicting), (min(config.conflicting_batch, len(conflicting)),))]
        seen = pseudo[torch.cat([rows.cpu(), drawn])].to(x.device)
        logits, leak, learn = pair(torch.cat([x, images[drawn].to(x.device)]), seen, len(x))
        task = (weights.to(x.device)[rows] * functional.cross_entropy(logits[: len(x)], y, reduction="none")).mean()
        return task + config.strength * leak + learn

    train(
        both,
        data.train,
        data,
        settings,
        loss,
        checkpoint=folder and folder / "voronoi.safetensors",
        parameters=[{"params": list(model.parameters())}, {"params": list(head.parameters()), "lr": config.head_lr}],
        description="debias",
    )
    return model
