"""The classifier as ONNX: feature vector in decibels in, scores and class out (needs onnx; checked by ONNX Runtime if it is there)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError, require
from edge_shared.files import write_bytes, write_json

from tinyeeg.deployed import Deployed, Linear, Mlp


def export_onnx(deployed: Deployed, folder: str | Path) -> tuple[str, ...]:
    """Write ``classifier.onnx`` and ``chain.json``; for a Raspberry Pi, where `tinyeeg.stream` computes the features.

    Inputs ``features`` (N, F) float32 and ``center`` (F,) float32 (the person's mean feature vector); outputs ``scores`` (N, K) and
    ``state`` (N,) int64.

    Raises:
        InputError: for trees, which have no plain ONNX operators; or if ONNX Runtime disagrees with the model.
    """
    require("onnx", "tinyeeg[onnx]")
    from onnx import TensorProto, checker, helper, numpy_helper

    model = deployed.model
    if not isinstance(model, Linear | Mlp):
        raise InputError("--target onnx takes linear models and the MLP; export forests with --target c99")
    constants = {"inverse": 1 / deployed.scale, "low": np.array(-deployed.clip), "high": np.array(deployed.clip)}
    nodes = [
        helper.make_node("Sub", ["features", "center"], ["moved"]),
        helper.make_node("Mul", ["moved", "inverse"], ["wide"]),
        helper.make_node("Clip", ["wide", "low", "high"], ["z"]),
    ]
    if isinstance(model, Linear):
        constants |= {"weights": model.weights, "bias": model.bias}
        nodes.append(helper.make_node("Gemm", ["z", "weights", "bias"], ["scores"], transB=1))
    else:
        constants |= {"w1": model.w1, "b1": model.b1, "w2": model.w2, "b2": model.b2}
        nodes += [
            helper.make_node("Gemm", ["z", "w1", "b1"], ["before"], transB=1),
            helper.make_node("Relu", ["before"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "w2", "b2"], ["scores"], transB=1),
        ]
    nodes.append(helper.make_node("ArgMax", ["scores"], ["state"], axis=1, keepdims=0))
    features, classes = deployed.chain.n_features, len(deployed.classes)
    graph = helper.make_graph(
        nodes,
        "tinyeeg",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", features]),
            helper.make_tensor_value_info("center", TensorProto.FLOAT, [features]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("state", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in constants.items()],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(network, {"classes": json.dumps(deployed.classes), "features": json.dumps(deployed.chain.feature_names())})
    checker.check_model(network)
    _verify(network.SerializeToString(), deployed)
    folder = Path(folder)
    write_bytes(folder / "classifier.onnx", network.SerializeToString())
    write_json(folder / "chain.json", {"chain": deployed.chain.to_json(), "center": deployed.center, "classes": deployed.classes})
    return ("chain.json", "classifier.onnx")


def _verify(content: bytes, deployed: Deployed) -> None:
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        return
    import onnxruntime

    rng = np.random.default_rng(0)
    X = (deployed.center + 3 * deployed.scale * rng.normal(size=(64, deployed.chain.n_features))).astype(np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    scores, _ = session.run(None, {"features": X, "center": deployed.center.astype(np.float32)})
    wanted = deployed.scores(X.astype(np.float64))
    error = float(np.abs(scores - wanted).max() / max(1.0, np.abs(wanted).max()))
    if error > 1e-4:
        raise InputError(f"ONNX Runtime differs from the model by {error:.2g}; please report it")
