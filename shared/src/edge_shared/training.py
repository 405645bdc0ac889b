"""One training loop for all packages, on Lightning Fabric: one CPU, one GPU, or many by ``fabric run``.

A run that is killed continues from its checkpoint to the same weights, bit for bit, on a CPU (same machine, same number
of threads): the checkpoint holds the state of every random number generator and the place in the data order.
"""

from __future__ import annotations

import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge_shared.checkpoints import load_checkpoint, save_checkpoint
from edge_shared.cli import progress, say
from edge_shared.errors import InputError
from edge_shared.evaluating import evaluating

__all__ = ["Epoch", "History", "Stateful", "Step", "TrainConfig", "evaluate", "fit", "load_checkpoint", "save_checkpoint", "sound_kernels"]

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step; for whoever makes the loaders.
        lr: learning rate at its highest.
        optimizer: ``sgd`` (Nesterov if momentum is above 0), ``adam`` or ``adamw``.
        momentum: of sgd.
        weight_decay: of all parameters, unless a parameter group says otherwise.
        schedule: ``cosine`` (to 0), ``linear`` (to 0) or ``constant``, per step, after the warm-up.
        warmup_epochs: epochs of linear growth from 0; may be a fraction.
        label_smoothing: of the default loss.
        seed: of everything random.
        patience: stop after this many epochs without a better `monitor`, and go back to the best weights.
        monitor: the validation metric that tells the best epoch; lower is better for names that end in ``loss`` or ``error``.
        clip_norm: largest norm of the gradient.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed`` (the last on a GPU).
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.05
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: float = 0
    label_smoothing: float = 0.0
    seed: int = 0
    patience: int | None = None
    monitor: str = "accuracy"
    clip_norm: float | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("sgd", "adam", "adamw"),
            "schedule": ("cosine", "linear", "constant"),
            "precision": ("32-true", "bf16-mixed", "16-mixed"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name, least in (
            ("epochs", 0),
            ("batch_size", 1),
            ("warmup_epochs", 0),
            ("momentum", 0),
            ("weight_decay", 0),
            ("label_smoothing", 0),
        ):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; it is at least {least}")
        for name in ("momentum", "label_smoothing"):
            if not getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it is below 1")
        for name in ("lr", "clip_norm", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it is above 0")

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The share of `lr` in use at this step (counted from 0)."""
        warm = self.warmup_epochs * steps_per_epoch
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return 1.0
        done = (step - warm) / max(self.epochs * steps_per_epoch - warm, 1)
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Step:
    """What a step hook sees: after the gradients (`on_backward`) or after the update (`on_step`)."""

    epoch: int  # from 0
    step: int  # from 0, over the whole run
    loss: float
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Any


@dataclass(frozen=True)
class Epoch:
    """What `on_epoch` sees after each epoch and its validation."""

    epoch: int  # from 0
    metrics: Metrics
    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass
class History:
    """What happened.

    Attributes:
        epochs: metrics of each epoch: ``epoch`` (from 0), ``lr`` (of its last step), ``train_loss``, ``val_*``.
        steps: updates made in all.
        best_epoch: epoch of the best `monitor`; None without validation.
        stopped_early: whether `patience` or a hook ended the run.
    """

    epochs: list[Metrics] = field(default_factory=list)
    steps: int = 0
    best_epoch: int | None = None
    stopped_early: bool = False


class Stateful(Protocol):
    """Anything whose state belongs into the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as `save_checkpoint` takes it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take a state back."""
        ...


@contextmanager
def sound_kernels(model: nn.Module) -> Iterator[None]:
    """Without oneDNN for a backward pass in which it would corrupt memory.

    Its weight gradient of a strided 1x1 convolution of two to seven channels writes past the end of the buffer (torch 2.13, x86 with
    AVX2) where images lie channels last, as they also do in a batch of one channel that was cut from pixels. Networks that were
    pruned that far are small: the plain kernels cost them little.
    """
    narrow = any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1 and 1 < module.in_channels < 8
        for module in model.modules()
    )
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not narrow  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


def fit(
    model: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None,
    config: TrainConfig,
    *,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int | None = None,
    parameters: Iterable[Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    validate: Callable[[nn.Module], Metrics] | None = None,
    set_mode: Callable[[nn.Module], Any] = nn.Module.train,
    on_backward: Callable[[Step], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], bool | None] | None = None,
    extra: Mapping[str, Stateful] | None = None,
    device: str = "auto",
    description: str = "training",
) -> History:
    """Train `model` in place.

    If `checkpoint` exists, the run continues from it; a finished one only loads the weights. Ctrl-C saves after the step
    under way, then raises `KeyboardInterrupt`.

    Args:
        model: any module; it is back on its own device afterwards.
        train_loader: batches, with a length; ``(inputs, labels)`` unless `loss` knows another form.
        val_loader: batches ``(inputs, labels)`` for `evaluate` after each epoch.
        config: settings.
        loss: ``loss(model, batch) -> scalar``, for distillation, masks, groups; cross-entropy by default.
        checkpoint: file, conventionally ``checkpoint.safetensors``; written after each epoch.
        checkpoint_steps: also written every so many steps.
        parameters: parameters or parameter groups to train; all that require a gradient by default.
        optimizer: an optimiser of your own, made over the parameters; `config.lr` and the like are then not used, the schedule is.
        validate: replaces `evaluate` on `val_loader`.
        set_mode: puts the model into training mode; for example to keep norms frozen.
        on_backward: called between the gradients and the update.
        on_step: called after each update.
        on_epoch: called after each epoch; returning True ends the run.
        extra: objects whose state is kept in the checkpoint by name.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        description: what the progress bar says.

    Raises:
        InputError: inputs or a loss that are not finite, an empty loader, a checkpoint that is damaged or of other settings.
    """
    fabric = open_fabric(device, config.precision)
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    optimizer = optimizer or _optimizer(config, _trainable(model) if parameters is None else parameters)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    train_loader, steps_per_epoch = _loader(fabric, train_loader)
    run = _Run(model, optimizer, config, fabric, train_loader, dict(extra or {}), Path(checkpoint) if checkpoint else None)
    if run.path is not None and run.path.exists():
        run.load()
    compute = loss or _cross_entropy(config.label_smoothing)
    validate = validate or (None if val_loader is None else lambda module: evaluate(module, val_loader))
    if config.patience is not None and validate is None:
        raise InputError("patience needs validation data to tell the best epoch")
    done = run.epoch * steps_per_epoch + run.batches
    with sound_kernels(model), _interrupts() as interrupted, progress(description, config.epochs * steps_per_epoch) as advance:
        advance(done)
        _seed(config.seed)  # only now: importing rich for the bar draws from Python's generator, the first time
        while run.epoch < config.epochs and not run.history.stopped_early:
            set_mode(model)
            for batch in run.remaining_batches():
                batch = fabric.to_device(batch)
                _check_finite(batch, run)
                factor = config.factor(run.history.steps, steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                value = compute(wrapped, batch)
                number = float(value.detach())
                if not math.isfinite(number):
                    raise InputError(
                        f"the loss is {number} at {run.place()}; lower the learning rate ({config.lr:g}) or clip the gradient{run.kept()}"
                    )
                fabric.backward(value)
                moment = Step(run.epoch, run.history.steps, number, model, optimizer, batch)
                if on_backward:
                    on_backward(moment)
                if config.clip_norm is not None:
                    fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
                wrapped_optimizer.step()
                wrapped_optimizer.zero_grad()
                run.count(number)
                if on_step:
                    on_step(moment)
                advance(1, f"{description} {run.epoch + 1}/{config.epochs} loss {run.mean_loss():.3f}")
                if interrupted():
                    run.save()
                    if run.path is not None:
                        say(f"interrupted at {run.place()}; saved {run.path}")
                    raise KeyboardInterrupt
                if checkpoint_steps and run.history.steps % checkpoint_steps == 0:
                    run.save()
            if not run.batches:
                raise InputError("the training data has no batches")
            metrics = run.end_epoch(fabric, {} if validate is None else validate(model))
            if on_epoch and on_epoch(Epoch(run.epoch - 1, metrics, model, optimizer)):
                run.history.stopped_early = True
            run.save()
    run.restore_best()
    model.to(home)
    return run.history


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any]) -> Metrics:
    """Accuracy, mean cross-entropy and number of samples of a classifier; every module keeps its training flag.

    Raises:
        InputError: if a logit is not finite, or there is no data.
    """
    where = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    right, loss, total = 0, 0.0, 0
    with evaluating(model):
        for inputs, labels in loader:
            labels = labels.to(where)
            logits = _logits(model, inputs.to(where), labels)
            if not torch.isfinite(logits).all():
                raise InputError(f"the model gives values that are not finite for samples {total} to {total + len(labels) - 1}")
            right += int((logits.argmax(1) == labels).sum())
            loss += float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
            total += len(labels)
    if not total:
        raise InputError("there is no data to evaluate on")
    return {"accuracy": right / total, "loss": loss / total, "n": total}


class _Run:
    """Where a run stands: everything that the checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        fabric: Any,
        loader: Any,
        extra: dict[str, Stateful],
        path: Path | None,
    ) -> None:
        self.model, self.optimizer, self.config, self.fabric = model, optimizer, config, fabric
        self.loader, self.extra, self.path = loader, extra, path
        self.history = History()
        self.epoch = 0
        self.batches = 0  # done in this epoch
        self.loss_sum = 0.0
        self.best: dict[str, torch.Tensor] | None = None
        self.epoch_start: dict[str, Any] | None = None  # random state when this epoch's data order was drawn
        self.now: dict[str, Any] | None = None  # random state to go on with, inside an epoch

    def remaining_batches(self) -> Iterator[Any]:
        """The batches of this epoch that are not done yet, in the order that the killed run would have had."""
        if self.epoch_start is not None:
            _restore_random(self.epoch_start, self.loader)
        self.epoch_start = _random_state(self.loader)
        sampler: Any = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        batches = iter(self.loader)
        for _ in range(self.batches):
            next(batches, None)
        if self.now is not None:
            _restore_random(self.now, self.loader)
            self.now = None
        yield from batches

    def count(self, loss: float) -> None:
        self.batches += 1
        self.loss_sum += loss
        self.history.steps += 1

    def mean_loss(self) -> float:
        return self.loss_sum / max(self.batches, 1)

    def end_epoch(self, fabric: Any, validation: Metrics) -> Metrics:
        mean = torch.tensor(self.mean_loss(), dtype=torch.float64)
        lr = self.optimizer.param_groups[0]["lr"]
        metrics: Metrics = {
            "epoch": self.epoch,
            "lr": lr,
            "train_loss": float(fabric.all_reduce(mean)) if fabric.world_size > 1 else float(mean),
        }
        metrics |= {f"val_{name}": float(value) for name, value in validation.items()}
        self.history.epochs.append(metrics)
        if validation:
            self._compare(metrics)
        self.epoch, self.batches, self.loss_sum, self.epoch_start = self.epoch + 1, 0, 0.0, None
        return metrics

    def _compare(self, metrics: Metrics) -> None:
        key, patience, history = f"val_{self.config.monitor}", self.config.patience, self.history
        if key not in metrics:
            raise InputError(
                f"monitor is {self.config.monitor!r}; validation gives {', '.join(name[4:] for name in metrics if name[:4] == 'val_')}"
            )
        sign = -1 if key.endswith(("loss", "error")) else 1
        best = -math.inf if history.best_epoch is None else sign * history.epochs[history.best_epoch][key]
        if sign * metrics[key] > best:
            history.best_epoch = self.epoch
            if patience is not None:
                self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        elif patience is not None and history.best_epoch is not None and self.epoch - history.best_epoch >= patience:
            history.stopped_early = True

    def restore_best(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best)

    def place(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.batches + 1}"

    def kept(self) -> str:
        return f"; the last good state is {self.path}" if self.path is not None and self.path.exists() else ""

    def save(self) -> None:
        if self.path is None or not self.fabric.is_global_zero:
            return
        save_checkpoint(
            self.path,
            {
                "config": asdict(self.config),
                "model": dict(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "extra": {name: value.state_dict() for name, value in self.extra.items()},
                "history": asdict(self.history),
                "epoch": self.epoch,
                "batches": self.batches,
                "loss_sum": self.loss_sum,
                "best": self.best,
                "epoch_start": self.epoch_start,
                "now": _random_state(self.loader),
            },
        )

    def load(self) -> None:
        assert self.path is not None
        state = load_checkpoint(self.path)
        try:
            ours = asdict(self.config)
            for name, value in state["config"].items():
                if ours[name] != value:
                    raise InputError(f"{self.path} was made with {name} {value}, not {ours[name]}; continue with the same settings")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            if set(state["extra"]) != set(self.extra):
                raise InputError(f"{self.path} holds the state of {sorted(state['extra'])}, not of {sorted(self.extra)}")
            for name, value in self.extra.items():
                value.load_state_dict(state["extra"][name])
            self.history = History(**state["history"])
            self.epoch, self.batches, self.loss_sum = state["epoch"], state["batches"], state["loss_sum"]
            self.best, self.epoch_start, self.now = state["best"], state["epoch_start"], state["now"]
        except InputError:
            raise
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{self.path} is of another model or program: {' '.join(str(error).split())[:160]}") from error
        if not self.batches:  # between two epochs the data order of the next one is drawn from the state kept
            self.epoch_start, self.now = self.now, None


def open_fabric(device: str, precision: str) -> Any:
    """Lightning Fabric, connected with the processes that ``torchrun`` or ``fabric run`` started together with this one.

    Args:
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        precision: as Fabric names it, such as ``32-true``.

    Raises:
        InputError: for another device, or a GPU that is not there.
    """
    from lightning_fabric import Fabric

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no CUDA GPU; choose cpu or auto")
    devices: int | str = 1
    nodes = 1
    if "LT_DEVICES" in os.environ:  # `fabric run` says it all in the environment
        devices = "auto"
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, precision=precision)  # type: ignore[arg-type]
    if "LT_CLI_USED" not in os.environ:  # `fabric run` has launched already
        fabric.launch()
    return fabric


def _loader(fabric: Any, loader: Any) -> tuple[Any, int]:
    try:
        steps = len(loader)
    except TypeError as error:
        raise InputError("the training data has no length; give a DataLoader over a sized data set, or a list of batches") from error
    if not steps:
        raise InputError("the training data has no batches")
    if fabric.world_size > 1 and isinstance(loader, torch.utils.data.DataLoader):
        loader = fabric.setup_dataloaders(loader, move_to_device=False)
        steps = len(loader)
    return loader, steps


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _optimizer(config: TrainConfig, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    groups = list(parameters)
    if not groups:
        raise InputError("the model has no parameters to train")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, weight_decay=config.weight_decay)


def _cross_entropy(label_smoothing: float) -> Callable[[nn.Module, Any], torch.Tensor]:
    def compute(model: nn.Module, batch: Any) -> torch.Tensor:
        inputs, labels = batch
        return functional.cross_entropy(_logits(model, inputs, labels), labels, label_smoothing=label_smoothing)

    return compute


def _logits(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Run a classifier, and say it in one line if model and data do not fit."""
    try:
        logits = model(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the model cannot take inputs of shape {tuple(inputs.shape)} ({reason})") from error
    if not labels.is_floating_point() and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the model has {logits.shape[1]} classes (0 to {logits.shape[1] - 1})"
        )
    return logits


def _check_finite(batch: Any, run: _Run) -> None:
    for index, item in enumerate(batch if isinstance(batch, Sequence) else (batch,)):
        if isinstance(item, torch.Tensor) and item.is_floating_point() and not torch.isfinite(item).all():
            sample = int((~torch.isfinite(item)).reshape(len(item), -1).any(1).nonzero()[0]) if item.ndim else 0
            raise InputError(f"inputs that are not finite: item {index} of the batch, sample {sample}, at {run.place()}{run.kept()}")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the legacy generator is what augmentations draw from
    torch.manual_seed(seed)


def _generators(loader: Any) -> list[torch.Generator]:
    places = (loader, getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    found = {id(g): g for place in places if isinstance(g := getattr(place, "generator", None), torch.Generator)}
    return list(found.values())


def _random_state(loader: Any) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
        "loader": [generator.get_state() for generator in _generators(loader)],
    }


def _restore_random(state: dict[str, Any], loader: Any) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, saved in zip(_generators(loader), state["loader"], strict=True):
        generator.set_state(saved)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that no step is torn; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed: list[int] = []

    def handler(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        pressed.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
