"""The runs behind the commands: train a supernet with its predictor, and turn one found network into files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_shared.cli import say
from edge_shared.errors import InputError
from edge_shared.files import Run, read_json, write_json

from moofa.budget import Target
from moofa.costs import CostTable
from moofa.predictor import Predictor
from moofa.space import Choice, Space

if TYPE_CHECKING:
    from edge_shared.data.vision import ImageSet

    from moofa.supernet import Supernet


@dataclass(frozen=True)
class Trained:
    """A folder that `moofa train` wrote.

    Attributes:
        folder: the folder.
        space: its space.
        settings: options of the run (data, seed, ...).
        predictor: predicted accuracy of gene rows.
    """

    folder: Path
    space: Space
    settings: dict[str, Any]
    predictor: Predictor

    @staticmethod
    def load(folder: Path) -> Trained:
        """Open the folder; no torch is needed.

        Raises:
            InputError: if `moofa train` has not finished there.
        """
        if not (folder / "space.json").is_file():
            raise InputError(f"--model {folder} is no supernet; make one with `moofa train --out {folder}`")
        space = Space.from_json(read_json(folder / "space.json", "space"), str(folder / "space.json"))
        return Trained(folder, space, read_json(folder / "config.json", "settings"), Predictor.load(folder, space))

    def supernet(self) -> Supernet:
        """The supernet with its trained weights.

        Raises:
            InputError: if the weights are damaged or of another space.
        """
        from edge_shared.artifacts import load_weights

        from moofa.supernet import Supernet

        supernet = Supernet(self.space)
        try:
            supernet.load_state_dict(load_weights(self.folder / "supernet.safetensors"))
        except RuntimeError as error:
            raise InputError(f"{self.folder / 'supernet.safetensors'} is of another space: {' '.join(str(error).split())[:120]}") from error
        return supernet.eval()

    def images(self, data: str | None = None) -> ImageSet:
        """The data that the supernet was trained on, from `data` or where it was found then."""
        return load_data(data or self.settings["data"], self.space, self.settings.get("limit"), self.settings["seed"])


def load_data(data: str, space: Space, limit: int | None, seed: int) -> ImageSet:
    """Images at the largest resolution of the space."""
    from edge_shared.data.vision import load_images

    return load_images(data, size=space.resolutions[-1], limit=limit, seed=seed)


def fit_space(space: Space, images: ImageSet) -> Space:
    """The space with the channels and classes of the data."""
    return space.model_copy(update={"in_channels": images.channels, "classes": max(len(images.classes), 2)})


def train(run: Run, space: Space) -> dict[str, Any]:
    """Train a supernet, measure networks of it on held-out training images, fit the predictor; resumable at every point.

    Args:
        run: the folder; its `config` holds data, limit, seed, schedule, source, epochs, batch_size, lr, networks and accelerator.
        space: the space; channels and classes are taken from the data.

    Returns:
        ``metrics`` and ``cost`` for result.json, and the data set's description.
    """
    import time

    import safetensors.torch
    import torch
    from edge_shared.files import write_bytes

    from moofa.measure import Gauge, label, sample_balanced
    from moofa.predictor import PredictorConfig, fit_predictor
    from moofa.supernet import Supernet
    from moofa.training import SupernetConfig, train_supernet

    settings = run.config
    seed = settings["seed"]
    images = load_data(settings["data"], space, settings["limit"], seed)
    space = fit_space(space, images)
    write_json(run.path / "space.json", space)
    config = SupernetConfig(**{name: settings[name] for name in ("schedule", "source", "epochs", "batch_size", "lr", "seed")})
    torch.manual_seed(seed)
    supernet = Supernet(space)
    say(
        f"space {space.name}: {space.size:.3g} networks; {len(images.train_y):,} training images; {config.schedule}, {config.epochs} epochs"
    )
    started = time.perf_counter()
    gauge = Gauge.of(images, "val")
    loader = images.loader("train", config.batch_size, shuffle=True, seed=seed)
    watch = Gauge.of(images, "val", limit=1000)
    histories = train_supernet(supernet, loader, config, run.path, validate=watch.validate, device=settings["accelerator"])
    trained = time.perf_counter()
    write_bytes(run.path / "supernet.safetensors", safetensors.torch.save(dict(supernet.state_dict())))

    table = CostTable(space, Target("D", 8))
    rows = sample_balanced(table, settings["networks"], seed)
    labels_file = run.path / "labels.json"
    known = read_json(labels_file, "labels") if labels_file.is_file() else {}
    accuracies = label(supernet, rows, gauge, known, lambda values: write_json(labels_file, values))
    predictor, quality = fit_predictor(space, rows, accuracies, PredictorConfig(seed=seed))
    predictor.save(run.path, quality)
    for file in run.path.glob("phase-*"):
        file.unlink()
    last = {name: history.epochs[-1] for name, history in histories.items() if history.epochs}
    metrics = {
        "largest_val_accuracy": gauge.accuracy(supernet, space.largest()),
        "smallest_val_accuracy": gauge.accuracy(supernet, space.smallest()),
        "predictor": asdict(quality),
        "phases": last,
        "networks_measured": len(rows),
    }
    cost = {
        "training_seconds": trained - started,
        "measuring_seconds": time.perf_counter() - trained,
        "steps": sum(history.steps for history in histories.values()),
    }
    counts = {"train": len(images.train_y), "val": len(images.val_y), "test": len(images.test_y)}
    data = {"name": images.name, "fingerprint": images.fingerprint, "synthetic": images.synthetic, "counts": counts}
    return {"metrics": metrics, "cost": cost, "data": data, "histories": {name: history.epochs for name, history in histories.items()}}


def specialise(
    trained: Trained, choice: Choice, out: Path, *, epochs: int = 0, lr: float = 0.01, data: str | None = None, target: Target | None = None
) -> dict[str, Any]:
    """Extract a network, fine-tune it, and write it as safetensors + recipe, float ONNX and int8 ONNX.

    Called again with the same arguments after an interruption, the fine-tuning goes on where it was.

    The test part is used here, once, for the figures that are reported.

    Args:
        trained: the supernet's folder.
        choice: the network.
        out: folder to write ``model/`` into.
        epochs: of fine-tuning on the training part; 0 keeps the supernet's weights.
        lr: of fine-tuning.
        data: where the images are now, if they moved.
        target: for the profile.

    Returns:
        ``metrics``, ``cost`` and ``artifacts``.

    Raises:
        CheckFailed: if an exported file gives other outputs than the module, or if the live bytes that were measured differ from
            the memory model's prediction.
    """
    import numpy as np
    import torch
    from edge_shared.artifacts import quantize_onnx, save_model
    from edge_shared.errors import CheckFailed
    from edge_shared.memory import peak
    from edge_shared.memory.measure import live_bytes
    from edge_shared.trace import trace
    from edge_shared.training import TrainConfig, evaluate, fit

    from moofa.measure import Gauge
    from moofa.profile import profile
    from moofa.supernet import extract
    from moofa.supernet.network import resize

    images = trained.images(data)
    if images.channels != trained.space.in_channels or max(len(images.classes), 2) != trained.space.classes:
        raise InputError(
            f"--data {images.name} has {images.channels} channels and {len(images.classes)} classes; "
            f"the supernet has {trained.space.in_channels} and {trained.space.classes}"
        )
    seed = trained.settings["seed"]
    supernet = trained.supernet()
    gauge = Gauge.of(images, "val")
    shared_val = gauge.accuracy(supernet, choice)
    network = extract(supernet, choice)

    def resized(split: Any, shuffle: bool = False) -> list[Any] | Any:
        loader = images.loader(split, trained.settings["batch_size"], shuffle=shuffle, seed=seed)
        if images.train_x.shape[1] == choice.resolution:
            return loader
        return [(resize(x, choice.resolution), y) for x, y in loader]

    test = resized("test")
    before = evaluate(network, test)
    if epochs:
        config = TrainConfig(epochs=epochs, batch_size=trained.settings["batch_size"], lr=lr, weight_decay=3e-5, seed=seed)
        checkpoint = out / "fine-tuning.safetensors"
        fit(
            network,
            resized("train", shuffle=True),
            resized("val"),
            config,
            checkpoint=checkpoint,
            checkpoint_steps=200,
            device=trained.settings["accelerator"],
            description="fine-tuning",
        )
        network.eval()
    after = evaluate(network, test)
    example = torch.zeros(1, trained.space.in_channels, choice.resolution, choice.resolution)
    say("exporting")
    saved = save_model(
        out / "model",
        network,
        example,
        classes=images.classes,
        normalisation={"mean": images.mean, "std": images.std},
    )
    typical = torch.cat([resize(batch, choice.resolution) for batch in gauge.calibration]).numpy()[:256]
    quantised = quantize_onnx(out / "model" / "model.onnx", typical, out / "model" / "model.int8.onnx")
    test_x = np.concatenate([x.numpy() for x, _ in test])
    test_y = np.concatenate([y.numpy() for _, y in test])
    float_accuracy, int8_accuracy = (_onnx_accuracy(out / "model" / name, test_x, test_y) for name in ("model.onnx", "model.int8.onnx"))
    measured = live_bytes(network, example)
    predicted = peak(trace(network, example), "D").bytes
    if measured != predicted:
        raise CheckFailed(f"the network holds {measured:,} live bytes, memory model D predicts {predicted:,}; please report it")
    target = target or Target("D", 8)
    cost = profile(trained.space.config(choice), memory_model=target.memory_model, bits=target.bits, device=target.device)
    metrics = {
        "supernet_val_accuracy": shared_val,
        "test_accuracy_extracted": before["accuracy"],
        "test_accuracy": after["accuracy"],
        "test_accuracy_onnx": float_accuracy,
        "test_accuracy_int8": int8_accuracy,
        "onnx_max_abs_error": saved["onnx_max_abs_error"],
        "int8_agreement": quantised["agreement"],
        "test_images": len(test_y),
    }
    costs = {
        **{name: value for name, value in cost.to_json().items() if name != "layers"},
        "measured_live_bytes_float32": measured,
        "predicted_live_bytes_float32": predicted,
        "onnx_bytes": quantised["float_bytes"],
        "int8_onnx_bytes": quantised["bytes"],
    }
    artifacts = {
        "weights": "model/model.safetensors",
        "recipe": "model/recipe.json",
        "onnx": "model/model.onnx",
        "int8": "model/model.int8.onnx",
    }
    for file in out.glob("fine-tuning*"):
        file.unlink()
    counts = {"train": len(images.train_y), "val": len(images.val_y), "test": len(images.test_y)}
    info = {"name": images.name, "fingerprint": images.fingerprint, "synthetic": images.synthetic, "counts": counts}
    return {"metrics": metrics, "cost": costs, "artifacts": artifacts, "data": info}


def _onnx_accuracy(path: Path, images: Any, labels: Any) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for start in range(0, len(labels), 256):
        logits = session.run(None, {name: images[start : start + 256]})[0]
        right += int((logits.argmax(1) == labels[start : start + 256]).sum())
    return right / len(labels)
