"""Our forms of a convolution's gradients against torch's own, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ondevice_train.ops.conv_gradients import input_gradient, weight_gradient
from torch.nn.grad import conv2d_input, conv2d_weight

sizes = st.integers(1, 3)


@settings(max_examples=150, deadline=None)
@given(
    batch=sizes,
    groups=st.integers(1, 4),
    inner=sizes,
    outer=sizes,
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.tuples(sizes, sizes),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_any_convolution(batch, groups, inner, outer, kernel, stride, padding, dilation, more):
    height, width = (max(1, d * (k - 1) + 1 - 2 * p) + m for k, p, d, m in zip(kernel, padding, dilation, more, strict=True))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, groups * inner, height, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(groups * outer, inner, *kernel, dtype=torch.float64, generator=generator)
    grad = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups))
    dx = input_gradient(grad, weight, x.shape, stride, padding, dilation, groups)
    dw = weight_gradient(grad, x, kernel, stride, padding, dilation, groups)
    assert dx.shape == x.shape
    assert dw.shape == weight.shape
    assert torch.allclose(dx, conv2d_input(x.shape, weight, grad, stride, padding, dilation, groups), rtol=0, atol=1e-11)
    assert torch.allclose(dw, conv2d_weight(x, weight.shape, grad, stride, padding, dilation, groups), rtol=0, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (5, 1, 2), (7, 2, 3), (3, 2, 1)])
def test_the_shapes_of_mobile_networks(groups, kernel, stride, padding):
    """Those that have a form of their own, also from gradients that are no contiguous tensors."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 10, 10, dtype=torch.float64, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(6, 6 // groups, kernel, kernel, dtype=torch.float64, generator=generator)
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, 1, groups)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(memory_format=torch.channels_last)
    pairs = ((stride, stride), (padding, padding), (1, 1), groups)
    dx, dw = input_gradient(grad, weight, x.shape, *pairs), weight_gradient(grad, x, (kernel, kernel), *pairs)
    assert torch.allclose(dx, conv2d_input(x.shape, weight, grad, *pairs), rtol=0, atol=1e-11)
    assert torch.allclose(dw, conv2d_weight(x, weight.shape, grad, *pairs), rtol=0, atol=1e-11)
