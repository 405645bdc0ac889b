"""Stage 6: files for the Pi. Float and int8 ONNX, held against torch; every stage's file timed in turn on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.artifacts import load_model, quantize_onnx
from edge_shared.errors import CheckFailed

from pi_adapt import material
from pi_adapt.config import AdaptConfig
from pi_adapt.measure import accuracy, cost

TOLERANCE = 1e-4
"""Of the largest output: between ONNX Runtime and torch."""


def run(config: AdaptConfig, folders: dict[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Leave ``model`` with model.onnx and model.int8.onnx.

    Raises:
        CheckFailed: if ONNX Runtime and torch disagree on the test images.
    """
    from depthprune.latency import onnx_runner, session

    work = material.load(folders["data"])
    folder, personal = folders["export"], work.personal
    shutil.copytree(folders["personalise"] / "model", folder / "model", dirs_exist_ok=True)
    files = {"float32": folder / "model/model.onnx", "int8": folder / "model/model.int8.onnx"}
    typical = np.concatenate([x.numpy() for x, _ in personal.loader("train", 256)])[:256]
    quantised = quantize_onnx(files["float32"], typical, files["int8"])
    model = load_model(folder / "model")
    batches = [(x.numpy(), y.numpy()) for x, y in personal.loader("test", 256)]
    x, y = np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])
    logits = {}
    for name, file in files.items():
        runtime = session(file)
        logits[name] = runtime.run(None, {runtime.get_inputs()[0].name: x})[0]
    import torch

    with torch.inference_mode():
        expected = model(torch.tensor(x)).numpy()
    error, scale = float(np.abs(logits["float32"] - expected).max()), float(np.abs(expected).max())
    if not error <= TOLERANCE * scale:
        raise CheckFailed(f"model.onnx differs from torch by {error:.3g} on test images, where outputs reach {scale:.3g}")
    timed = {name: folders[name] / "model/model.onnx" for name in ("pick", "shorten", "audit", "personalise")} | {"int8": files["int8"]}
    runners = {name: onnx_runner(file, x[:1]) for name, file in timed.items()}
    right = {name: float((values.argmax(1) == y).mean()) for name, values in logits.items()}
    say(f"on the new domain: float32 {right['float32']:.4f}, int8 {right['int8']:.4f}")
    return {
        "by": "edge_shared",
        "accuracy_before": right["float32"],
        "accuracy_after": right["int8"],
        "accuracy_torch": accuracy(model, personal),
        "onnx_max_abs_error": error,
        "output_scale": scale,
        "bytes": {"float32": quantised["float_bytes"], "int8": quantised["bytes"]},
        "int8_agreement": quantised["agreement"],
        "cost": asdict(cost(model, torch.tensor(x[:1]))),
        "latency_ms": _latency(runners, config.repeats),
    }


def _latency(runners: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds with its 95 % interval, all files in turn: batch 1, one thread, ONNX Runtime, this machine."""
    from depthprune.latency import interleaved, timing

    return {name: asdict(timing(values)) for name, values in interleaved(runners, repeats).items()}
