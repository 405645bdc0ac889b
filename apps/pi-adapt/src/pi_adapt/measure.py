"""What a network costs: counted, and its live bytes measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from edge_shared import flops, memory
from edge_shared.errors import CheckFailed
from edge_shared.memory.measure import live_bytes
from edge_shared.trace import trace
from torch import nn


@dataclass(frozen=True)
class Cost:
    """Of one network at batch 1, float32.

    Attributes:
        layers: convolutions and linear layers.
        parameters: weights and biases.
        macs: multiply-accumulates per image.
        peak_bytes: largest sum of live activations (memory model D), equal to what was measured.
    """

    layers: int
    parameters: int
    macs: int
    peak_bytes: int


def cost(model: nn.Module, example: torch.Tensor) -> Cost:
    """Count a network and measure its live bytes.

    Raises:
        CheckFailed: if the measured bytes are not the predicted ones.
    """
    example = example[:1]
    network = trace(model.eval(), example)
    predicted, measured = memory.peak(network, "D").bytes, live_bytes(model, example)
    if predicted != measured:
        raise CheckFailed(f"the network holds {measured:,} live bytes, {predicted:,} were predicted; please report it")
    layers = sum(layer.kind in ("conv", "linear") for layer in network.layers)
    return Cost(layers, sum(parameter.numel() for parameter in model.parameters()), flops.macs(network), measured)


def accuracy(model: nn.Module, images: Any, part: str = "test") -> float:
    """Share of right answers on a part of an image set."""
    from edge_shared.training import evaluate

    return evaluate(model.eval(), images.loader(part, 256))["accuracy"]
