"""Train a supernet through the shared Fabric loop; every phase has its own checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge_shared.errors import InputError
from edge_shared.training import History, TrainConfig, fit
from torch import nn

from moofa.supernet.network import Supernet
from moofa.supernet.sorting import sort_channels
from moofa.training.losses import ProgressiveLoss, SandwichLoss
from moofa.training.phases import Phase, phases


@dataclass(frozen=True)
class SupernetConfig:
    """Settings of a supernet's training.

    Attributes:
        schedule: sandwich or progressive.
        source: whose phases `progressive` follows: once-for-all or moofa.
        epochs: of all phases together.
        batch_size: images per step.
        lr: base learning rate.
        weight_decay: of weights; norms and biases have none.
        label_smoothing: of the cross-entropy.
        random: random networks per sandwich step, besides the largest and the smallest.
        warmup: share of a sandwich run in which the learning rate rises.
        clip_norm: largest norm of the summed gradient.
        seed: of everything random.
    """

    schedule: Literal["sandwich", "progressive"] = "sandwich"
    source: str = "once-for-all"
    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.1
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1
    random: int = 2
    warmup: float = 0.1
    clip_norm: float | None = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in ("sandwich", "progressive"):
            raise InputError(f"unknown schedule {self.schedule!r}; known: sandwich, progressive")
        least = 6 if self.schedule == "progressive" else 1
        if self.epochs < least:
            raise InputError(f"{self.epochs} epochs are too few; {self.schedule} needs at least {least}")
        phases(self.source)


def train_supernet(
    supernet: Supernet,
    loader: Iterable[Any],
    config: SupernetConfig,
    folder: Path,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    device: str = "auto",
    checkpoint_steps: int | None = 200,
) -> dict[str, History]:
    """Train `supernet` in place; call it again with the same arguments after an interruption and it goes on.

    Args:
        supernet: with the weights to begin with.
        loader: batches of (images, labels) of the training set, with a length.
        config: settings.
        folder: where each phase keeps ``phase-N.safetensors``.
        validate: metrics after each epoch.
        device: auto, cpu or cuda.
        checkpoint_steps: also save every so many steps.

    Returns:
        The history of each phase by name.

    Raises:
        InputError: for checkpoints of another space or other settings, or a loss that is not finite.
    """
    if config.schedule == "sandwich":
        loss = SandwichLoss(supernet.space, config.seed, config.random, config.label_smoothing)
        settings = _settings(config, config.epochs, config.lr, config.warmup * config.epochs)
        return {"sandwich": _fit(supernet, loader, settings, loss, folder / "phase-0.safetensors", validate, device, checkpoint_steps)}
    histories: dict[str, History] = {}
    teacher: Supernet | None = None
    table = phases(config.source)
    for phase, epochs in zip(table, share(table, config.epochs), strict=True):
        if phase.sort:
            sort_channels(supernet, _trained(supernet, phase))
        supernet.steps.zero_()
        progressive = ProgressiveLoss(supernet.space, phase, teacher, config.seed, config.label_smoothing)
        settings = _settings(config, epochs, config.lr * phase.lr, phase.warmup * epochs / phase.epochs)
        path = folder / f"phase-{phase.number}.safetensors"
        histories[phase.name] = _fit(supernet, loader, settings, progressive, path, validate, device, checkpoint_steps)
        if teacher is None:
            teacher = copy.deepcopy(supernet).requires_grad_(False).train()
            teacher.space = teacher.space.model_copy(update={"dropout": 0.0})
    return histories


def share(table: tuple[Phase, ...], epochs: int) -> list[int]:
    """Distribute the epochs over the phases in the papers' proportions, at least one each, exactly `epochs` in all."""
    total = sum(phase.epochs for phase in table)
    result = [max(1, round(epochs * phase.epochs / total)) for phase in table]
    while sum(result) != epochs:
        place = result.index(max(result))
        result[place] += 1 if sum(result) < epochs else -1
    return result


def _trained(supernet: Supernet, phase: Phase) -> list[tuple[float, ...]]:
    # Before expand_1 the largest expansion is trained, before expand_2 the two largest.
    count = 1 if phase.name == "expand_1" else 2
    return [stage.expands[-count:] for stage in supernet.space.stages]


def _settings(config: SupernetConfig, epochs: int, lr: float, warmup_epochs: float) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=config.batch_size,
        lr=lr,
        momentum=0.9,
        weight_decay=config.weight_decay,
        warmup_epochs=warmup_epochs,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        clip_norm=config.clip_norm,
        monitor="largest_accuracy",
    )


def _fit(
    supernet: Supernet,
    loader: Iterable[Any],
    settings: TrainConfig,
    loss: Callable[[nn.Module, Any], Any],
    path: Path,
    validate: Callable[[nn.Module], dict[str, float]] | None,
    device: str,
    checkpoint_steps: int | None,
) -> History:
    weights = [parameter for parameter in supernet.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in supernet.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return fit(
        supernet,
        loader,
        None,
        settings,
        loss=loss,
        checkpoint=path,
        checkpoint_steps=checkpoint_steps,
        parameters=groups,
        validate=validate,
        device=device,
        extra={"space": _SpaceGuard(supernet)},
        description=path.stem,
    )


@dataclass
class _SpaceGuard:
    """Refuses a checkpoint of another space."""

    supernet: Supernet

    def state_dict(self) -> dict[str, Any]:
        return {"space": self.supernet.space.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("space") != self.supernet.space.fingerprint():
            raise InputError("the checkpoint belongs to another space; train into a new folder")


def describe(histories: dict[str, History]) -> dict[str, Any]:
    """Plain data for a report."""
    return {name: asdict(history) for name, history in histories.items()}
