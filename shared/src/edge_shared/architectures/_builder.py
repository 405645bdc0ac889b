"""Writes a `Network` layer by layer, without torch, in the order in which torch would run it."""

from __future__ import annotations

from math import prod

from edge_shared.network import Layer, Network, Tensor


class NetworkBuilder:
    """Each method appends one layer and returns the name of the tensor it writes; float32, batch first."""

    def __init__(self, name: str, input_shape: tuple[int, ...]) -> None:
        self.name = name
        self.layers: list[Layer] = []
        self.tensors = {"input": Tensor("input", input_shape)}

    def conv(
        self, x: str, out: int, kernel: int, name: str, *, stride: int = 1, groups: int = 1, bias: bool = False, padding: int | None = None
    ) -> str:
        """2-D convolution with a square kernel; padding ``kernel // 2`` unless given."""
        batch, channels, *size = self.tensors[x].shape
        pad = kernel // 2 if padding is None else padding
        out_size = [(s + 2 * pad - kernel) // stride + 1 for s in size]
        weights = out * (channels // groups) * kernel**2
        return self._add(
            Layer(name, "conv", "conv2d", (x,), name, self.tensors[x].shape, (batch, out, *out_size), (kernel,) * 2, (stride,) * 2, (pad,) * 2,
                  (1, 1), groups, bias, weights, weights + out * bias, module=name)
        )  # fmt: skip

    def linear(self, x: str, out: int, name: str, *, bias: bool = True) -> str:
        """Linear layer on the last axis."""
        shape = self.tensors[x].shape
        weights = shape[-1] * out
        return self._add(
            Layer(
                name,
                "linear",
                "linear",
                (x,),
                name,
                shape,
                (*shape[:-1], out),
                bias=bias,
                weights=weights,
                params=weights + out * bias,
                module=name,
            )
        )

    def norm(self, x: str, name: str) -> str:
        """Batch normalisation (evaluation mode) with scale and shift."""
        shape = self.tensors[x].shape
        return self._add(Layer(name, "norm", "batch_norm", (x,), name, shape, shape, params=2 * shape[1], module=name))

    def activation(self, x: str, op: str, name: str, *, in_place: bool = True) -> str:
        """Elementwise activation: relu, relu6, hardswish, hardsigmoid, sigmoid, gelu or silu."""
        shape = self.tensors[x].shape
        return self._add(Layer(name, "activation", op, (x,), name, shape, shape, in_place=in_place, module=name))

    def pool(self, x: str, op: str, name: str, *, kernel: int = 0, stride: int = 1, padding: int = 0) -> str:
        """Pooling; kernel 0 means global average pooling to 1 x 1."""
        batch, channels, *size = self.tensors[x].shape
        out_size = [(s + 2 * padding - kernel) // stride + 1 for s in size] if kernel else [1, 1]
        spatial = (kernel, stride, padding, 1) if kernel else None
        sizes = [(value, value) for value in spatial] if spatial else [()] * 4
        return self._add(
            Layer(name, "pool", op, (x,), name, self.tensors[x].shape, (batch, channels, *out_size), kernel=sizes[0], stride=sizes[1],
                  padding=sizes[2], dilation=sizes[3], module=name)
        )  # fmt: skip

    def combine(self, kind: str, x: str, y: str, name: str, *, in_place: bool = False) -> str:
        """Elementwise ``add`` or ``mul`` of two tensors, broadcasting."""
        shape = self.tensors[x].shape
        return self._add(Layer(name, kind, kind, (x, y), name, shape, shape, in_place=in_place))

    def flatten(self, x: str, name: str) -> str:
        """Flatten all but the batch: a view."""
        batch, *rest = self.tensors[x].shape
        shape = (batch, prod(rest))
        self.tensors[name] = Tensor(name, shape, alias_of=x)
        self.layers.append(Layer(name, "reshape", "flatten", (x,), name, self.tensors[x].shape, shape))
        return name

    def dropout(self, x: str, name: str) -> str:
        """Dropout in evaluation mode: the input itself."""
        shape = self.tensors[x].shape
        self.tensors[name] = Tensor(name, shape, alias_of=x)
        self.layers.append(Layer(name, "dropout", "dropout", (x,), name, shape, shape, module=name))
        return name

    def build(self, output: str) -> Network:
        """The finished network."""
        return Network(self.name, ("input",), (output,), tuple(self.layers), self.tensors)

    def _add(self, layer: Layer) -> str:
        if not all(size > 0 for size in layer.out_shape):
            from edge_shared.errors import InputError

            raise InputError(f"layer {layer.name} would have shape {layer.out_shape}; use a larger resolution or fewer strides")
        self.tensors[layer.output] = Tensor(layer.output, layer.out_shape, alias_of=layer.inputs[0] if layer.in_place else None)
        self.layers.append(layer)
        return layer.output
