"""Accuracy of networks of a supernet: calibrate the norms on training images, then count on held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from edge_shared.data.vision import ImageSet
from torch import Tensor, nn

from moofa.space import Choice, Genes
from moofa.supernet import Supernet, calibrate
from moofa.training.losses import unwrap

CALIBRATION_IMAGES = 512
BATCH = 256


@dataclass(frozen=True)
class Gauge:
    """Measures accuracies.

    Attributes:
        calibration: batches of training images.
        images, labels: the held-out part, normalised (n, c, h, w) and (n,).
    """

    calibration: list[Tensor]
    images: Tensor
    labels: Tensor

    @staticmethod
    def of(data: ImageSet, split: str = "val", *, limit: int | None = None, seed: int = 0) -> Gauge:
        """A gauge on one part of a data set; calibration images are drawn from the training part.

        Args:
            data: the images.
            split: val for choices; test only for the final figure.
            limit: at most so many held-out images.
            seed: of the draw.
        """
        calibration = [images for images, _ in _subset(data, "train", CALIBRATION_IMAGES, seed)]
        held = list(_subset(data, split, limit, seed))
        return Gauge(calibration, torch.cat([images for images, _ in held]), torch.cat([labels for _, labels in held]))

    @torch.no_grad()
    def accuracy(self, supernet: Supernet, choice: Choice) -> float:
        """Accuracy of one network, in [0, 1]; the supernet's running statistics are afterwards those of this network."""
        device = supernet.classifier.weight.device
        calibrate(supernet, choice, (batch.to(device) for batch in self.calibration))
        training = supernet.training
        supernet.eval()
        logits = [supernet(batch.to(device), choice).argmax(1).cpu() for batch in self.images.split(BATCH)]
        supernet.train(training)
        return float((torch.cat(logits) == self.labels).float().mean())

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of the largest and the smallest network: what an epoch reports."""
        supernet = unwrap(model)
        space = supernet.space
        return {
            "largest_accuracy": self.accuracy(supernet, space.largest()),
            "smallest_accuracy": self.accuracy(supernet, space.smallest()),
        }


def _subset(data: ImageSet, split: Any, limit: int | None, seed: int) -> list[tuple[Tensor, Tensor]]:
    from edge_shared.data.loader import image_loader

    images, labels = data.arrays(split)
    if limit is not None and limit < len(labels):
        rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:limit])
        images, labels = images[rows], labels[rows]
    return list(image_loader(images, labels, data.mean, data.std, batch_size=BATCH))


def sample_balanced(table: Any, count: int, seed: int, bins: int = 15) -> np.ndarray:
    """Draw different networks, spread evenly over RAM: (n, columns) gene rows.

    As MOOFA's predictor data: equal numbers per bin of memory where there are that many networks, the rest at random. The
    smallest and the largest network are among them.

    Args:
        table: a `CostTable`.
        count: networks wanted; fewer come back if the space has fewer.
        seed: of the draw.
        bins: equal intervals between the smallest and the largest RAM.
    """
    genes: Genes = table.genes
    rng = np.random.default_rng(seed)
    ends = genes.encode([table.space.smallest(), table.space.largest()])
    pool = genes.enumerate() if table.space.size <= 20_000 else genes.sample(max(20 * count, 4000), rng)
    pool = rng.permutation(np.unique(np.vstack([ends, pool]), axis=0), axis=0)
    ram = table.costs(pool).ram
    edges = np.linspace(ram.min(), ram.max(), bins + 1)
    bin_of = np.clip(np.searchsorted(edges, ram, side="right") - 1, 0, bins - 1)
    # Round robin over the bins: the first of every bin, then the second, ...
    turn = np.zeros(len(pool), dtype=np.int64)
    for number in range(bins):
        inside = np.flatnonzero(bin_of == number)
        turn[inside] = np.arange(len(inside))
    is_end = (pool[:, None] == ends[None]).all(2).any(1)
    order = np.lexsort((bin_of, turn, ~is_end))
    return pool[order[:count]]


def label(
    supernet: Supernet, rows: np.ndarray, gauge: Gauge, known: dict[str, float], save: Callable[[dict[str, float]], None], every: int = 20
) -> np.ndarray:
    """Measure the accuracy of each network, going on from what is known: (n,) in [0, 1].

    Args:
        supernet: trained.
        rows: gene rows.
        gauge: on the held-out part of the training set.
        known: accuracies by row (as text); filled.
        save: called with `known` now and then, so that an interruption loses little.
        every: how often.
    """
    from edge_shared.cli import progress

    genes = Genes(supernet.space)
    with progress("measuring networks", len(rows)) as advance:
        for number, row in enumerate(rows):
            name = " ".join(map(str, row))
            if name not in known:
                known[name] = gauge.accuracy(supernet, genes.decode(row))
                if number % every == every - 1:
                    save(known)
            advance()
    save(known)
    return np.array([known[" ".join(map(str, row))] for row in rows])
