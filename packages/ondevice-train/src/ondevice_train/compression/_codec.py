"""How a compressed layer remembers its input: the interface of every method, and the autograd node that uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ondevice_train.compression._geometry import Geometry, geometry_of

Saved = tuple[Tensor | None, ...]
Footprint = dict[Hashable, int]
"""Bytes of each storage kept for backward, by identity: equal keys in two layers mean one shared storage."""


class Codec(ABC):
    """Encodes a layer's input in the forward pass and turns the code into dW in the backward pass.

    One codec belongs to one layer; it may keep state between steps (bases). Everything runs without autograd.
    """

    @abstractmethod
    def encode(self, x: Tensor) -> Saved:
        """Tensors to keep instead of x (detached, float32 or float64)."""

    @abstractmethod
    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """dW in the weight's shape, from what `encode` returned and the output gradient."""

    @abstractmethod
    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """Bytes that `encode` keeps for an input of that shape, from arithmetic alone (current ranks where they vary)."""

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        """dX; exact for every method but the gradient filter."""
        return geometry.input_gradient(grad, weight, shape)

    def state(self) -> dict[str, Any]:
        """What must survive a checkpoint: tensors and plain data."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; a codec without state has nothing to take."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {sorted(state)}")


class _CompressedLayer(torch.autograd.Function):
    """Exact y, dX and db; dW from the codec. Keeps the weight (a parameter) and the code, never the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, codec: Codec, geometry: Geometry) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            y = geometry.forward(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
            saved: Saved = ()
            if ctx.needs_input_grad[1]:
                saved = codec.encode(x if x.dtype == torch.float64 else x.float())
        ctx.codec, ctx.geometry, ctx.shape = codec, geometry, x.shape
        ctx.save_for_backward(weight, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        weight, *saved = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        dx = dw = db = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = ctx.codec.input_gradient(grad, weight.to(grad.dtype), ctx.shape, geometry)
            if ctx.needs_input_grad[1]:
                wide = grad if grad.dtype == torch.float64 else grad.float()
                dw = ctx.codec.weight_gradient(tuple(saved), wide, geometry).to(weight.dtype)
                # Autograd silently sums a gradient of a broadcastable wrong shape (pytorch #65244).
                if dw.shape != weight.shape:
                    raise RuntimeError(f"{type(ctx.codec).__name__} gave dW of shape {tuple(dw.shape)} for {tuple(weight.shape)}")
            if ctx.needs_input_grad[2]:
                db = geometry.bias_gradient(grad).to(weight.dtype)
        return dx, dw, db, None, None


def compressed(x: Tensor, weight: Tensor, bias: Tensor | None, codec: Codec, geometry: Geometry) -> Tensor:
    """Apply a Conv2d or Linear that remembers x through `codec`; where no backward pass can follow nothing is encoded."""
    if not torch.is_grad_enabled():
        return geometry.forward(x, weight, bias)
    return _CompressedLayer.apply(x, weight, bias, codec, geometry)


class CompressedLayer(nn.Module):
    """In place of a Conv2d or Linear: same parameters, same state_dict keys; the codec's state is `Codec.state`.

    Attributes:
        codec: how the input is remembered.
        geometry: what the layer computes.
        original: the torch module that it stands for, with the present parameters.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, original: nn.Module, codec: Codec) -> None:
        super().__init__()
        geometry = geometry_of(original)
        if geometry is None:
            raise ValueError(f"{type(original).__name__} is neither a zero-padded Conv2d nor a Linear")
        self.geometry = geometry
        self.codec = codec
        self._original = (original,)
        self.register_parameter("weight", original.weight)  # type: ignore[arg-type]
        self.register_parameter("bias", original.bias)  # type: ignore[arg-type]
        self.training = original.training

    @property
    def original(self) -> nn.Module:
        """The torch module, holding the present parameters."""
        module = self._original[0]
        module.weight, module.bias = self.weight, self.bias  # type: ignore[assignment]
        module.training = self.training
        return module

    def forward(self, x: Tensor) -> Tensor:
        """As the original: (B, C, H, W) for a convolution, (..., features) for a Linear."""
        return compressed(x, self.weight, self.bias, self.codec, self.geometry)

    def extra_repr(self) -> str:
        """Show the codec."""
        return repr(self.codec)
