"""Networks of torchvision models that no table describes: traced."""

from __future__ import annotations

from dataclasses import replace

from edge_shared import architectures
from edge_shared.errors import InputError, require
from edge_shared.network import Layer, Network


def traced(name: str, input_size: int, classes: int = 1000) -> Network:
    """Trace a torchvision model of that name at batch 1; its linear layers but the last count as 1x1 convolutions on tokens.

    Raises:
        InputError: for a name that is in no table and that torchvision does not know.
    """
    require("torch", "edge-shared[torch]")
    import torch
    import torchvision
    from edge_shared.trace import trace

    if name not in torchvision.models.list_models():
        raise InputError(f"--arch {name}: unknown; tables: {', '.join(architectures.names())}; or a torchvision model")
    model = torchvision.models.get_model(name, weights=None, num_classes=classes).eval()
    network = trace(model, torch.zeros(1, 3, input_size, input_size), name)
    *body, _ = network.weighted()
    tokens = {layer.name for layer in body if layer.kind == "linear"}
    return replace(network, layers=tuple(_as_conv(layer) if layer.name in tokens else layer for layer in network.layers))


def _as_conv(layer: Layer) -> Layer:
    """A linear layer on (*, C) as a 1x1 convolution on (1, C, tokens, 1): the same weights, inputs and MACs."""
    in_features, out_features = layer.in_shape[-1], layer.out_shape[-1]
    batch, tokens = 1, layer.in_items // in_features  # windows of attention lie in the batch axis
    return replace(
        layer,
        kind="conv",
        op="linear",
        in_shape=(batch, in_features, tokens, 1),
        out_shape=(batch, out_features, tokens, 1),
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
    )
