"""Stage 2: a network. Searched under the device's budget (moofa), or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from edge_shared.artifacts import load_artifact, save_model
from edge_shared.devices import load as load_device
from edge_shared.errors import CheckFailed, InputError
from edge_shared.files import Run, write_json
from edge_shared.training import TrainConfig, fit
from torch import nn

from pi_adapt import material
from pi_adapt.config import PI_SPACE, AdaptConfig
from pi_adapt.material import Material
from pi_adapt.measure import accuracy, cost

SEARCH_EPOCHS, OWN_EPOCHS, BATCH = 12, 4, 64


def run(config: AdaptConfig, folders: dict[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Leave the network in ``model``.

    Raises:
        InputError: a model that is unknown or cannot take the images.
        CheckFailed: no network of the space, or not the given one, is within the budget.
    """
    work = material.load(folders["data"])
    folder, images = folders["pick"], work.images
    example = next(iter(images.loader("val", 2)))[0]
    if config.model is None:
        model, found = _searched(config, work, folder, say)
    else:
        model, found = _given(config, work, folder, say)
    saved = save_model(folder / "model", model, example, classes=images.classes, normalisation=_normalisation(work))
    return {
        **found,
        "accuracy_after": accuracy(model, images),
        "cost": asdict(cost(model, example)),
        "onnx_max_abs_error": saved["onnx_max_abs_error"],
    }


def pi_space(size: int, channels: int, classes: int) -> Any:
    """A small space whose networks shorten well: 3x3 kernels and expansions of 4 and more, so that a block without its inner
    activations, merged into one 3x3 convolution, takes fewer multiply-accumulates than the three layers that it was."""
    from moofa.space import Space, Stage, Stem

    if size <= 16:
        stem, first = Stem(out=12, stride=1), 1
    else:
        stem, first = Stem(out=12, stride=2), 2 if size > 40 else 1
    widths = (12, 24) if size <= 16 else (12, 24, 32)
    stages = tuple(
        Stage(width=width, stride=2 if index else first, depths=(1, 2), kernels=(3,), expands=(4, 5, 6), activation="relu")
        for index, width in enumerate(widths)
    )
    return Space(name="pi", in_channels=channels, classes=classes, resolutions=(size,), stem=stem, activation="relu", stages=stages)


def _searched(config: AdaptConfig, work: Material, folder: Path, say: Callable[[str], None]) -> tuple[nn.Module, dict[str, Any]]:
    from moofa.budget import Budget, Target, device_budget
    from moofa.costs import CostTable
    from moofa.measure import Gauge
    from moofa.search import require_feasible, search
    from moofa.space import load_space
    from moofa.supernet import extract
    from moofa.workflow import Trained, fit_space, train

    images = work.images
    size = images.shape[1]
    if config.space == PI_SPACE:
        space = pi_space(size, images.channels, len(images.classes))
    else:
        space = load_space(config.space)
        if space.resolutions != (size,):
            space = space.model_copy(update={"resolutions": (size,)})
    space = fit_space(space, images)
    device = load_device(config.device)
    target = Target(device.memory_model, 32, device)
    budget = device_budget(target)
    if config.budget is not None:
        budget = Budget(ram=config.budget, flash=budget.flash)
    settings = {
        "data": str(work.path), "limit": None, "seed": config.seed, "schedule": "sandwich", "source": "once-for-all",
        "epochs": SEARCH_EPOCHS if config.epochs is None else config.epochs, "batch_size": BATCH, "lr": 0.1,
        "networks": config.networks, "accelerator": "cpu",
    }  # fmt: skip
    require_feasible(CostTable(space, target), budget)  # before anything is trained
    supernet_folder = folder / "supernet"
    supernet_folder.mkdir(exist_ok=True)
    write_json(supernet_folder / "config.json", settings)
    train(Run(supernet_folder, supernet_folder, settings, resumed=True), space)
    trained = Trained.load(supernet_folder)
    result = search(CostTable(trained.space, target), trained.predictor, budget, seed=config.seed)
    choice = result.found.choice
    say(
        f"picked {choice.to_json()['stages']} of {trained.space.size:,} networks: {result.found.costs['ram']:,.0f} bytes of RAM, model {target.memory_model}"
    )
    supernet = trained.supernet()
    Gauge.of(trained.images(), "val").accuracy(supernet, choice)
    model = extract(supernet, choice)
    before = accuracy(model, images)
    _train(model, work, config, config.finetune_epochs, 0.02, folder / "finetune.safetensors", "fine-tuning the network")
    return model, {
        "by": "moofa",
        "accuracy_before": before,
        "choice": choice.to_json(),
        "network": trained.space.config(choice).model_dump(mode="json"),
        "networks": trained.space.size,
        "predicted_accuracy": result.found.score,
        "budget_bytes": budget.ram,
        "memory_model": target.memory_model,
        "ram_bytes": result.found.costs["ram"],
        "utilisation": result.utilisation,
    }


def _given(config: AdaptConfig, work: Material, folder: Path, say: Callable[[str], None]) -> tuple[nn.Module, dict[str, Any]]:
    from ondevice_train.models import build

    images = work.images
    assert config.model is not None
    is_folder = Path(config.model).is_dir()
    artifact = load_artifact(config.model) if is_folder else None
    fits = artifact is not None and len(artifact.classes) == len(images.classes)
    if artifact is not None and fits:
        model: nn.Module = artifact.model
    else:
        if images.channels != 3:
            raise InputError(f"--model {config.model} needs its classifier replaced, which works for models of colour images only")
        model, _ = build(config.model, classes=len(images.classes), size=images.shape[1], weights=config.weights, seed=config.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    example = next(iter(images.loader("val", 2)))[0]
    needed, budget = _fits(model, example, config)
    before = accuracy(model, images)
    epochs = config.epochs if config.epochs is not None else 0 if fits and not work.planted else OWN_EPOCHS
    say(f"{config.model}: {before:.4f} on the test part as it came" + (f"; {epochs} epochs on the data" if epochs else ""))
    _train(model, work, config, epochs, 0.02, folder / "finetune.safetensors", "training the model on the data")
    return model, {"by": config.model, "accuracy_before": before, "epochs": epochs, "budget_bytes": budget, "ram_bytes": needed}


def _fits(model: nn.Module, example: torch.Tensor, config: AdaptConfig) -> tuple[int, int]:
    """Bytes of RAM that the user's model needs, live activations and (where the device keeps them there) weights, and the budget.

    Raises:
        CheckFailed: if it needs more RAM or flash than there is.
    """
    device, costs = load_device(config.device), cost(model, example)
    weights = 4 * costs.parameters
    needed = costs.peak_bytes + (weights if device.weight_placement == "ram" else 0)
    budget = config.budget or device.ram_budget
    if needed > budget:
        raise CheckFailed(f"--model {config.model} needs {needed:,} bytes of RAM on {device.name}, the budget is {budget:,}")
    if device.flash_budget is not None and weights > device.flash_budget:
        raise CheckFailed(
            f"--model {config.model} needs {weights:,} bytes of flash on {device.name}, the budget is {device.flash_budget:,}"
        )
    return needed, budget


def _train(model: nn.Module, work: Material, config: AdaptConfig, epochs: int, lr: float, checkpoint: Path, what: str) -> None:
    if epochs:
        settings = TrainConfig(epochs=epochs, batch_size=BATCH, lr=lr, seed=config.seed)
        torch.manual_seed(config.seed)
        images = work.images
        fit(
            model, images.loader("train", BATCH, shuffle=True, seed=config.seed), images.loader("val", 256), settings,
            checkpoint=checkpoint, device="cpu", description=what,
        )  # fmt: skip
    model.eval()


def _normalisation(work: Material) -> dict[str, Any]:
    return {"mean": work.images.mean, "std": work.images.std}
