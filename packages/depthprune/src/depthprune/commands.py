"""What the commands `merge`, `bench` and `export` do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from edge_shared.artifacts import load_artifact, save_model
from edge_shared.artifacts import load_weights as read_weights
from edge_shared.devices import load as load_device
from edge_shared.errors import InputError
from edge_shared.files import open_run
from torch import Tensor, nn

from depthprune.capture import capture, sites
from depthprune.device import choose_policy, keep_what_fits
from depthprune.fold import prepare
from depthprune.guard import judge
from depthprune.latency import compare, onnx_runner, torch_runner, torch_threads
from depthprune.measure import size as measure_size
from depthprune.merging import merge
from depthprune.models import build, load_weights
from depthprune.prices import Backend
from depthprune.prices import make as make_price
from depthprune.surgery import remove


def _open(
    model: str, weights: str | None, shape: tuple[int, int, int] | None, classes: int, seed: int
) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    """A model in evaluation mode, the shape of one input, and what its folder says of classes and normalisation."""
    if Path(model).is_dir():
        artifact = load_artifact(model)
        return artifact.model, artifact.input_shape[1:], {"classes": artifact.classes, "normalisation": artifact.normalisation}
    if shape is None:
        raise InputError("--input-shape is needed for a model given by name, such as 3,224,224")
    network = build(model, shape, classes, seed)
    if weights is not None:
        load_weights(network, read_weights(weights), weights)
    return network.eval(), shape, {}


def parse_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read ``3,224,224``.

    Raises:
        InputError: if it is anything else.
    """
    if text is None:
        return None
    try:
        sides = tuple(int(part) for part in text.split(","))
    except ValueError:
        sides = ()
    if len(sides) != 3 or min(sides) < 1:
        raise InputError(f"--input-shape {text}: write channels,height,width, such as 3,224,224")
    return sides[0], sides[1], sides[2]


def merge_model(
    model: str,
    out: Path,
    *,
    weights: str | None = None,
    data: str | None = None,
    input_shape: str | None = None,
    linear: list[str] | None = None,
    policy: str = "macs",
    runtime: Backend = "onnxruntime",
    device: str | None = None,
    padding: Any = "auto",
    size: int | None = None,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Merge a model and write it, with certificates; returns `metrics`, `cost`, `artifacts`.

    By latency or memory the merges stand only if the whole network is faster or no larger with them.

    Raises:
        InputError: unknown names, unreadable files, or activations that the model does not have.
        CheckFailed: the network does not fit the device.
    """
    board = None if device is None else load_device(device)
    policy = choose_policy(policy, board)
    make_price(policy, runtime)
    shape, images, classes = parse_shape(input_shape), None, 10
    if data is not None:
        from edge_shared.data.vision import load_images

        images = load_images(data, size=size, limit=2048, seed=seed)
        shape, classes = images.shape, len(images.classes)
    network, sides, extra = _open(model, weights, shape, classes, seed)
    example = torch.randn(2, *sides, generator=torch.Generator().manual_seed(seed))
    calibration: Tensor | None = None
    if images is not None:
        if tuple(images.shape) != tuple(sides):
            raise InputError(f"--data {data} has images of {images.shape}, the model takes {tuple(sides)}; give --size {sides[-1]}")
        calibration = next(iter(images.loader("val", 128)))[0]
        example = calibration[:2]
    gm = capture(network, example)
    wanted = [site.name for site in sites(gm)] if linear == ["all"] else list(linear or [])
    for name in wanted:
        remove(gm, name)
    result = merge(gm, example, mode=padding, policy=policy, calibration=calibration, backend=runtime, threads=threads)
    refused = judge(result, example, policy, runtime, threads=threads)
    fits = None if board is None else keep_what_fits(result, example, board)
    run = open_run(
        out, None, {"command": "merge", "model": model, "linear": wanted, "policy": policy, "padding": padding, "runtime": runtime}
    )
    saved = save_model(run.path, result.model, example, **extra)
    metrics = {
        "certificates": [asdict(c) for c in result.certificates],
        "kept_apart": [asdict(kept) for kept in result.kept],
        "barriers": [asdict(barrier) for barrier in result.barriers],
        "made_linear": wanted,
        "merge_refused": refused,
        "device": None if fits is None else asdict(fits),
        "onnx_max_abs_error": saved["onnx_max_abs_error"],
    }
    before, after = measure_size(result.reference, example), measure_size(result.model, example)
    cost = {f"{name}_{when}": value for when, s in (("before", before), ("after", after)) for name, value in asdict(s).items()}
    from edge_shared.report import Result, write_result

    artifacts = {"model": "model.safetensors", "recipe": "recipe.json", "onnx": "model.onnx"}
    write_result(
        run.path, Result(command="depthprune merge", metrics=metrics, cost=cost, artifacts=artifacts, seed=seed, settings=run.config)
    )
    run.commit()
    return {"metrics": metrics, "cost": cost, "artifacts": artifacts, "out": str(out)}


def bench_models(before: Path, after: Path, *, repeats: int = 300, threads: int = 1, batch_size: int = 1) -> dict[str, Any]:
    """Time two models in turn; returns per runtime the timings and the ratio after/before with its 95 % interval.

    Raises:
        InputError: if one is no model, or the inputs differ.
    """
    files = []
    for path in (before, after):
        file = path / "model.onnx" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{path} is no model folder with a model.onnx and no .onnx file")
        files.append(file)
    shapes = [_input_shape(file, threads) for file in files]
    if shapes[0] != shapes[1]:
        raise InputError(f"the models take different inputs: {shapes[0]} and {shapes[1]}")
    x = torch.randn(batch_size, *shapes[0], generator=torch.Generator().manual_seed(0))
    runners = [onnx_runner(file, x.numpy(), threads) for file in files]
    latency = {"ONNX Runtime": asdict(compare(runners[0], runners[1], repeats))}
    if before.is_dir() and after.is_dir():
        models = [load_artifact(path).model for path in (before, after)]
        with torch_threads(threads):
            latency["torch"] = asdict(compare(torch_runner(models[0], x), torch_runner(models[1], x), repeats))
    return {"before": str(before), "after": str(after), "batch_size": batch_size, "threads": threads, "latency": latency}


def _input_shape(file: Path, threads: int) -> tuple[int, ...]:
    from depthprune.latency import session

    try:
        shape = session(file, threads).get_inputs()[0].shape
    except Exception as error:  # the runtime raises its own kinds
        raise InputError(f"{file} cannot be run by ONNX Runtime: {' '.join(str(error).split())[:160]}") from error
    if any(not isinstance(side, int) for side in shape[1:]):
        raise InputError(f"{file}: the input shape {shape} is not fixed beyond the batch")
    return tuple(shape[1:])


def export_model(
    model: str, out: Path, *, weights: str | None = None, input_shape: str | None = None, classes: int = 1000
) -> dict[str, Any]:
    """Write a model with norms folded as safetensors, recipe and ONNX; see `edge_shared.artifacts.save_model` for what comes back.

    Raises:
        InputError: a model that cannot be read or written down.
        CheckFailed: if ONNX Runtime gives other outputs.
    """
    network, sides, extra = _open(model, weights, parse_shape(input_shape), classes, 0)
    example = torch.randn(2, *sides, generator=torch.Generator().manual_seed(0))
    plain = prepare(capture(network, example), example)
    run = open_run(out, None, {"command": "export", "model": model})
    saved = save_model(run.path, plain, example, **extra)
    from edge_shared.report import Result, write_result

    cost = {"weights_bytes": saved["bytes"]}
    artifacts = {"model": "model.safetensors", "recipe": "recipe.json", "onnx": "model.onnx"}
    metrics = {"onnx_max_abs_error": saved["onnx_max_abs_error"]}
    write_result(run.path, Result(command="depthprune export", metrics=metrics, cost=cost, artifacts=artifacts, settings=run.config))
    run.commit()
    return {**saved, "out": str(out), "metrics": metrics, "cost": cost, "artifacts": artifacts}
