"""LayerNorm that keeps its normalised input in 8 bits instead of its input in 32.

dx = rstd (h - mean(h) - x̂ mean(h x̂)) with h = g γ needs x̂ alone. Rounding it to 8 bits per row changes the last term by at
most half a step; dβ stays exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ondevice_train.compression.quantise import dequantise, quantise


def layer_norm_bytes(elements: int, size: int) -> int:
    """Bytes kept: one an element, three floats a row of `size`."""
    return elements + 12 * (elements // size)


class _CompactLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float) -> Tensor:
        flat = x.reshape(-1, size)
        wide = flat if flat.dtype == torch.float64 else flat.float()
        normal, _, rstd = torch.native_layer_norm(wide, [size], None, None, eps)
        codes, scales = quantise(normal, normal.shape[0])
        ctx.save_for_backward(codes, scales, rstd.contiguous(), weight)
        ctx.shape = x.shape
        y = normal if weight is None else normal * weight if bias is None else torch.addcmul(bias, normal, weight)
        return y.view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        codes, scales, rstd, weight = ctx.saved_tensors
        size = grad.numel() // rstd.numel()
        g = grad.reshape(-1, size).to(scales.dtype)
        normal = dequantise(codes, scales, g.shape)
        # Torch's own fused pass: to it, x̂ is an input of mean 0 and deviation 1.
        none, one = torch.zeros_like(rstd), torch.ones_like(rstd)
        wants = list(ctx.needs_input_grad[:3])
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(g, normal, [size], none, one, weight, weight, wants)
        if ctx.needs_input_grad[0]:
            dx = dx.mul_(rstd).view(ctx.shape).to(grad.dtype)
        dx, dweight, dbias = (value if wanted else None for value, wanted in zip((dx, dweight, dbias), ctx.needs_input_grad, strict=False))
        return dx, dweight, dbias, None, None


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
