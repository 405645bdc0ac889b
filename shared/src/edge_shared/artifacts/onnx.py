"""ONNX, held against torch by ONNX Runtime, and quantised to 8 bits."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_shared.artifacts.evaluation import on_cpu_in_eval, one_output
from edge_shared.errors import CheckFailed, InputError, require
from edge_shared.files import atomic_path

TOLERANCE = 1e-4


def export_onnx(model: nn.Module, example: torch.Tensor, path: str | Path, *, tolerance: float = TOLERANCE) -> float:
    """Export `model` in evaluation mode to ONNX with a free batch size, and hold ONNX Runtime's outputs against torch's.

    Args:
        model: one tensor in, one tensor out.
        example: an input, batch first; any batch size.
        path: the file; replaced only by a verified one.
        tolerance: largest difference allowed, relative to the largest output.

    Returns:
        The largest absolute difference found, over batches of one and of three.

    Raises:
        CheckFailed: if the outputs differ by more than the tolerance.
        InputError: if the model cannot be exported.
    """
    require("onnxruntime", "edge-shared[torch]")
    require("onnxscript", "edge-shared[torch]")
    one = example.detach().cpu()[:1]
    # Two samples to trace with: a batch of one would be taken for a constant.
    pair = torch.cat([one, one + 0.01 * torch.ones_like(one) if one.is_floating_point() else one])
    with on_cpu_in_eval(model), atomic_path(path) as temporary:
        one_output(model, one)
        with _quiet():
            _export(model, pair, temporary)
        error, largest = _difference(model, temporary, (one, torch.cat([pair, one])))
        if not error <= tolerance * largest:
            raise CheckFailed(
                f"{path}: ONNX Runtime differs from torch by {error:.3g} where outputs reach {largest:.3g} (tolerance {tolerance:g})"
            )
    return error


def quantize_onnx(path: str | Path, calibration: NDArray[np.float32] | Iterable[NDArray[np.float32]], out: str | Path) -> dict[str, Any]:
    """Quantise an ONNX model to int8 weights (per channel) and int8 activations, by ONNX Runtime's static quantisation.

    Weights take 7 of the 8 bits: on x86 without VNNI, ONNX Runtime adds pairs of products in 16 bits, where full ones saturate.

    Args:
        path: a float32 model.
        calibration: inputs that are typical: an array (n, ...) or batches of it; they set the ranges of activations.
        out: the quantised model.

    Returns:
        ``bytes``, ``float_bytes``, ``max_abs_error`` and ``agreement`` (share of equal argmax) against the float model on the calibration inputs.

    Raises:
        InputError: no calibration data, data that is not finite, or a model that cannot be read.
    """
    require("onnxruntime", "edge-shared[torch]")
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = [np.asarray(calibration)] if isinstance(calibration, np.ndarray) else [np.asarray(batch) for batch in calibration]
    samples = np.concatenate(batches).astype(np.float32) if batches else np.empty(0)
    if not len(samples) or not np.isfinite(samples).all():
        raise InputError("calibration data is empty or not finite; give some typical inputs")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.items = ({name: part} for part in np.array_split(samples, max(len(samples) // 32, 1)))

        def get_next(self) -> Any:
            return next(self.items, None)

    path = Path(path)
    with tempfile.TemporaryDirectory() as folder, atomic_path(out) as temporary:
        prepared = Path(folder) / "prepared.onnx"
        try:
            with _quiet():
                name = _session(path).get_inputs()[0].name
                quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
                _pool_in_integers(prepared)
                quantize_static(
                    str(prepared), str(temporary), Reader(name),
                    quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=True,
                    reduce_range=True,
                )  # fmt: skip
        except (OSError, RuntimeError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.Fail) as error:
            raise InputError(f"cannot quantise {path}: {' '.join(str(error).split())[:160]}") from error
        exact, rough = (_session(file).run(None, {name: samples})[0] for file in (path, temporary))
        size = temporary.stat().st_size
    agreement = float((exact.reshape(len(exact), -1).argmax(1) == rough.reshape(len(rough), -1).argmax(1)).mean())
    return {
        "bytes": size,
        "float_bytes": path.stat().st_size,
        "max_abs_error": float(np.abs(exact - rough).max()),
        "agreement": agreement,
    }


def _pool_in_integers(path: Path) -> None:
    """Write means over all pixels as global average pools, which ONNX Runtime sums in integers.

    A mean in floats depends on the order of its sum, which differs between processors, and decides ties of the rounding behind it.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    nodes = []
    for node in graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        if axes is None or ranks.get(node.input[0]) != 4 or {int(axis) % 4 for axis in axes.ravel()} != {2, 3}:
            nodes.append(node)
        elif any(attribute.name == "keepdims" and attribute.i == 0 for attribute in node.attribute):
            pooled = f"{node.output[0]}_pooled"
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
        else:
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name))
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.save(model, path)


def _export(model: nn.Module, pair: torch.Tensor, path: Path) -> None:
    try:
        with _plain_activations(model):
            torch.onnx.export(
                model, (pair,), str(path), dynamo=True, external_data=False, verbose=False, input_names=["input"], output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )  # fmt: skip
    except OSError:
        raise
    except Exception as error:  # the exporter raises its own and others' kinds
        raise InputError(f"cannot export {type(model).__name__} to ONNX: {' '.join(str(error).split())[:240]}") from error


@contextlib.contextmanager
def _plain_activations(model: nn.Module) -> Iterator[None]:
    """Activations out of place and ReLU6 as a clamp inside the block: the same graph, exported in half the time.

    The exporter takes hardtanh, and whatever works in place, apart in Python with a symbolic batch size.
    """
    in_place = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    clamps = [module for module in model.modules() if type(module) in (nn.ReLU6, nn.Hardtanh)]
    for module in in_place:
        module.inplace = False  # type: ignore[assignment]
    for module in clamps:
        module.forward = functools.partial(torch.clamp, min=module.min_val, max=module.max_val)  # type: ignore[method-assign, arg-type]
    try:
        yield
    finally:
        for module in in_place:
            module.inplace = True  # type: ignore[assignment]
        for module in clamps:
            del module.forward


def _difference(model: nn.Module, path: Path, inputs: Iterable[torch.Tensor]) -> tuple[float, float]:
    session = _session(path)
    error = largest = 0.0
    for batch in inputs:
        expected = one_output(model, batch).numpy()
        got = session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0]
        if got.shape != expected.shape:
            raise CheckFailed(f"ONNX Runtime gives shape {got.shape}, torch {expected.shape}")
        error = max(error, float(np.abs(got - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return error, largest


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot read {path}: {' '.join(str(error).split())[:160]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser print and warn about themselves; none of it is the user's to act on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
