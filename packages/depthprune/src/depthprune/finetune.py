"""Fine-tuning after a removal: knowledge distillation from the dense network, unless the caller brings a training of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from edge_shared.evaluating import evaluating
from edge_shared.training import Step, TrainConfig, fit
from torch import Tensor, fx, nn
from torch.nn import functional as F

from depthprune.entropy import images_of
from depthprune.methods import masks as weight_masks


class Finetune(Protocol):
    """What the pruner calls after every removal; it trains `model` in place."""

    def __call__(self, model: fx.GraphModule, round_: int, masks: dict[str, Tensor], penalty: Callable[[nn.Module], Tensor] | None) -> None:
        """Train; keep masked weights at zero; add the penalty to the loss.

        Args:
            model: to train in place.
            round_: number of the round, from 1.
            masks: float 0/1 by parameter name; weights at 0 stay 0.
            penalty: term of the method, or None.
        """


@dataclass
class Distill:
    """Cross-entropy mixed with the dense network's soft targets (Hinton et al. 2015).

    Attributes:
        teacher: the dense network.
        loader: training batches (x, y).
        config: settings; the seed is shifted by the round.
        weight: share of the distillation term, 0 to 1.
        temperature: of the soft targets.
        checkpoints: folder for resumable checkpoints, one per round and attempt.
        device: auto, cpu or cuda.
    """

    teacher: nn.Module
    loader: Iterable[Any]
    config: TrainConfig
    weight: float = 0.7
    temperature: float = 3.0
    checkpoints: Path | None = None
    device: str = "auto"
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.teacher = copy.deepcopy(self.teacher).eval().requires_grad_(False)

    def __call__(self, model: fx.GraphModule, round_: int, masks: dict[str, Tensor], penalty: Callable[[nn.Module], Tensor] | None) -> None:
        """One fine-tuning; a finished one found in `checkpoints` is only loaded."""
        self.calls += 1
        config = replace(self.config, seed=self.config.seed + 1000 * self.calls)
        # The order of the data must not depend on trainings before this one: a resumed run only loads those.
        generator = getattr(self.loader, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(config.seed)

        def loss(wrapped: nn.Module, batch: Any) -> Tensor:
            x, y = batch[:2]
            logits = wrapped(x)
            self.teacher.to(x.device)
            with torch.no_grad():
                soft = F.log_softmax(self.teacher(x) / self.temperature, 1)
            distance = F.kl_div(F.log_softmax(logits / self.temperature, 1), soft, log_target=True, reduction="batchmean")
            total = (1 - self.weight) * F.cross_entropy(logits, y) + self.weight * self.temperature**2 * distance
            return total if penalty is None else total + penalty(wrapped)

        def keep_zero(step: Step) -> None:
            weight_masks.apply(step.model, masks)

        fit(
            model,
            self.loader,
            None,
            config,
            loss=loss,
            checkpoint=None if self.checkpoints is None else self.checkpoints / f"finetune-{self.calls}" / "checkpoint.safetensors",
            on_step=keep_zero if masks else None,
            device=self.device,
            description=f"round {round_}: fine-tuning",
        )


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Take the running statistics of all batch norms anew, as means over batches of training inputs.

    A neuron that was masked or removed is constant: its batch variance is 0, and the running variance, on its way there, is
    small while the running mean still lags. In evaluation mode that lag is divided by almost nothing, and one dead channel
    drowns the others; the papers' long trainings wait it out, short ones cannot.

    Args:
        model: changed in place; weights stay, and every module keeps its mode.
        batches: tensors, or tuples whose first entry is the tensor.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for batch in batches:
            model(images_of(batch).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
