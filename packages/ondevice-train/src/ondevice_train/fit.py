"""Fine-tuning of any model on any image set by any method of the table, under a budget: the work of ``ondevice-train fit``."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from edge_shared import devices, flops
from edge_shared.artifacts import load_artifact
from edge_shared.cli import say
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.errors import CheckFailed, InputError
from edge_shared.memory import measure, peak
from edge_shared.memory.schemes import Scheme
from edge_shared.network import Network, deployed
from edge_shared.training import Step, TrainConfig, evaluate, load_checkpoint, sound_kernels
from edge_shared.training import fit as train
from edge_shared.units import format_bytes
from torch import Tensor, nn

from ondevice_train import models
from ondevice_train.methods import MethodOptions, Prepared, method
from ondevice_train.selection.budget import Budget, CostModel
from ondevice_train.selection.driver import Driver, weight_norms
from ondevice_train.selection.importance import Norms, Ranking
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.keep import EXACT, plan_keeps
from ondevice_train.selection.layers import INPUT, Selection
from ondevice_train.selection.selector import Setting
from ondevice_train.selection.table import selector_class

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class FitConfig:
    """Settings of one fine-tuning run.

    Attributes:
        model: see `models.build`.
        weights: file of pretrained weights; None starts from fresh ones.
        data: name or path of an image set.
        image_size: side in pixels the images are scaled to; the data's own (at least 32) if None.
        limit: at most so many images of each part.
        method: a name of `methods.METHODS`.
        budget: ``64kB``, ``27946units``, ``22410params``, or None.
        device: a device profile; its free RAM beside weights and inference peak is the budget.
        biases: biases of the last so many layers train too; None: all for ``bias-only``, none otherwise.
        last: the last so many layers may be selected or compressed; None for all.
        scheme: static scheme of ``sparse-update``, plain data (its indices count convolutions).
        ranking: layer scores, plain data; measured at the start if a method needs them.
        rank_steps: gradient steps of that measurement.
        calibrate: batches that set the statistics of BatchNorms before they are frozen; None: 10 for fresh weights, else 0.
        held_out: samples of D_val for methods that compare outputs.
        overshoot: ``skip`` or ``stop``; the method's own rule if None.
        smooth_bits: bits kept of the derivatives of smooth activations: 8 or 4, 32 leaves them to torch.
        keep_bits: bits of a kept channel's elements: 32, or 8 (selection methods).
        compress: compress the kept channels too, per layer: ``asi``, ``fixed-bases``, ``quantise`` or ``auto`` (methods that select input
            channels, budgets in bytes); None keeps them as `keep_bits` says.
        max_error: largest share of a layer's gradient that `compress` may cost, on the first batch.
        options: settings of the method.
        epochs, batch_size, lr, momentum, weight_decay, optimizer, warmup_epochs, label_smoothing, seed: of training.
    """

    model: str = "mcunet-in1"
    weights: str | None = None
    data: str = "digits"
    image_size: int | None = None
    limit: int | None = None
    method: str = "medyate"
    budget: str | None = None
    device: str | None = None
    biases: int | None = None
    last: int | None = None
    scheme: Mapping[str, Any] | None = None
    ranking: Mapping[str, Any] | None = None
    rank_steps: int = 20
    calibrate: int | None = None
    held_out: int = 16
    overshoot: str | None = None
    smooth_bits: int = 8
    keep_bits: int = 32
    compress: str | None = None
    max_error: float = 0.3
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0

    def training(self) -> TrainConfig:
        """The part of the shared training loop."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,  # type: ignore[arg-type]
            warmup_epochs=self.warmup_epochs,
            label_smoothing=self.label_smoothing,
            seed=self.seed,
        )

    @property
    def optimizer_slots(self) -> int:
        """Values that the optimizer keeps per trained weight."""
        return 2 if self.optimizer != "sgd" else 1 if self.momentum else 0


@dataclass(frozen=True)
class EpochCost:
    """What one epoch's selection costs: predicted, and measured on the model itself.

    Attributes:
        epoch: that it is for, from 0.
        channels: selected channels or neurons.
        layers: layers with any.
        predicted_saved_bytes, measured_saved_bytes: kept for backward by one forward pass of a full batch.
        predicted_total_bytes: under the accounting ``bytes``: saved, gradients, slices, indices, optimizer state.
        measured_total_bytes: the same, counted.
        budget_cost: under the budget's own accounting.
    """

    epoch: int
    channels: int
    layers: int
    predicted_saved_bytes: int
    measured_saved_bytes: int
    predicted_total_bytes: int
    measured_total_bytes: int
    budget_cost: int


@dataclass(frozen=True)
class FitResult:
    """What a run gave.

    Attributes:
        config: its settings.
        metrics: test and validation accuracy and loss.
        cost: bytes predicted and measured, step time, MACs in both conventions, trained parameters.
        epochs: metrics of each epoch.
        selections: cost of each epoch's selection (selection methods).
        data_fingerprint, synthetic, classes: of the data.
    """

    config: FitConfig
    metrics: dict[str, float]
    cost: dict[str, Any]
    epochs: list[dict[str, float]]
    selections: list[EpochCost]
    data_fingerprint: str
    synthetic: bool
    classes: tuple[str, ...]


def load_data(config: FitConfig) -> ImageSet:
    """The image set of a run, at the size and in the channels that the model takes (a model by name: at least 32 pixels, three channels)."""
    size, channels = config.image_size, 3
    if Path(config.model).is_dir():
        shape = load_artifact(config.model).input_shape
        size, channels = config.image_size or shape[2], shape[1]
    images = load_images(config.data, size=size, limit=config.limit, seed=config.seed)
    if size is None and min(images.shape[1:]) < 32:
        images = load_images(config.data, size=32, limit=config.limit, seed=config.seed)
    if channels == 1 and images.channels == 3:
        raise InputError(f"--model {config.model} takes grey images; {config.data} has colour")
    return images if channels == 1 else _coloured(images)


def _coloured(images: ImageSet) -> ImageSet:
    if images.channels == 3:
        return images
    from dataclasses import replace

    parts = {name: getattr(images, name).repeat(3, axis=3) for name in ("train_x", "val_x", "test_x")}
    return replace(images, **parts)


def resolve_budget(config: FitConfig, network: Network, parameters: int) -> Budget | None:
    """The budget of a run: as given, or what a device leaves beside weights (if they lie in RAM) and the peak of inference (fp32).

    Raises:
        CheckFailed: if the device cannot even run inference.
    """
    if config.budget is not None:
        if config.device is not None:
            raise InputError("give --budget or --device, not both")
        return Budget.parse(config.budget)
    if config.device is None:
        return None
    device = devices.load(config.device)
    inference = peak(deployed(network), device.memory_model).bytes
    weights = 4 * parameters if device.weight_placement == "ram" else 0
    left = device.ram_budget - weights - inference
    if left <= 0:
        raise CheckFailed(
            f"{device.name} has {format_bytes(device.ram_budget)} of RAM; inference takes {format_bytes(inference)}"
            f" and weights {format_bytes(weights)}: nothing is left for training"
        )
    return Budget(left)


def run(
    config: FitConfig, *, folder: Path | None = None, data: ImageSet | None = None, verbose: bool = True, onnx: bool = True
) -> FitResult:
    """Fine-tune and measure.

    Args:
        config: settings.
        folder: where the checkpoint is kept (a run that finds one there continues) and the model folder ``model`` is written.
        data: the images, if they are loaded already.
        verbose: say on stderr what is chosen.
        onnx: export and verify ONNX beside the weights.

    Raises:
        InputError: settings that do not fit together.
        CheckFailed: a budget that cannot be met.
    """
    chosen = method(config.method)
    data = load_data(config) if data is None else data
    size = data.shape[1]
    model, head = models.build(config.model, classes=len(data.classes), size=size, weights=config.weights, seed=config.seed)
    batch = min(config.batch_size, len(data.train_y))
    example = next(iter(data.loader("train", batch)))[0]
    try:
        _calibrate(config, model, data)
        session = _Session(config, data, model, head, example, folder, verbose)
        result = session.selection() if chosen.family == "selection" else session.other()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"--batch-size {config.batch_size}: a norm sees a single value in a batch of one image; take larger batches or images,"
            " or a method that selects channels, which freezes the norms"
        ) from error
    if folder is not None:
        from edge_shared.artifacts import save_model

        normalisation = {"mean": list(data.mean), "std": list(data.std)}
        saved = save_model(
            folder / "model", model.eval(), example[:2], classes=data.classes, normalisation=normalisation, onnx=onnx,
            builder=models.builder(config.model, classes=len(data.classes), size=size),
        )  # fmt: skip
        result.cost["model_bytes"] = saved["bytes"]
        result.cost["onnx_max_abs_error"] = saved["onnx_max_abs_error"]
    return result


def _calibrate(config: FitConfig, model: nn.Module, data: ImageSet) -> None:
    fresh = config.weights is None and not Path(config.model).is_dir()
    count = config.calibrate if config.calibrate is not None else 10 if fresh else 0
    # No statistics from a single image: norms behind the last pooling would see one value.
    loader = data.loader("train", max(config.batch_size, 8), shuffle=True, seed=config.seed)
    if count:
        models.calibrate_norms(model, [inputs for (inputs, _), _ in zip(loader, range(count), strict=False)])


class _Session:
    def __init__(
        self, config: FitConfig, data: ImageSet, model: nn.Module, head: str, example: Tensor, folder: Path | None, verbose: bool
    ) -> None:
        self.config, self.data, self.model, self.head, self.example = config, data, model, head, example
        self.checkpoint = folder / CHECKPOINT if folder is not None else None
        self.say: Callable[[str], None] = say if verbose else lambda message: None
        self.step_seconds: list[float] = []
        self._last = 0.0

    # -- the pieces both kinds of run share

    def loaders(self) -> tuple[Any, Any, Any]:
        """Train, validation and test loaders."""
        config = self.config
        train_loader = self.data.loader("train", config.batch_size, shuffle=True, seed=config.seed)
        # No larger batches than in training: they would take more memory than it.
        return train_loader, self.data.loader("val", config.batch_size), self.data.loader("test", config.batch_size)

    def timed(self, step: Step) -> None:
        """Note the time since the step before."""
        now = time.perf_counter()
        if self._last:
            self.step_seconds.append(now - self._last)
        self._last = now

    def probe(self, count: int = 4) -> list[tuple[Tensor, Tensor]]:
        """Some training batches, always the same."""
        loader = iter(self.data.loader("train", self.config.batch_size, shuffle=True, seed=self.config.seed + 1))
        return [batch for batch, _ in zip(loader, range(count), strict=False)]

    def held_out(self) -> Tensor:
        """D_val: inputs of the validation part."""
        return next(iter(self.data.loader("val", self.config.held_out)))[0]

    def step_time(self) -> float | None:
        """Median seconds of a step, the first ones left out."""
        steady = self.step_seconds[min(3, len(self.step_seconds) // 2) :]
        return statistics.median(steady) if steady else None

    # -- choosing channels

    def selection(self) -> FitResult:
        """Run a selection method."""
        config, cls = self.config, selector_class(self.config.method)
        scheme_ratios, scheme_biases = self._scheme()
        parameters = sum(p.numel() for p in self.model.parameters())
        biases = config.biases if config.biases is not None else scheme_biases
        ranking = self._ranking(cls.needs_ranking)
        if config.compress is not None and cls.unit != INPUT:
            raise InputError(f"--compress compresses input channels; {config.method} selects neurons")
        prepared = self._prepare(biases, cls.unit)
        budget = resolve_budget(config, prepared.network, parameters)
        if cls.has_budget and budget is None:
            raise InputError(f"--method {config.method} needs a --budget (64kB, 27946units, 22410params) or a --device")
        accounting = budget.accounting if budget else "bytes"
        costs = prepared.costs(accounting, cls.unit, config.optimizer_slots)
        if budget is not None and costs.smallest() > budget.amount:
            raise CheckFailed(
                f"the budget of {budget.amount} {budget.accounting} cannot be met: the classifier and biases alone take {costs.smallest()}"
                f" at batch size {self.example.shape[0]}; a smaller --batch-size takes less"
            )
        options = dict(config.options)
        if scheme_ratios is not None:
            options["ratios"] = scheme_ratios
        setting = Setting(
            costs=costs,
            amount=budget.amount if budget else None,
            seed=config.seed,
            ranking=ranking,
            weight_norms=lambda: weight_norms(prepared),
            overshoot=config.overshoot,
            options=options,
        )
        everything = prepared.costs("bytes", cls.unit, config.optimizer_slots)
        log: list[EpochCost] = []

        def on_select(epoch: int, selection: Selection, optimizer: torch.optim.Optimizer | None) -> None:
            if epoch >= config.epochs:
                return
            cost = epoch_cost(prepared, everything, costs, epoch, selection, config.optimizer_slots)
            if budget is not None and cost.budget_cost > budget.amount:
                raise CheckFailed(f"epoch {epoch}: the selection costs {cost.budget_cost} {accounting}, over the budget of {budget.amount}")
            log.append(cost)
            if budget is not None and not cost.channels:
                self.say(
                    f"no channel fits in {budget.amount} {accounting} (the cheapest takes {costs.per_channel.min()}): the head alone trains"
                )
            self.say(
                f"epoch {epoch + 1}: {cost.channels} channels in {cost.layers} layers,"
                f" {format_bytes(cost.measured_total_bytes)} for training (predicted {format_bytes(cost.predicted_total_bytes)})"
            )

        driver = Driver(prepared, cls(setting), probe=self.probe, held_out=self.held_out, on_select=on_select)
        log_state = _Log(log)
        if self.checkpoint is not None and self.checkpoint.exists():
            driver.restore_selection(load_checkpoint(self.checkpoint)["extra"]["selection"])
        else:
            driver.start()
        optimizer = make_optimizer(config, prepared.parameters())
        train_loader, val_loader, test_loader = self.loaders()
        training = config.training()

        def on_step(step: Step) -> None:
            driver.on_step(step)
            self.timed(step)

        def on_epoch(epoch: Any) -> None:
            self._last = 0.0
            driver.on_epoch(epoch)

        history = train(
            self.model,
            train_loader,
            val_loader,
            training,
            checkpoint=self.checkpoint,
            optimizer=optimizer,
            on_backward=driver.on_backward,
            on_step=on_step,
            on_epoch=on_epoch,
            extra={"selection": driver, "log": log_state},
            device="cpu",
            description=config.method,
        )
        metrics = self._metrics(history.epochs, test_loader)
        compute = self._compute(prepared.network, prepared, cls.unit)
        cost: dict[str, Any] = {
            "method": config.method,
            "budget": asdict(budget) if budget else None,
            "predicted_saved_bytes": max((row.predicted_saved_bytes for row in log), default=prepared.predict().total),
            "measured_saved_bytes": max((row.measured_saved_bytes for row in log), default=prepared.measure()),
            "predicted_total_bytes": max((row.predicted_total_bytes for row in log), default=None),
            "measured_total_bytes": max((row.measured_total_bytes for row in log), default=None),
            "trained_parameters": sum(p.numel() for p in prepared.parameters()),
            "selector_seconds_per_epoch": statistics.median(driver.overhead_seconds) if driver.overhead_seconds else None,
            "selector_state_bytes": driver.state_bytes(),
            "keeps": {name: asdict(keep) for name, keep in prepared.keeps.items() if keep != EXACT},
            **compute,
            **self._process(),
        }
        prepared.restore()
        return self._result(metrics, cost, history.epochs, log)

    def _scheme(self) -> tuple[dict[str, float] | None, int]:
        """Ratios by layer name and the number of trained biases of a static scheme."""
        config = self.config
        if config.scheme is None:
            return None, 0
        if config.method != "sparse-update":
            raise InputError(f"--scheme belongs to sparse-update, not to {config.method}")
        from edge_shared.trace import trace

        network = trace(self.model.eval(), self.example[:1])
        self.model.train()
        scheme = Scheme.parse(dict(config.scheme), network)
        convs = network.convs()
        return {str(convs[index].module): ratio for index, ratio in scheme.ratios.items()}, scheme.n_bias

    def _prepare(self, biases: int | None, unit: str) -> SelectiveModel:
        config = self.config
        count = biases or 0
        if config.method == "bias-only" and config.biases is None:
            count = -1
        keeps = None
        if config.compress is not None:
            example, labels = next(iter(self.data.loader("train", self.example.shape[0])))
            keeps = plan_keeps(self.model, example, labels, compress=config.compress, max_error=config.max_error, head=self.head)
            forms = [keep.form for keep in keeps.values()]
            self.say(
                f"selected channels are kept on low-rank bases in {forms.count('low-rank')} layers, in 8 bits in {forms.count('int8')}"
            )
        prepared = SelectiveModel(
            self.model, self.example, head=self.head, biases=count, smooth_bits=config.smooth_bits, keep_bits=config.keep_bits, keeps=keeps
        )
        if config.last is not None:
            prepared.layers = prepared.layers[max(len(prepared.layers) - config.last, 0) :]
        return prepared

    def _ranking(self, needed: bool) -> Ranking | None:
        config = self.config
        if not needed:
            return None
        if config.ranking is not None:
            return Ranking.parse(config.ranking, "--ranking")
        self.say(f"no --ranking given: measuring layer gradients for {config.rank_steps} steps")
        return rank(config, data=self.data, model=copy.deepcopy(self.model), head=self.head)

    # -- compression and baselines

    def other(self) -> FitResult:
        """Run a method that prepares the whole model itself."""
        config = self.config
        if config.compress is not None:
            raise InputError(f"--compress goes with a method that selects input channels, not with {config.method}")
        chosen_only = {"biases": config.biases, "scheme": config.scheme, "ranking": config.ranking, "overshoot": config.overshoot,
                       "keep-bits": None if config.keep_bits == 32 else config.keep_bits}  # fmt: skip
        if given := [name for name, value in chosen_only.items() if value is not None]:
            raise InputError(f"--{given[0]} goes with a method that selects channels, not with {config.method}")
        budget = Budget.parse(config.budget) if config.budget else None
        if budget is not None and budget.accounting != "bytes":
            raise InputError(f"--budget {config.budget}: {config.method} takes a budget in bytes")
        if budget is None and config.device is not None:
            from edge_shared.trace import trace

            parameters = sum(p.numel() for p in self.model.parameters())
            budget = resolve_budget(config, trace(self.model.eval(), self.example[:1]), parameters)
            self.model.train()
        options = MethodOptions(
            budget=budget.amount if budget else None, last=config.last, head=self.head, seed=config.seed, options=dict(config.options)
        )
        prepared = method(config.method).prepare(self.model, self.example, options)
        kept = [self._kept(prepared)]
        parameters_trained = [p for p in self.model.parameters() if p.requires_grad]
        train_loader, val_loader, test_loader = self.loaders()

        def on_step(step: Step) -> None:
            self.timed(step)

        def on_epoch(epoch: Any) -> None:
            self._last = 0.0

        class State:
            state_dict = staticmethod(prepared.state_dict)
            load_state_dict = staticmethod(prepared.load_state_dict)

        history = train(
            self.model,
            train_loader,
            val_loader,
            config.training(),
            checkpoint=self.checkpoint,
            optimizer=make_optimizer(config, parameters_trained),
            on_step=on_step,
            on_epoch=on_epoch,
            extra={"method": State()},
            device="cpu",
            description=config.method,
        )
        self.model.train()
        kept.append(self._kept(prepared))
        measured, predicted = max(kept, key=lambda pair: pair[0])
        metrics = self._metrics(history.epochs, test_loader)
        count = sum(p.numel() for p in parameters_trained)
        cost: dict[str, Any] = {
            "method": config.method,
            "budget": asdict(budget) if budget else None,
            "predicted_saved_bytes": predicted,
            "measured_saved_bytes": measured,
            "measured_total_bytes": measured + 4 * count * (1 + config.optimizer_slots),
            "trained_parameters": count,
            **self._process(),
        }
        prepared.restore()
        if budget is not None and cost["measured_saved_bytes"] > budget.amount:
            raise CheckFailed(f"{config.method} kept {cost['measured_saved_bytes']} bytes, over the budget of {budget.amount}")
        return self._result(metrics, cost, history.epochs, [])

    def _kept(self, prepared: Prepared) -> tuple[int, int | None]:
        """Bytes that a forward pass of the example keeps: measured, and predicted (None where the method makes no promise).

        Where the ranks follow the explained variance (HOSVD, SVD without a budget) the prediction is that of the ranks of this pass.
        """
        measured = measure.training_bytes(self.model, self.example).bytes
        return measured, prepared.predict() if prepared.predict else prepared.predicted_saved_bytes

    # -- results

    def _metrics(self, epochs: list[dict[str, float]], test_loader: Any) -> dict[str, float]:
        test = evaluate(self.model, test_loader)
        last = epochs[-1] if epochs else {}
        return {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "val_accuracy": last.get("val_accuracy", float("nan")),
            "train_loss": last.get("train_loss", float("nan")),
            "test_samples": test["n"],
        }

    def _compute(self, network: Network, prepared: SelectiveModel, unit: str) -> dict[str, Any]:
        """MACs of one training step of a full batch, in both conventions."""
        selection = prepared.selection
        result: dict[str, Any] = {}
        needs = prepared.saved.needs_gradient(selection)
        for convention in ("true", "paper"):
            forward = backward = weight = 0.0
            for layer in network.layers:
                forward += flops.forward(layer, convention)  # type: ignore[arg-type]
                if needs[layer.name]:
                    backward += flops.activation_gradient(layer, convention)  # type: ignore[arg-type]
                share = 1.0 if layer.module == prepared.head else 0.0
                if layer.module is not None and layer.module in selection.channels:
                    share = len(selection.channels[layer.module]) / (layer.in_channels if unit == INPUT else layer.out_channels)
                weight += share * flops.weight_gradient(layer, convention)  # type: ignore[arg-type]
            result[f"macs_{convention}"] = {"forward": forward, "activation_gradient": backward, "weight_gradient": weight}
        return result

    def _process(self) -> dict[str, Any]:
        import resource
        import sys

        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"step_seconds": self.step_time(), "batch_size": self.example.shape[0], "process_peak_rss_bytes": rss}

    def _result(self, metrics: dict[str, float], cost: dict[str, Any], epochs: list[dict[str, float]], log: list[EpochCost]) -> FitResult:
        data = self.data
        return FitResult(self.config, metrics, cost, epochs, log, data.fingerprint, data.synthetic, data.classes)


class _Log:
    """Keeps the list of epoch costs in the checkpoint."""

    def __init__(self, rows: list[EpochCost]) -> None:
        self.rows = rows

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the rows back."""
        self.rows[:] = [EpochCost(**row) for row in state["rows"]]


def epoch_cost(
    prepared: SelectiveModel, everything: CostModel, costs: CostModel, epoch: int, selection: Selection, optimizer_slots: int
) -> EpochCost:
    """Predict and measure what the selection in place costs."""
    starts = dict(zip((layer.name for layer in everything.layers), everything.starts, strict=True))
    flat = [starts[name] + channel for name, channels in selection.channels.items() for channel in channels]
    measured = prepared.training_bytes()
    state = optimizer_slots * measured["gradients"]
    return EpochCost(
        epoch=epoch,
        channels=selection.count,
        layers=sum(bool(channels) for channels in selection.channels.values()),
        predicted_saved_bytes=prepared.predict(selection).total,
        measured_saved_bytes=measured["saved"],
        predicted_total_bytes=everything.total(flat),
        measured_total_bytes=measured["total"] + state,
        budget_cost=costs.total(flat),
    )


def make_optimizer(config: FitConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a run, over one group whose parameters a new selection replaces."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.optimizer not in kinds:
        raise InputError(f"--optimizer {config.optimizer}: choose sgd, adam or adamw")
    return kinds[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)


def rank(
    config: FitConfig, *, data: ImageSet | None = None, model: nn.Module | None = None, head: str | None = None, train_steps: bool = True
) -> Ranking:
    """Score the layers by their gradients while fine-tuning everything for `config.rank_steps` steps (TraDy's offline phase).

    Args:
        config: model, data and training settings.
        data, model, head: given if they exist already; the model is changed.
        train_steps: False takes the gradients at the starting point only.
    """
    data = load_data(config) if data is None else data
    if model is None:
        model, head = models.build(config.model, classes=len(data.classes), size=data.shape[1], weights=config.weights, seed=config.seed)
        _calibrate(config, model, data)
    loader = data.loader("train", config.batch_size, shuffle=True, seed=config.seed)
    example = next(iter(data.loader("train", min(config.batch_size, len(data.train_y)))))[0]
    prepared = SelectiveModel(model, example, head=head, smooth_bits=config.smooth_bits)
    prepared.apply(Selection.everything(INPUT, prepared.layers))
    optimizer = make_optimizer(config, prepared.parameters())
    sums: dict[str, Any] = {}
    done = 0
    while done < config.rank_steps:
        for inputs, labels in loader:
            optimizer.zero_grad()
            with sound_kernels(model):
                torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            for name, norms in prepared.gradient_norms().items():
                sums[name] = sums.get(name, 0.0) + norms.double().numpy()
            if train_steps:
                optimizer.step()
            done += 1
            if done >= config.rank_steps:
                break
    mean: Norms = {name: total / max(done, 1) for name, total in sums.items()}
    ranking = Ranking.of(mean, prepared.layers, model=config.model, data=data.name, steps=done, seed=config.seed)
    prepared.restore()
    return ranking
