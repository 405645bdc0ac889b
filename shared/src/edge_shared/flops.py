"""Multiply-accumulates (MACs) of a network, forward and backward, layer by layer; one MAC is two FLOPs.

Conventions: ``true`` counts what is computed (groups-aware); ``paper`` is the ASI/WASI papers' formula for
convolutions: groups ignored, forward at the *input* resolution even when strided.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from edge_shared.network import Layer, Network

Convention = Literal["true", "paper"]


def forward(layer: Layer, convention: Convention = "true") -> int:
    """MACs of one call. Only convolutions, linear layers and matrix products count; the rest is 0."""
    if layer.kind == "conv":
        spatial = prod(layer.out_shape[2:])
        if convention == "paper":
            return layer.in_shape[0] * prod(layer.in_shape[2:]) * layer.in_channels * layer.out_channels * prod(layer.kernel)
        return layer.out_shape[0] * spatial * layer.weights
    if layer.kind == "linear":
        return prod(layer.out_shape[:-1]) * layer.in_shape[-1] * layer.out_shape[-1]
    if layer.kind == "matmul":
        if layer.op == "attention":
            # q·kᵀ and the product with v; `kernel` holds (key length, value width).
            keys, width = layer.kernel
            return prod(layer.in_shape[:-1]) * keys * (layer.in_shape[-1] + width)
        return prod(layer.out_shape) * layer.in_shape[-1]
    return 0


def weight_gradient(layer: Layer, convention: Convention = "true") -> int:
    """MACs of the gradient of the layer's weight: as many as forward (``paper``: at the output resolution)."""
    if layer.kind not in ("conv", "linear"):
        return 0
    if layer.kind == "conv" and convention == "paper":
        return layer.out_shape[0] * prod(layer.out_shape[2:]) * layer.in_channels * layer.out_channels * prod(layer.kernel)
    return forward(layer)


def activation_gradient(layer: Layer, convention: Convention = "true") -> int:
    """MACs of the gradient of the layer's input: as many as forward; a matrix product has two inputs."""
    return forward(layer, convention) * (2 if layer.kind == "matmul" else 1)


def macs(network: Network, convention: Convention = "true") -> int:
    """Forward MACs of the whole network at the batch size of its shapes."""
    return sum(forward(layer, convention) for layer in network.layers)
