"""Stage 5: learn on the device. Fine-tunes on the new domain inside a byte budget (ondevice-train); predicted and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_shared.artifacts import load_model, save_model
from edge_shared.memory.measure import training_bytes

from pi_adapt import material
from pi_adapt.config import AdaptConfig
from pi_adapt.measure import accuracy, cost

BATCH = 8


def run(config: AdaptConfig, folders: dict[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Leave the personal network in ``model``.

    Raises:
        CheckFailed: a training budget that cannot be met.
    """
    from ondevice_train.fit import FitConfig
    from ondevice_train.fit import run as fit

    work = material.load(folders["data"])
    folder, personal = folders["personalise"], work.personal
    source = folders["audit"] / "model"
    model = load_model(source)
    before, home_before = accuracy(model, personal), accuracy(model, work.images)
    example = next(iter(personal.loader("train", BATCH)))[0]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    everything = training_bytes(model.train(), example).bytes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = FitConfig(
        model=str(source), data=personal.name, method=config.method, budget=config.training_budget, epochs=config.personal_epochs,
        batch_size=BATCH, lr=config.personal_lr, biases=-1, rank_steps=10, seed=config.seed,
    )  # fmt: skip
    result = fit(settings, folder=folder, data=personal, verbose=False, onnx=False)
    tuned = load_model(folder / "model")
    after = accuracy(tuned, personal)
    say(f"{personal.name}: {before:.4f} before, {after:.4f} after {config.personal_epochs} epochs of {config.method}")
    normalisation = {"mean": personal.mean, "std": personal.std}
    saved = save_model(folder / "model", tuned, example[:2], classes=personal.classes, normalisation=normalisation)
    keep = (
        "predicted_saved_bytes",
        "measured_saved_bytes",
        "predicted_total_bytes",
        "measured_total_bytes",
        "trained_parameters",
        "budget",
    )
    return {
        "by": f"ondevice-train ({config.method})",
        "accuracy_before": before,
        "accuracy_after": after,
        "home_before": home_before,
        "home_after": accuracy(tuned, work.images),
        "training": {name: result.cost.get(name) for name in keep},
        "plain_total_bytes": everything + 4 * parameters,
        "images": len(personal.train_y),
        "selections": [asdict(row) for row in result.selections],
        "cost": asdict(cost(tuned, example)),
        "onnx_max_abs_error": saved["onnx_max_abs_error"],
    }
