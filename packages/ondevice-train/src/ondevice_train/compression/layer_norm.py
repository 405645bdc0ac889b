"""LayerNorm that keeps its input in 8 bits a row instead of 32.

Rounding x by half a step at most changes x̂ by half a step over the row's deviation: as if x̂ itself were rounded. dβ stays exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ondevice_train.compression.quantise import dequantise, quantise, quantised_bytes


def layer_norm_bytes(elements: int, size: int, itemsize: int = 4) -> int:
    """Bytes kept: one an element, four floats a row of `size`."""
    rows = elements // size
    return quantised_bytes(elements, rows, itemsize) + 2 * itemsize * rows


class _CompactLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        y, mean, rstd = torch.native_layer_norm(wide, [size], weight, bias, eps)
        ctx.save_for_backward(quantise(wide, rstd.numel()), mean, rstd, weight, bias)
        ctx.size = size
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        packed, mean, rstd, weight, bias = ctx.saved_tensors
        x = dequantise(packed, rstd.numel(), grad.shape, rstd.dtype)
        wants = list(ctx.needs_input_grad[:3])
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(grad.to(rstd.dtype), x, [ctx.size], mean, rstd, weight, bias, wants)
        dx, dweight, dbias = (value if wanted else None for value, wanted in zip((dx, dweight, dbias), wants, strict=True))
        return None if dx is None else dx.to(grad.dtype), dweight, dbias, None, None


class CompactLayerNorm(nn.Module):
    """In place of an nn.LayerNorm over its last dimension; shares its parameters."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, original: nn.LayerNorm) -> None:
        super().__init__()
        if len(original.normalized_shape) != 1:
            raise ValueError(f"only the last dimension can be normalised, not {original.normalized_shape}")
        self._original = (original,)
        self.size = original.normalized_shape[0]
        self.eps = original.eps
        self.register_parameter("weight", original.weight)
        self.register_parameter("bias", original.bias)
        self.training = original.training

    @property
    def original(self) -> nn.LayerNorm:
        """The torch module with the present parameters."""
        norm = self._original[0]
        norm.weight, norm.bias = self.weight, self.bias  # type: ignore[assignment]
        norm.training = self.training
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., size)."""
        trains = any(parameter is not None and parameter.requires_grad for parameter in (self.weight, self.bias))
        if not (torch.is_grad_enabled() and (x.requires_grad or trains)):
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        return _CompactLayerNorm.apply(x, self.weight, self.bias, self.size, self.eps)
