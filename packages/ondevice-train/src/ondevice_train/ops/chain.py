"""Convolutions in a row, with the frozen norms and activations between them, as one node of autograd.

With one image a step the arithmetic of a small network takes less time than Python and autograd spend around it. So a run of layers
that nothing else looks into is one operation: it keeps what each layer would have kept by itself, to the byte, and goes backward
through its layers by plain calls, down to the lowest one that trains. Norms are applied inside the convolutions before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ondevice_train.ops.conv_gradients import input_gradient
from ondevice_train.ops.slices import coded_gradient, dequantise, quantise, slice_gradient, slice_index

if TYPE_CHECKING:
    from ondevice_train.compression._codec import Codec
    from ondevice_train.ops.masks import Kept, PackedActivation
    from ondevice_train.ops.selective import Selective
    from ondevice_train.ops.slices import Unit


def run(links: tuple[Selective, ...], x: Tensor) -> Tensor:
    """Apply convolutions with what they have absorbed, one after the other, to x (B, C, H, W)."""
    trained = []
    for link in links:
        link.sync()
        link.ready()
        if (bias := link.trained_bias) is not None:
            trained.append(bias)
        if (part := link._parameters["slice"]) is not None:
            trained.append(part)
    if torch.is_grad_enabled() and (trained or x.requires_grad):
        return _Chain.apply(x, links, *trained)
    for link in links:
        x = _convolve(link, x)
        if link.activation is not None:
            x = link.activation.apply_(x)
    return x


def _convolve(link: Selective, x: Tensor) -> Tensor:
    # Looked up where they lie: a module searches three tables for an attribute, and small batches feel it.
    parameters: Any = link._parameters
    buffers = link._buffers
    weight, scale = parameters["weight"], buffers["scale"]
    if scale is None:
        return F.conv2d(x, weight, parameters["bias"], *link.geometry)
    return F.conv2d(x, weight * scale, buffers["shift"], *link.geometry)


class _Link:
    """What the backward pass must know of one layer."""

    __slots__ = ("act", "bias", "channels", "code", "codec", "geometry", "needs_input", "pieces", "scale", "shape", "unit", "weight")
    act: PackedActivation | None
    bias: bool  # whether it trains
    channels: Tensor | None
    code: Kept | None  # of the activation, if its input needs a gradient
    codec: Codec | None
    geometry: tuple
    needs_input: bool
    pieces: int  # saved tensors of the slice
    scale: Tensor | None
    shape: torch.Size  # of the input
    unit: Unit
    weight: Tensor


class _Chain(torch.autograd.Function):
    """Arguments: x, the layers, and of each layer the trained bias and the trained slice, where it has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: tuple[Selective, ...], *trained: Tensor) -> Tensor:
        saved: list[Tensor] = []
        links = []
        needs = ctx.needs_input_grad[0]
        for layer in layers:
            link, buffers = _Link(), layer._buffers
            link.needs_input, link.shape, link.unit, link.geometry = needs, x.shape, layer.unit, layer.geometry
            link.weight, link.scale, link.channels = layer.weight, buffers["scale"], buffers["channels"]
            link.bias = layer.trained_bias is not None
            link.codec, link.pieces, link.act, link.code = None, 0, layer.activation, None
            if layer._parameters["slice"] is not None:
                pieces = _keep(layer, link, x)
                link.pieces = len(pieces)
                saved += pieces
                needs = True
            x = _convolve(layer, x)
            needs = needs or link.bias
            if link.act is not None:
                if needs:
                    kept, link.code = link.act.keep(x)
                    saved.append(kept)
                x = link.act.apply_(x)
            links.append(link)
        ctx.save_for_backward(*saved)
        ctx.links = links
        return x

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = list(ctx.saved_tensors)
        gradients = []  # of `trained`, last one first
        for link in reversed(ctx.links):
            if link.code is not None:
                grad = link.act.gradient(grad, saved.pop(), link.code)
            if link.pieces:
                pieces = saved[-link.pieces :]
                del saved[-link.pieces :]
                gradients.append(_slice_gradient(link, grad, pieces))
            if link.bias:
                gradients.append(grad.sum((0, 2, 3)))
            if not link.needs_input:
                return None, None, *reversed(gradients)
            weight: Tensor = link.weight
            if link.scale is not None:
                # Made again: keeping it would cost as much as the weight.
                weight = weight * link.scale
            grad = input_gradient(grad, _as(weight, grad), link.shape, *link.geometry)
        return grad, None, *reversed(gradients)


def _keep(layer: Selective, link: _Link, x: Tensor) -> tuple[Tensor, ...]:
    """What the gradient of the layer's slice needs of x: a copy of its channels in some form, or x itself."""
    groups, channels = layer.geometry[3], link.channels
    assert channels is not None
    if layer.unit == "output" and not groups == x.shape[1] > 1:
        return (x,)
    link.codec = layer.codec if layer.unit == "input" else None
    kept = x.index_select(1, channels if layer.unit == "input" else channels // (link.weight.shape[0] // groups))
    if link.codec is not None:
        return link.codec.encode(kept)  # type: ignore[return-value]
    return (kept,) if layer.keep_bits == 32 else quantise(kept, 1)


def _slice_gradient(link: _Link, grad: Tensor, pieces: list[Tensor]) -> Tensor:
    weight, channels, groups, inputs = link.weight, link.channels, link.geometry[3], link.shape[1]
    assert channels is not None
    if link.codec is not None:
        gradient = coded_gradient(_as(grad, weight), link.codec, tuple(pieces), weight.shape[2:], channels, link.geometry)
    else:
        kept = pieces[0] if len(pieces) == 1 else dequantise(pieces[0], pieces[1], 1)
        gradient = _as(slice_gradient(grad, _as(kept, grad), weight, channels, link.unit, link.geometry, inputs), weight)
    if link.scale is None:
        return gradient
    if link.unit == "input" and groups == 1:
        return gradient.mul_(link.scale)
    scales = link.scale.view(-1)[slice_index(channels, link.unit, groups, inputs, weight.shape[0])[0]]
    return gradient * (scales[..., None, None] if scales.ndim == 2 else scales.view(-1, 1, 1, 1))


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    """In the type of `like`, which differs under autocast."""
    return tensor if tensor.dtype == like.dtype else tensor.to(like.dtype)
