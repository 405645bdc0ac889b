"""Weight gradients from the Tucker form of a layer's input, without rebuilding the input.

Letters: b batch, a its rank; c channels in, r their rank; o channels out; h w input pixels, k l their ranks; p q output
pixels; i j kernel taps; g groups. Three orders give the same result up to rounding:

* ``"rebuild"``: expand the input, then the ordinary weight gradient (saves memory, no time);
* ``"paper"``: project the output gradient on the batch basis, rebuild rows and columns, convolve with the rank channels,
  apply the channel basis (HOSVD and ASI papers);
* ``"project"``: push the output gradient into all bases first, so that pixels and taps meet the core as one small GEMM.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ondevice_train.compression._geometry import ConvGeometry, Geometry, LinearGeometry
from ondevice_train.compression._tucker import Factors, expand, multiply, rows_times

Order = Literal["rebuild", "paper", "project"]
_JOINT_PIXELS = 256  # up to this many output pixels one GEMM with the Kronecker basis beats two batched ones


def weight_gradient(core: Tensor, factors: Factors, grad: Tensor, geometry: Geometry, order: Order) -> Tensor:
    """dW from the Tucker form of the input and the output gradient, in the weight's shape."""
    if isinstance(geometry, ConvGeometry) and order == "project":
        shape = [size if factor is None else factor.shape[0] for size, factor in zip(core.shape, factors, strict=True)]
        order = affordable(tuple(shape), tuple(core.shape), tuple(grad.shape), geometry)
    if order == "rebuild":
        return geometry.weight_gradient(expand(core, factors), grad)
    if isinstance(geometry, LinearGeometry):
        left, basis = linear_factored(core, factors, grad)
        return left if basis is None else left @ basis.t()
    if order == "paper" or (factors[2] is None and factors[3] is None):
        return _conv_paper(core, factors, grad, geometry)
    return _conv_project(core, factors, grad, geometry)


def affordable(shape: tuple[int, ...], ranks: tuple[int, ...], out: tuple[int, ...], geometry: ConvGeometry) -> Order:
    """``"project"``, unless the projected output gradient would outgrow both input and output: ranks near full, several taps.

    The order that takes its place keeps to the size of a dense weight gradient's temporaries.
    """
    (a, _, k, l), (kh, kw) = ranks, geometry.kernel
    widest = max(a * out[1] * out[2] * kw * l, a * out[1] * kh * k * kw * l)
    if widest <= max(math.prod(shape), math.prod(out)):
        return "project"
    others: tuple[Order, ...] = ("paper", "rebuild") if geometry.groups == 1 else ("rebuild",)
    return min(others, key=lambda order: conv_macs(shape, ranks, out, geometry, order))


def linear_factored(core: Tensor, factors: Factors, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """dW of a Linear as a product M U^T of rank K_in: M (O, K_in) and the input basis U (I, K_in), None for identity.

    Args:
        core: Tucker core of the input (K_lead..., K_in).
        factors: one per mode of the input.
        grad: output gradient (..., O).
    """
    # The mode that shrinks most goes first, since the rest then is cheap.
    kept = [(factor.shape[1] / factor.shape[0], mode, factor) for mode, factor in enumerate(factors[:-1]) if factor is not None]
    for _, mode, factor in sorted(kept, key=lambda each: each[:2]):
        grad = multiply(grad, factor.t(), mode)
    flat = grad.reshape(-1, grad.shape[-1])
    return flat.t() @ core.reshape(-1, core.shape[-1]), factors[-1]


def _batch_projected(grad: Tensor, basis: Tensor | None) -> Tensor:
    return grad if basis is None else multiply(grad, basis.t(), 0)


def _conv_paper(core: Tensor, factors: Factors, grad: Tensor, geometry: ConvGeometry) -> Tensor:
    z = _batch_projected(grad, factors[0])
    channel = factors[1]
    if geometry.groups > 1:
        # A grouped convolution mixes no channels across groups: its rank channels must be real channels again.
        return geometry.weight_gradient(expand(core, (None, channel, *factors[2:])), z)
    small = geometry.weight_gradient(expand(core, (None, None, *factors[2:])), z, groups=1)
    return small if channel is None else multiply(small, channel, 1)


def _taps(basis: Tensor | None, size: int, out: int, taps: int, stride: int, dilation: int, before: int, like: Tensor) -> Tensor:
    """Rows of a basis (size, k) that each output position reads through each tap: (out, taps * k), zero in the padding."""
    if basis is None:
        basis = torch.eye(size, dtype=like.dtype, device=like.device)
    if taps == 1 and stride == 1 and before == 0 and out == size:
        return basis.contiguous()
    position = torch.arange(out, device=basis.device)[:, None] * stride + torch.arange(taps, device=basis.device) * dilation - before
    rows = basis[position.clamp(0, size - 1)] * ((position >= 0) & (position < size))[..., None]
    return rows.reshape(out, -1)


def _conv_project(core: Tensor, factors: Factors, grad: Tensor, geometry: ConvGeometry) -> Tensor:
    z = _batch_projected(grad, factors[0])
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    a, o, p, q = z.shape
    k, l = core.shape[2], core.shape[3]
    high, wide = factors[2], factors[3]
    rows = _taps(high, k if high is None else high.shape[0], p, kh, sh, dh, geometry.padding[0], z)
    columns = _taps(wide, l if wide is None else wide.shape[0], q, kw, sw, dw, geometry.padding[2], z)
    if p * q <= _JOINT_PIXELS:
        # Not torch.kron: it takes views that one-column bases do not allow.
        joint = (rows[:, None, :, None] * columns[None, :, None, :]).reshape(p * q, -1)
        projected = rows_times(z.reshape(a * o, p * q), joint.t())
    else:
        projected = multiply(multiply(z, columns.t(), 3), rows.t(), 2)
    groups, channel = geometry.groups, factors[1]
    if groups == 1:
        r = core.shape[1]
        if kh == kw == 1:
            m = torch.einsum("aom,arm->or", projected.view(a, o, k * l), core.reshape(a, r, k * l))
        else:
            m = torch.einsum("aoikjl,arkl->oijr", projected.view(a, o, kh, k, kw, l), core)
        gradient = m if channel is None else m @ channel.t()
        return gradient.view(o, kh, kw, -1).permute(0, 3, 1, 2).contiguous()
    full = core if channel is None else multiply(core, channel, 1)
    c = full.shape[1]
    gradient = torch.einsum(
        "agoikjl,agckl->gocij",
        projected.view(a, groups, o // groups, kh, k, kw, l),
        full.view(a, groups, c // groups, k, l),
    )
    return gradient.reshape(o, c // groups, kh, kw)


def conv_macs(shape: tuple[int, ...], ranks: tuple[int, ...], out: tuple[int, ...], geometry: ConvGeometry, order: Order) -> int:
    """Multiply-adds of the conv weight gradient at given ranks; `shape` (B, C, H, W) in, `out` (B, O, P, Q)."""
    b, c, h, w = shape
    _, o, p, q = out
    a, r, k, l = ranks
    kh, kw = geometry.kernel
    taps, groups = kh * kw, geometry.groups
    batch = 0 if a == b else b * a * o * p * q
    if order == "rebuild":
        return a * r * k * l * w + a * r * k * w * h + a * r * c * h * w + a * b * c * h * w + taps * o * (c // groups) * b * p * q
    if order == "paper":
        spatial = a * r * k * l * h + a * r * l * h * w
        return batch + spatial + o * a * r * taps * p * q + o * c * taps * r
    projection = a * o * p * q * kw * l + a * o * p * kw * l * kh * k
    if groups == 1:
        return batch + projection + taps * o * a * k * l * r + taps * o * r * c
    return batch + projection + a * c * r * k * l + taps * o * (c // groups) * a * k * l


def linear_macs(shape: tuple[int, ...], ranks: tuple[int, ...], out_features: int) -> int:
    """Multiply-adds of `linear_factored` and the final product with the input basis."""
    total, lead = 0, list(shape[:-1])
    for _, mode in sorted((rank / size, mode) for mode, (rank, size) in enumerate(zip(ranks[:-1], shape[:-1], strict=True))):
        if ranks[mode] != shape[mode]:
            total += math.prod(lead) * ranks[mode] * out_features
            lead[mode] = ranks[mode]
    return total + math.prod(lead) * out_features * ranks[-1] + out_features * ranks[-1] * shape[-1]
