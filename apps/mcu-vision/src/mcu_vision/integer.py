"""An int8 network as plain data, and a numpy interpreter of it: what every build of the C code must equal bit for bit.

Arithmetic (as in TensorFlow Lite's int8 kernels with single rounding, which CMSIS-NN can be built for): an activation is
``scale * (q - zero)``, a weight ``scale_o * q`` with one scale per output channel. A 32-bit accumulator becomes int8 by
``requantise``: multiply by a 31-bit fraction, shift right with rounding half up, add the output's zero, clamp.

Shape legend: N images, H W rows and columns, C input channels, O output channels, K kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from edge_shared.network import Layer, Network, Tensor
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
ADD_SHIFT = 20
"""Left shift of both operands of an addition before they are brought to one scale."""


@dataclass(frozen=True)
class Op:
    """One call of a kernel.

    Attributes:
        kind: which kernel.
        name: of the layer in the float network.
        inputs, output: tensors; an addition writes over its first input where nobody else reads that.
        in_shape, out_shape: (height, width, channels) of the first input and the output.
        kernel, stride, padding: rows, columns.
        weight: conv OHWI, depthwise HWC, linear (O, C); empty otherwise.
        bias: int32 (O,), at the scale of input times weight.
        multiplier, shift: a real factor ``multiplier * 2**(shift - 31)`` per output channel; for an addition those of
            its two inputs and of the sum.
        in_zeros: zero of each input.
        out_zero: zero of the output.
        low, high: the activation's clamp.
    """

    kind: Literal["conv", "depthwise", "add", "pool", "linear"]
    name: str
    inputs: tuple[str, ...]
    output: str
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    in_zeros: tuple[int, ...]
    out_zero: int
    low: int
    high: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    weight: Int8 | None = None
    bias: Int32 | None = None
    multiplier: Int32 | None = None
    shift: Int8 | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        height, width, out = self.out_shape
        if self.kind in ("conv", "linear"):
            return height * width * out * self.kernel[0] * self.kernel[1] * self.in_shape[2]
        return height * width * out * self.kernel[0] * self.kernel[1] if self.kind == "depthwise" else 0


@dataclass(frozen=True)
class IntegerNet:
    """An int8 network.

    Attributes:
        name: of the network.
        input: name of the input tensor, of shape `input_shape` (height, width, channels).
        output: name of the last tensor.
        ops: in execution order.
        table: int8 value of each pixel value of each channel, (channels, 256).
        output_scale, output_zero: what an output value means.
        aliases: tensors that lie in another's storage.
        classes: names of the outputs.
    """

    name: str
    input: str
    output: str
    input_shape: tuple[int, int, int]
    ops: tuple[Op, ...]
    table: Int8
    output_scale: float
    output_zero: int
    aliases: dict[str, str]
    classes: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants: weights, biases, multipliers, shifts and the pixel table."""
        arrays = [array for op in self.ops for array in (op.weight, op.bias, op.multiplier, op.shift) if array is not None]
        return sum(array.nbytes for array in (*arrays, self.table))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(op.macs for op in self.ops)

    def network(self) -> Network:
        """The same as the shared core's plain data, one byte per element: memory plans are functions of it."""
        shapes = {self.input: self.input_shape} | {op.output: op.out_shape for op in self.ops}
        tensors = {name: Tensor(name, (1, c, h, w), 1, self.aliases.get(name)) for name, (h, w, c) in shapes.items()}
        layers = []
        for op in self.ops:
            kind = "conv" if op.kind == "depthwise" else op.kind
            weights = 0 if op.weight is None else op.weight.size
            layers.append(
                Layer(
                    op.name, kind, f"{op.kind}_s8", op.inputs, op.output, tensors[op.inputs[0]].shape, tensors[op.output].shape,
                    kernel=op.kernel, stride=op.stride, padding=op.padding, dilation=(1, 1),
                    groups=op.in_shape[2] if op.kind == "depthwise" else 1, bias=op.bias is not None, weights=weights,
                    params=weights + (0 if op.bias is None else op.bias.size),
                )
            )  # fmt: skip
        return Network(self.name, (self.input,), (self.output,), tuple(layers), tensors)


def quantise_multiplier(factor: float) -> tuple[int, int]:
    """A positive real factor as (multiplier, shift): ``factor = multiplier * 2**(shift - 31)``, multiplier in [2**30, 2**31)."""
    mantissa, shift = np.frexp(factor)
    multiplier = int(np.floor(mantissa * 2.0**31 + 0.5))
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -30:  # the product would be shifted out altogether
        return 0, 0
    return multiplier, int(shift)


def requantise(accumulator: NDArray[np.int64], multiplier: Int32 | int, shift: Int8 | int) -> NDArray[np.int64]:
    """``accumulator * multiplier * 2**(shift - 31)``, rounded half up: the only place where a value is rounded."""
    total = 31 - np.asarray(shift, dtype=np.int64)
    product = accumulator.astype(np.int64) * np.asarray(multiplier, dtype=np.int64)
    return (product + (np.int64(1) << (total - 1))) >> total


def run(net: IntegerNet, images: NDArray[np.uint8]) -> Int8:
    """Interpret the network on uint8 images (N, H, W, C): int8 outputs (N, classes)."""
    return trace(net, images)[net.output].reshape(len(images), -1)


def trace(net: IntegerNet, images: NDArray[np.uint8]) -> dict[str, Int8]:
    """Every tensor of a run, (N, H, W, C) by name."""
    values: dict[str, Int8] = {net.input: np.stack([net.table[c][images[..., c]] for c in range(images.shape[-1])], axis=-1)}
    for op in net.ops:
        x = [values[name] for name in op.inputs]
        if op.kind == "add":
            result = _add(op, x[0], x[1])
        elif op.kind == "pool":
            result = _pool(x[0])
        else:
            result = _weighted(op, x[0])
        values[op.output] = np.clip(result, op.low, op.high).astype(np.int8)
    return values


def _weighted(op: Op, x_NHWC: Int8) -> NDArray[np.int64]:
    assert op.weight is not None
    assert op.bias is not None
    assert op.multiplier is not None
    assert op.shift is not None
    # float64 holds every product and sum of these integers exactly (below 2**53).
    x = x_NHWC.astype(np.float64) - op.in_zeros[0]
    if op.kind == "linear":
        accumulator = x.reshape(len(x), -1) @ op.weight.astype(np.float64).T
        accumulator = accumulator.reshape(len(x), 1, 1, -1)
    else:
        columns = _columns(x, op)
        if op.kind == "conv":
            accumulator = np.einsum("nhwijc,oijc->nhwo", columns, op.weight.astype(np.float64), optimize=True)
        else:
            accumulator = np.einsum("nhwijc,ijc->nhwc", columns, op.weight.astype(np.float64), optimize=True)
    total = accumulator.astype(np.int64) + op.bias
    return requantise(total, op.multiplier, op.shift) + op.out_zero


def _columns(x_NHWC: NDArray[np.float64], op: Op) -> NDArray[np.float64]:
    """Windows (N, H', W', K, K, C); padding is the input's zero, which is 0 here."""
    (rows, columns), (top, left) = op.kernel, op.padding
    padded = np.pad(x_NHWC, ((0, 0), (top, top), (left, left), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(1, 2))
    windows = windows[:, :: op.stride[0], :: op.stride[1]]
    return np.moveaxis(windows, 3, -1)


def _add(op: Op, a: Int8, b: Int8) -> NDArray[np.int64]:
    assert op.multiplier is not None
    assert op.shift is not None
    parts = [
        requantise((value.astype(np.int64) - zero) << ADD_SHIFT, int(op.multiplier[index]), int(op.shift[index]))
        for index, (value, zero) in enumerate(zip((a, b), op.in_zeros, strict=True))
    ]
    return requantise(parts[0] + parts[1], int(op.multiplier[2]), int(op.shift[2])) + op.out_zero


def _pool(x_NHWC: Int8) -> NDArray[np.int64]:
    """Mean over rows and columns, rounded half away from zero."""
    total = x_NHWC.astype(np.int64).sum(axis=(1, 2), keepdims=True)
    count = x_NHWC.shape[1] * x_NHWC.shape[2]
    return np.sign(total) * ((np.abs(total) + count // 2) // count)
