"""LayerNorm kept in 8 bits: torch's output, dβ exact, the other gradients off by the rounding of x̂ alone."""

from __future__ import annotations

import pytest
import torch
from edge_shared.memory import measure
from ondevice_train.compression.layer_norm import CompactLayerNorm, layer_norm_bytes
from torch import nn


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"elementwise_affine": False}], ids=str)
def test_gradients_within_the_rounding(settings):
    torch.manual_seed(0)
    norm = nn.LayerNorm(24, **settings).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 5, 24, dtype=torch.float64, requires_grad=True)
    compact = CompactLayerNorm(norm)
    y, z = compact(x), norm(x)
    torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(y)
    wanted = [x, *norm.parameters()]
    found, exact = torch.autograd.grad(y, wanted, seed), torch.autograd.grad(z, wanted, seed)
    # x̂ is off by at most half a step of its row; dx through mean(h x̂) and x̂ itself, dγ through Σ g x̂.
    normal = nn.functional.layer_norm(x, (24,)).detach()
    step = (normal.amax(-1, keepdim=True) - normal.amin(-1, keepdim=True)) / 255
    h = seed if norm.weight is None else seed * norm.weight.detach()
    rstd = (x.detach().var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    off = (step / 2) * ((h * normal).mean(-1, keepdim=True).abs() + (normal.abs() + step / 2) * h.abs().mean(-1, keepdim=True)) * rstd
    assert ((found[0] - exact[0]).abs() <= off + 1e-12).all()
    assert (found[0] - exact[0]).abs().max() > 0
    if norm.weight is not None:
        assert ((found[1] - exact[1]).abs() <= (seed.abs() * step / 2).sum((0, 1)) + 1e-12).all()
    if norm.bias is not None:
        torch.testing.assert_close(found[2], exact[2], rtol=1e-12, atol=1e-12)


def test_bytes():
    norm = CompactLayerNorm(nn.LayerNorm(24))
    x = torch.randn(6, 5, 24, requires_grad=True)
    assert measure.saved_bytes(lambda: norm(x), [x, *norm.parameters()]).bytes == layer_norm_bytes(x.numel(), 24)
