"""Stage 3: fewer layers. Takes activations out while validation accuracy holds, and merges what became linear (depthprune)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from depthprune.finetune import Distill
from depthprune.merging import merge
from depthprune.methods import make
from depthprune.pruner import DepthPruner, accuracy_of
from edge_shared.artifacts import load_model, save_model
from edge_shared.errors import InputError
from edge_shared.training import TrainConfig

from pi_adapt import material
from pi_adapt.config import AdaptConfig
from pi_adapt.measure import accuracy, cost

BATCH, ROUNDS, MAX_ROUNDS = 64, 3, 8


def run(config: AdaptConfig, folders: dict[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Leave the shorter network in ``model``. A network that has nothing to merge goes on as it is, and the stage says so."""
    work = material.load(folders["data"])
    images, folder = work.images, folders["shorten"]
    dense = load_model(folders["pick"] / "model")
    for parameter in dense.parameters():
        parameter.requires_grad_(True)
    example = next(iter(images.loader("val", 2)))[0]
    before = accuracy(dense, images)
    val = list(images.loader("val", 256))
    torch.manual_seed(config.seed)
    refused, rounds, removed, certificates = None, [], [], []
    model: Any = dense
    try:
        pruner = DepthPruner(
            dense,
            example[:1],
            make("easier", tolerance=config.tolerance),
            calibration=list(images.loader("train", 256)),
            held_out=val,
            evaluate=accuracy_of(val),
            finetune=Distill(
                dense,
                images.loader("train", BATCH, shuffle=True, seed=config.seed),
                TrainConfig(epochs=config.finetune_epochs, batch_size=BATCH, lr=0.02, seed=config.seed),
                checkpoints=folder / "checkpoints",
                device="cpu",
            ),
            max_rounds=MAX_ROUNDS,
            say=say,
        )
        pruner.per_round = max(1, -(-len(pruner.state.open_sites()) // ROUNDS))
        outcome = pruner.run()
        # By MACs, not by measured time: the same network whenever the stage is run again.
        merging = merge(
            outcome.model, example, policy="macs", calibration=val[0][0], counts=outcome.counts, front_padded=outcome.front_padded
        )
        model, certificates = merging.model, merging.certificates
        rounds, removed = outcome.rounds, outcome.removals
    except InputError as error:
        refused = str(error)
        say(f"the network stays as it is: {refused}")
    normalisation = {"mean": images.mean, "std": images.std}
    saved = save_model(folder / "model", model, example, classes=images.classes, normalisation=normalisation)
    return {
        "by": "depthprune",
        "accuracy_before": before,
        "accuracy_after": accuracy(model, images),
        "removed": [removal.site for removal in removed],
        "rounds": [{"removed": r.removed, "accuracy": r.accuracy, "kept": r.kept} for r in rounds],
        "merges": [{"layers": c.layers, "mode": c.mode, "max_abs_random": c.max_abs_random} for c in certificates],
        "refused": refused,
        "cost": asdict(cost(model, example)),
        "onnx_max_abs_error": saved["onnx_max_abs_error"],
    }
