"""Weight gradients from the Tucker form of a layer's input, without rebuilding the whole input.

Letters: b batch, a its rank; c channels in, r their rank; o channels out; h w input pixels, k l their ranks; p q output
pixels; i j kernel taps; g groups. Three orders give the same result up to rounding:

* ``"rebuild"``: project the output gradient on the batch basis, expand the input but for its batch, then the ordinary weight
  gradient of as many samples as that basis has columns;
* ``"paper"``: the same, but expand rows and columns alone, convolve with the rank channels, apply the channel basis (HOSVD and
  ASI papers); a grouped convolution mixes no channels across groups, so that its channels are expanded too;
* ``"project"``: push the output gradient into all bases first, so that pixels and taps meet the core as one small GEMM.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ondevice_train.compression._geometry import ConvGeometry, Geometry, LinearGeometry
from ondevice_train.compression._tucker import Factors, expand, expansion_macs, joins, kronecker, multiply, rows_times

Order = Literal["rebuild", "paper", "project"]


def weight_gradient(core: Tensor, factors: Factors, grad: Tensor, geometry: Geometry, order: Order) -> Tensor:
    """dW from the Tucker form of the input and the output gradient, in the weight's shape."""
    if isinstance(geometry, ConvGeometry) and order == "project":
        shape = [size if factor is None else factor.shape[0] for size, factor in zip(core.shape, factors, strict=True)]
        order = cheapest(tuple(shape), tuple(core.shape), tuple(grad.shape), geometry)
    if isinstance(geometry, ConvGeometry) and order == "paper" and geometry.groups > 1:
        order = "rebuild"
    if order == "rebuild":
        return geometry.weight_gradient(expand(core, (None, *factors[1:])), _batch_projected(grad, factors[0]))
    if isinstance(geometry, LinearGeometry):
        left, basis = linear_factored(core, factors, grad)
        return left if basis is None else left @ basis.t()
    if order == "paper":
        return _conv_paper(core, factors, grad, geometry)
    return _conv_project(core, factors, grad, geometry)


def cheapest(shape: tuple[int, ...], ranks: tuple[int, ...], out: tuple[int, ...], geometry: ConvGeometry) -> Order:
    """The order of the fewest multiply-adds.

    ``"project"`` only where pixels are compressed and the projected output gradient does not outgrow both input and output (ranks near
    full, several taps); the others keep to the size of a dense weight gradient's temporaries.
    """
    (a, _, k, l), (kh, kw) = ranks, geometry.kernel
    orders: list[Order] = ["paper", "rebuild"] if geometry.groups == 1 else ["rebuild"]
    widest = max(a * out[1] * out[3] * kh * k, a * out[1] * kh * k * kw * l)
    if (k, l) != shape[2:] and widest <= max(math.prod(shape), math.prod(out)):
        orders.insert(0, "project")
    return min(orders, key=lambda order: conv_macs(shape, ranks, out, geometry, order))


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


def _channels_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _conv_project(core: Tensor, factors: Factors, grad: Tensor, geometry: ConvGeometry) -> Tensor:
    z = _batch_projected(grad, factors[0])
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    a, o, p, q = z.shape
    k, l = core.shape[2], core.shape[3]
    high, wide = factors[2], factors[3]
    rows = _taps(high, k if high is None else high.shape[0], p, kh, sh, dh, geometry.padding[0], z)
    columns = _taps(wide, l if wide is None else wide.shape[0], q, kw, sw, dw, geometry.padding[2], z)
    if (joint := kronecker(rows, columns)) is not None:
        projected = rows_times(z.reshape(a * o, p * q), joint.t())
    else:  # rows first: their product is the one that a matrix kernel is good at
        projected = multiply(multiply(z, rows.t(), 2), columns.t(), 3)
    groups, channel = geometry.groups, factors[1]
    if groups == 1:
        r = core.shape[1]
        if kh == kw == 1:
            # As torch.einsum would have it, without its search for an order.
            m = _channels_first(projected.view(a, o, k * l)) @ _channels_first(core.reshape(a, r, k * l)).t()
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
    if order == "rebuild" or (order == "paper" and groups > 1):
        return batch + expansion_macs((a, c, h, w), ranks) + taps * o * (c // groups) * a * p * q
    if order == "paper":
        spatial = expansion_macs((a, r, h, w), ranks)
        return batch + spatial + o * a * r * taps * p * q + (0 if r == c else o * c * taps * r)
    tall, wide = kh * k, kw * l
    joint = joins((p, q), (tall, wide))
    projection = a * o * p * q * tall * wide if joint else a * o * q * tall * (p + wide)
    if groups == 1:
        return batch + projection + taps * o * a * k * l * r + (0 if r == c else taps * o * r * c)
    return batch + projection + (0 if r == c else a * c * r * k * l) + taps * o * (c // groups) * a * k * l


def linear_macs(shape: tuple[int, ...], ranks: tuple[int, ...], out_features: int) -> int:
    """Multiply-adds of `linear_factored` and the final product with the input basis."""
    total, lead = 0, list(shape[:-1])
    for _, mode in sorted((rank / size, mode) for mode, (rank, size) in enumerate(zip(ranks[:-1], shape[:-1], strict=True))):
        if ranks[mode] != shape[mode]:
            total += math.prod(lead) * ranks[mode] * out_features
            lead[mode] = ranks[mode]
    return total + math.prod(lead) * out_features * ranks[-1] + out_features * ranks[-1] * shape[-1]
