"""What a model costs, counted and timed: layers, parameters, MACs, peak bytes, milliseconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from depthprune.latency import Comparison, compare, onnx_runner, torch_runner, torch_threads


@dataclass(frozen=True)
class Size:
    """Counts of one model at batch 1.

    Attributes:
        layers: convolution and linear calls.
        activations: nonlinear activation calls.
        parameters: weights and biases, and constants that the graph carries.
        macs: multiply-accumulates per image.
        peak_bytes: largest sum of live activation tensors in bytes (memory model D: every live storage, float32).
    """

    layers: int
    activations: int
    parameters: int
    macs: int
    peak_bytes: int


def size(model: nn.Module, example: Tensor) -> Size:
    """Count a model through the shared trace."""
    from edge_shared import flops, memory
    from edge_shared.trace import trace

    network = trace(model.eval(), example[:1])
    tensors = [*model.parameters(), *[b for name, b in model.named_buffers() if "running" not in name and "num_batches" not in name]]
    return Size(
        layers=sum(layer.kind in ("conv", "linear") for layer in network.layers),
        activations=sum(layer.kind == "activation" for layer in network.layers),
        parameters=sum(t.numel() for t in tensors),
        macs=flops.macs(network),
        peak_bytes=memory.peak(network, "D").bytes,
    )


def compare_onnx(before: Path, after: Path, example: Tensor, repeats: int = 300, threads: int = 1, limit_s: float = math.inf) -> Comparison:
    """Time two ONNX files in turn in ONNX Runtime on the CPU at batch 1."""
    x = example[:1].numpy()
    return compare(onnx_runner(before, x, threads), onnx_runner(after, x, threads), repeats, limit_s)


def compare_torch(
    before: nn.Module, after: nn.Module, example: Tensor, repeats: int = 300, threads: int = 1, limit_s: float = math.inf
) -> Comparison:
    """Time two modules in turn in eager torch on the CPU at batch 1."""
    with torch_threads(threads), torch.inference_mode():
        return compare(torch_runner(before, example[:1]), torch_runner(after, example[:1]), repeats, limit_s)
