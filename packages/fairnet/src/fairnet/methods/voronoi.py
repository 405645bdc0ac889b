"""Voronoi (ICCV 2023): find the shortcut without bias labels, then train a network that does not take it.

1. Train a vanilla network and measure, several times an epoch, how deep misclassified samples lie in the wrong Voronoi cell.
2. At the deepest moment its predictions are the pseudo bias labels; who is right then is aligned.
   Where even then they lie near the boundary, they are hard images and no shortcut is at work: the vanilla network stays.
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
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.geometry import MIN_DEPTH, Alignment, Moment, alignment, alignment_weights, measure, revealing_moment
from fairnet.information import InformationHead
from fairnet.methods._train import Batch, Outcome, Settings, cross_entropy, fresh, predict, tensors, train


@dataclass(frozen=True)
class VoronoiConfig:
    """Settings.

    Attributes:
        strength: lambda, weight of the mutual information.
        conflicting_batch: conflicting samples drawn for it at each step.
        measures_per_epoch: measurements in each of the first `early_epochs` epochs of phase 1; one an epoch after that.
        early_epochs: see there.
        min_depth: at a revealing moment less deep than this there is no shortcut, and the vanilla network stays as it is; by default
            `MIN_DEPTH`.
        head_lr: learning rate of the information head; by default 0.1 with SGD, as in the paper, and ten times the network's with Adam.
    """

    strength: float = 2.0
    conflicting_batch: int = 64
    measures_per_epoch: int = 4
    early_epochs: int = 3
    min_depth: float | None = None
    head_lr: float | None = None


class Watch:
    """Measures the network during phase 1; its state goes into the checkpoint."""

    def __init__(self, data: BiasedSet, steps_per_epoch: int, config: VoronoiConfig) -> None:
        self.data, self.steps_per_epoch, self.config = data, steps_per_epoch, config
        self.moments: list[Moment] = []
        self.val_predictions: list[NDArray[np.int64]] = []  # of the validation images, at each moment

    def __call__(self, step: Step) -> None:
        """Measure, if it is time."""
        done = step.step + 1
        early = done <= self.config.early_epochs * self.steps_per_epoch
        interval = max(self.steps_per_epoch // self.config.measures_per_epoch, 1) if early else self.steps_per_epoch
        if done % interval == 0:
            features, predictions = predict(step.model, self.data.train, self.data)
            self.moments.append(measure(done, features, self.data.train.y, predictions, len(self.data.classes)))
            self.val_predictions.append(predict(step.model, self.data.val, self.data)[1])

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "steps": [moment.step for moment in self.moments],
            "depths": [moment.depth if np.isfinite(moment.depth) else -1.0 for moment in self.moments],
            "predictions": torch.tensor(np.array([moment.predictions for moment in self.moments], dtype=np.int16)),
            "val": torch.tensor(np.array(self.val_predictions, dtype=np.int16)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.moments = [
            Moment(step, predictions, int((predictions != self.data.train.y).sum()), depth if depth >= 0 else float("nan"))
            for step, depth, predictions in zip(state["steps"], state["depths"], state["predictions"].numpy().astype(np.int64), strict=True)
        ]
        self.val_predictions = list(state["val"].numpy().astype(np.int64))


@dataclass(frozen=True)
class Discovery:
    """What phase 1 found: the vanilla network, the alignment of every training and validation image, and the measurements behind it.

    `shortcut` is False where the misclassified images lie too near the boundary: hard ones, which contradict nothing.
    """

    model: nn.Module
    found: Alignment
    val: Alignment
    moments: tuple[Moment, ...]
    chosen: int
    shortcut: bool

    def details(self, data: BiasedSet) -> dict[str, Any]:
        """What an outcome tells of the search."""
        moment = self.moments[self.chosen]
        return {
            "shortcut_found": self.shortcut,
            "revealing_step": moment.step,
            "depth": moment.depth,
            "moments": self.series(data),
            "discovery": self.quality(data),
        }

    def series(self, data: BiasedSet) -> list[dict[str, Any]]:
        """For plots, at each moment: ``depth``, ``misclassified``, and of the conflicting images found the share that is taken for what
        the shortcut says (``follow``) or for what it is (``right``); ``zeta`` where one attribute is known."""
        said = ~self.found.aligned
        shortcut, label = self.found.pseudo_label[said], data.train.y[said]
        attribute = data.attributes[0] if len(data.attributes) == 1 else None
        rows = []
        for moment in self.moments:
            seen, wrong = moment.predictions, moment.predictions != data.train.y
            row = {"step": moment.step, "depth": moment.depth, "misclassified": moment.misclassified}
            row |= {"follow": float((seen[said] == shortcut).mean()), "right": float((seen[said] == label).mean())}
            if attribute is not None and wrong.any():
                row["zeta"] = float((attribute.of_class[seen[wrong]] == attribute.of_group[data.train.b[wrong]]).mean())
            rows.append(row)
        return rows

    def unlearned_epoch(self, labels_N: NDArray[np.int64], steps_per_epoch: int) -> int:
        """The epoch's end nearest to the last moment at which half of the conflicting images or more were still wrong; at least 1.

        Later the network has learned them by heart.
        """
        said = ~self.found.aligned
        steps = [moment.step for moment in self.moments if (moment.predictions != labels_N)[said].mean() >= 0.5]
        return max(round(max(steps, default=0) / steps_per_epoch), 1)

    def quality(self, data: BiasedSet) -> dict[str, Any] | None:
        """Against the true groups, None where they are unknown: precision and recall of the conflicting set, and zeta (Eq. 10), the
        share of conflicting samples whose pseudo label is the class that goes with the true group (one attribute only)."""
        goes = data.alignment(data.train)
        if goes is None:
            return None
        true, said = ~goes.all(0), ~self.found.aligned
        hit = int((true & said).sum())
        zeta = None
        if len(data.attributes) == 1 and said.any():
            attribute = data.attributes[0]
            zeta = float((attribute.of_class[self.found.pseudo_label[said]] == attribute.of_group[data.train.b[said]]).mean())
        return {
            "conflicting_found": int(said.sum()),
            "conflicting_true": int(true.sum()),
            "precision": hit / max(int(said.sum()), 1),
            "recall": hit / max(int(true.sum()), 1),
            "zeta": zeta,
        }


def discover(data: BiasedSet, settings: Settings, folder: Path | None = None, config: VoronoiConfig | None = None) -> Discovery:
    """Phase 1: train a vanilla network and find who follows the shortcut.

    Raises:
        InputError: if no training sample is ever misclassified: nothing contradicts a shortcut.
    """
    config = config or VoronoiConfig()
    model = fresh(data, settings)
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
    val = alignment(data.val.y, watch.val_predictions[chosen], len(data.classes))
    least = MIN_DEPTH if config.min_depth is None else config.min_depth
    return Discovery(model, found, val, tuple(watch.moments), chosen, watch.moments[chosen].depth >= least)


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: VoronoiConfig | None = None) -> Outcome:
    """Both phases; the first one only where it finds no shortcut."""
    config = config or VoronoiConfig()
    discovery = discover(data, settings, folder, config)
    model = debias(data, settings, discovery.found, config, folder) if discovery.shortcut else discovery.model
    return Outcome(model, discovery.details(data) | {"rho": discovery.found.rho})


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
    model = fresh(data, settings)
    head = InformationHead(networks.head_of(model).in_features, classes)
    both = _Both(model, head)
    head_lr = config.head_lr or (0.1 if settings.rule == "sgd" else 10 * settings.rate)
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
        parameters=[{"params": list(model.parameters())}, {"params": list(head.parameters()), "lr": head_lr}],
        description="debias",
    )
    return model
