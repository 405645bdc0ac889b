"""Which part of a weight the selected channels are, how they are kept, and the gradient of that part.

Two units: ``input`` channels (SparseUpdate, TraDy, MeDyate) and ``output`` neurons (NEq, Velocity, SCoTTi).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ondevice_train.compression._geometry import ConvGeometry
from ondevice_train.ops.conv_gradients import weight_gradient

if TYPE_CHECKING:
    from ondevice_train.compression._codec import Codec

Unit = Literal["input", "output"]


def quantise(kept: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Round each channel to 256 levels between its extremes: uint8 codes, and (2, K) with the lowest value and the step."""
    dims = [dim for dim in range(kept.ndim) if dim != axis % kept.ndim]
    low, high = kept.amin(dims, keepdim=True), kept.amax(dims, keepdim=True)
    step = (high - low) / 255
    step = torch.where(step > 0, step, torch.ones_like(step))
    codes = ((kept - low) / step).round_().to(torch.uint8)
    return codes, torch.stack((low.flatten(), step.flatten()))


def dequantise(codes: Tensor, grid: Tensor, axis: int) -> Tensor:
    """Undo `quantise`, up to the rounding."""
    shape = [1] * codes.ndim
    shape[axis] = -1
    return codes.to(grid.dtype) * grid[1].view(shape) + grid[0].view(shape)


def coded_gradient(grad: Tensor, codec: Codec, pieces: tuple, kernel: Any, channels: Tensor, geometry: tuple) -> Tensor:
    """Gradient of W[:, channels] from channels that a codec keeps: of an ungrouped convolution, or of a depthwise one."""
    stride, (high, wide), dilation, groups = geometry
    of_slice = ConvGeometry(tuple(kernel), stride, (high, high, wide, wide), dilation, 1 if groups == 1 else len(channels))
    if groups == 1:
        return codec.weight_gradient(pieces, grad, of_slice)
    return codec.weight_gradient(pieces, grad.index_select(1, channels), of_slice).transpose(0, 1)


def slice_gradient(grad: Tensor, kept: Tensor, weight: Tensor, channels: Tensor, unit: Unit, geometry: tuple, in_channels: int) -> Tensor:
    """Gradient of W[:, channels] (input) or W[channels] (output) from the kept input; shapes as `slice_of`."""
    stride, padding, dilation, groups = geometry
    per_group, outputs, kernel = in_channels // groups, weight.shape[0] // groups, weight.shape[2:]
    if groups == 1:
        g = grad if unit == "input" else grad.index_select(1, channels)
        return weight_gradient(g, kept, kernel, stride, padding, dilation, 1)
    if per_group == 1:
        rows = _rows_of_inputs(channels, outputs) if unit == "input" else channels
        of_rows = grad.index_select(1, rows)
        if unit == "input":
            dw = weight_gradient(of_rows, kept, kernel, stride, padding, dilation, len(channels))
            return dw.view(len(channels), outputs, *kernel).transpose(0, 1)
        return weight_gradient(of_rows, kept, kernel, stride, padding, dilation, len(rows))
    if unit == "output":
        return weight_gradient(grad, kept, kernel, stride, padding, dilation, groups).index_select(0, channels)
    pieces = []
    for position, channel in enumerate(channels.tolist()):
        group = channel // per_group
        g = grad[:, group * outputs : (group + 1) * outputs]
        pieces.append(weight_gradient(g, kept[:, position : position + 1], kernel, stride, padding, dilation, 1))
    return torch.cat(pieces, 1)


def slice_index(channels: Tensor, unit: Unit, groups: int, in_channels: int, out_channels: int) -> tuple[Any, Any]:
    """Advanced index (rows, columns) of the slice that `channels` select in a weight."""
    if unit == "output":
        return channels, slice(None)
    if groups == 1:
        return slice(None), channels
    per_group, outputs = in_channels // groups, out_channels // groups
    if per_group == outputs == 1:
        return channels[None], torch.zeros_like(channels)[None]
    rows = (channels // per_group) * outputs + torch.arange(outputs, device=channels.device)[:, None]
    return rows, (channels % per_group).expand(outputs, -1)


def _rows_of_inputs(channels: Tensor, outputs: int) -> Tensor:
    """Output rows that read the given input channels of a depthwise layer with `outputs` outputs a channel."""
    if outputs == 1:
        return channels
    return (channels[:, None] * outputs + torch.arange(outputs, device=channels.device)).reshape(-1)
