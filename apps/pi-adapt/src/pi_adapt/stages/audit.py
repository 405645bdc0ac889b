"""Stage 4: trust. Audits by group; where a shortcut was planted, cuts the weights that carry it (fairnet, FFW)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.artifacts import load_model, save_model

from pi_adapt import material
from pi_adapt.config import AdaptConfig
from pi_adapt.measure import cost


def run(config: AdaptConfig, folders: dict[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Leave the network in ``model``, without the weights that carry the shortcut where there was one to cut."""
    from fairnet.score import audit_of, score

    work = material.load(folders["data"])
    images, folder = work.images, folders["audit"]
    data = work.biased()
    model = load_model(folders["shorten"] / "model")
    before, predictions = score(model, data)
    audit_before = audit_of(predictions, data, config.seed)
    operation: dict[str, Any] = {}
    if work.planted:
        model, operation = _cut(model, data, config)
        say(
            f"the mask keeps {operation['kept_share']:.0%} of the weights; held-out balanced accuracy "
            f"{operation['open_accuracy']:.4f} before, {operation['mask_accuracy']:.4f} with it"
        )
    after, predictions = score(model, data)
    example = next(iter(images.loader("val", 2)))[0]
    normalisation = {"mean": images.mean, "std": images.std}
    saved = save_model(folder / "model", model.eval(), example, classes=images.classes, normalisation=normalisation)
    return {
        "by": "fairnet",
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "score_before": asdict(before),
        "score_after": asdict(after),
        "audit_before": _short(audit_before),
        "audit_after": _short(audit_of(predictions, data, config.seed)),
        "mask": operation or None,
        "cost": asdict(cost(model, example)),
        "onnx_max_abs_error": saved["onnx_max_abs_error"],
    }


def _cut(model: Any, data: Any, config: AdaptConfig) -> tuple[Any, dict[str, Any]]:
    """FFW on the labelled training images and the balanced part, every (class, shortcut) share weighted as if they were independent.

    gamma is 0: with a few hundred images the estimated information of ten lights is mostly bias, and the weighted loss already
    pays for every weight that follows the light.
    """
    from fairnet.data.parts import Part
    from fairnet.geometry import balanced_grid_weights
    from fairnet.methods._train import Settings
    from fairnet.methods.ffw import FfwConfig, cut, surgery

    parts = (data.train, data.balanced)
    joint = Part(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "b")))
    weights = balanced_grid_weights(joint.b == joint.y, joint.y, len(data.classes))
    settings = FfwConfig(granularity="weights", gamma=0.0, epochs=config.gate_epochs)
    every = np.ones(len(joint), dtype=bool)
    learned = surgery(
        copy.deepcopy(model), data, joint, [(joint.b, len(data.groups))], weights, every, Settings(seed=config.seed), settings
    )
    outcome = cut(model, learned.masks, "weights", learned.details)
    details = {key: outcome.details[key] for key in ("kept_share", "open_accuracy", "mask_accuracy")}
    return outcome.model, {**details, "epochs": len(learned.details["history"])}


def _short(audit: Any) -> dict[str, Any]:
    return {
        "accuracy": asdict(audit.accuracy),
        "worst_group": asdict(audit.worst_group),
        "accuracy_gap": asdict(audit.accuracy_gap),
        "equalized_odds_difference": asdict(audit.equalized_odds_difference),
        "groups": [{"group": g.group, "n": g.n, "accuracy": asdict(g.accuracy)} for g in audit.groups],
    }
