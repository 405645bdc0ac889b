"""A torch model as ONNX, float32 or int8, checked against torch on the flows it will see.

The network takes what the horizon holds, per flow of a window: ``source_mean`` and ``destination_mean`` (B, L, F), ``features`` (B, L, F), all scaled, and ``key_bias``
(B, 1, 1, L), the logarithm of how often the flow's host pair occurs in the window (0 if each flow is given by itself, -inf for padding). It returns ``score`` (B, L).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from edge_shared.errors import CheckFailed, InputError, require
from edge_shared.files import atomic_path
from torch import Tensor, nn

from edge_ids.flow.detector import Detector
from edge_ids.flow.flow_model import FlowModel


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the file.
        bytes: its size.
        int8: whether weights are 8-bit integers.
        max_relative_error: largest difference of a score from torch's, over that score, on random windows of scaled features.
    """

    path: str
    bytes: int
    int8: bool
    max_relative_error: float


class _Scorer(nn.Module):
    """All of a model in one function of dense inputs."""

    def __init__(self, model: FlowModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, source_mean: Tensor, destination_mean: Tensor, features: Tensor, key_bias: Tensor) -> Tensor:
        batch, length, width = source_mean.shape
        means = torch.cat([source_mean.reshape(-1, width), destination_mean.reshape(-1, width)])
        rows = torch.arange(batch * length)
        z = self.model.embed(means, rows, rows + batch * length, features.reshape(-1, width))
        return self.model.errors(z.reshape(batch, length, -1), features, None, key_bias if self.model.windowed else None)


def export(detector: Detector, path: Path, int8: bool = False) -> Export:
    """Write `detector`'s network as ONNX.

    Args:
        detector: with a torch model.
        path: ``.onnx`` file.
        int8: quantise the weights of all matrix products dynamically (ONNX Runtime).

    Raises:
        InputError: for a model without torch, or if onnx and ONNX Runtime are missing.
        CheckFailed: if float32 scores differ from torch's by more than 0.1 %.
    """
    if detector.config is None:
        raise InputError(f"--model: {detector.kind} is no neural network; its arrays in model.safetensors are all there is to it")
    require("onnxruntime", "edge-ids[torch]")
    require("onnxscript", "edge-ids[torch]")
    generator = torch.Generator().manual_seed(0)
    width = len(detector.schema)

    def window(batch: int, length: int) -> tuple[Tensor, ...]:
        return (*(torch.rand(batch, length, width, generator=generator) for _ in range(3)), torch.zeros(batch, 1, 1, length))

    scorer = _Scorer(detector.model).eval()
    batch, length = torch.export.Dim("batch", min=1, max=1024), torch.export.Dim("length", min=2, max=4096)
    shapes = ({0: batch, 1: length}, {0: batch, 1: length}, {0: batch, 1: length}, {0: batch, 3: length})
    names = ["source_mean", "destination_mean", "features", "key_bias"]
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # The exporter warns that inputs share their batch and length, which is what we ask for.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            scorer, window(2, 16), dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=["score"], verbose=False
        )
        assert program is not None
        program.save(str(temporary))
        if int8:
            _quantise(temporary)
        examples = [window(1, 16), window(3, detector.window)]
        error = max(_difference(scorer, temporary, example) for example in examples)
        if not int8 and error > 1e-3:
            raise CheckFailed(f"ONNX scores differ from torch's by up to {error:.2%}; nothing was written")
    return Export(str(path), path.stat().st_size, int8, error)


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises to run a pre-processing that our graph has behind it.
    logging.getLogger().addFilter(lambda record: "pre-processing" not in record.getMessage())
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "int8.onnx"
        quantize_dynamic(path, result, weight_type=QuantType.QInt8, per_channel=True)
        path.write_bytes(result.read_bytes())


def _difference(scorer: nn.Module, path: Path, example: tuple[Tensor, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    names = ["source_mean", "destination_mean", "features", "key_bias"]
    feed = {name: value.numpy() for name, value in zip(names, example, strict=True) if name in wanted}
    (got,) = session.run(None, feed)
    with torch.inference_mode():
        expected = scorer(*example).numpy()
    return float((np.abs(got - expected) / np.maximum(np.abs(expected), 1e-12)).max())
