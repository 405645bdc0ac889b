"""The loss of one training step: which networks are trained, and what they learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moofa.space import Choice, Genes, Space
from moofa.supernet.network import Supernet
from moofa.training.phases import Phase


def unwrap(model: nn.Module) -> Supernet:
    """The supernet inside what Fabric or data-parallel training wrapped around it."""
    while not isinstance(model, Supernet):
        model = model.module  # type: ignore[assignment]
    return model


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the teacher's softmax at temperature 1, mean over the batch (Once-For-All's ``ce``)."""
    return -(F.softmax(teacher_logits, 1) * F.log_softmax(logits, 1)).sum(1).mean()


@dataclass
class SandwichLoss:
    """Largest, smallest and random networks in every step; all but the largest learn from the largest (BigNAS, AttentiveNAS).

    The largest network learns from the labels, the others from its softened outputs of the same batch (in-place
    distillation). The gradients add up.

    Attributes:
        space: the space.
        seed: of the random networks; a step's networks depend on it and the step's number only.
        random: random networks per step.
        label_smoothing: of the largest network's cross-entropy.
    """

    space: Space
    seed: int = 0
    random: int = 2
    label_smoothing: float = 0.1

    def choices(self, step: int) -> list[Choice]:
        """The networks of a step: largest, smallest, then random ones."""
        genes = Genes(self.space)
        rows = genes.sample(self.random, np.random.default_rng([self.seed, step]))
        return [self.space.largest(), self.space.smallest(), *(genes.decode(row) for row in rows)]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of the networks' losses on a batch of (images, labels)."""
        images, labels = batch
        supernet = unwrap(model)
        largest, *others = self.choices(int(supernet.steps))
        supernet.steps += 1
        logits = model(images, largest)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        target = logits.detach()
        for choice in others:
            loss = loss + distillation(model(images, choice), target)
        return loss + 0.0 * _unused(supernet)


@dataclass
class ProgressiveLoss:
    """Random networks of a phase, each learning from the labels and a fixed teacher (progressive shrinking).

    Attributes:
        space: the space.
        phase: which options may be drawn, and how many networks per step.
        teacher: a frozen supernet whose largest network teaches; None in the phase that trains it.
        seed: as in `SandwichLoss`.
        label_smoothing: of the cross-entropy.
    """

    space: Space
    phase: Phase
    teacher: Supernet | None = None
    seed: int = 0
    label_smoothing: float = 0.1

    def choices(self, step: int) -> list[Choice]:
        """The networks of a step."""
        if self.teacher is None:
            return [self.space.largest()]
        allowed = self.phase.restrict(self.space)
        genes = Genes(allowed)
        rows = genes.sample(self.phase.networks, np.random.default_rng([self.seed, self.phase.number, step]))
        return [genes.decode(row) for row in rows]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of the networks' losses on a batch of (images, labels)."""
        images, labels = batch
        supernet = unwrap(model)
        choices = self.choices(int(supernet.steps))
        supernet.steps += 1
        target = None
        if self.teacher is not None:
            self.teacher.to(images.device)
            with torch.no_grad():
                # Batch statistics, as in the official code: the teacher is in training mode.
                target = self.teacher(images, self.space.largest())
        loss = torch.zeros((), device=images.device)
        for choice in choices:
            logits = model(images, choice)
            loss = loss + F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            if target is not None:
                loss = loss + distillation(logits, target)
        return loss + 0.0 * _unused(supernet)


def _unused(supernet: Supernet) -> Tensor:
    """A zero that touches every parameter: data-parallel training waits for the gradient of each."""
    return torch.stack([parameter.sum() for parameter in supernet.parameters()]).sum()
