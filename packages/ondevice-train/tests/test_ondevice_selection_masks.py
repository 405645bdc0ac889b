"""Bit masks and frozen norms: torch's gradients, counted bytes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ondevice_train.ops import masks
from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d, freeze_norms, frozen_norm, thaw_norms
from torch import nn
from torch.nn import functional as F

REFERENCE = {
    "relu": (masks.relu, F.relu),
    "relu6": (masks.relu6, F.relu6),
    "hardtanh": (lambda x: masks.hardtanh(x, -0.5, 2.0), lambda x: F.hardtanh(x, -0.5, 2.0)),
    "leaky_relu": (lambda x: masks.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "hardsigmoid": (masks.hardsigmoid, F.hardsigmoid),
}


def saved(function, *inputs):
    """Run `function`; return its output and the bytes of the unique storages it saved that no input owns."""
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function(*inputs)
    owned = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    return output, sum(size for pointer, size in seen.items() if pointer not in owned)


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_piecewise_equals_torch_and_saves_one_bit(kind, layout):
    ours, theirs = REFERENCE[kind]
    x = torch.randn(3, 5, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    x[0, 0, 0, :4] = torch.tensor([0.0, 6.0, -3.0, 3.0])
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x[:, :, :, ::2]
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, size = saved(ours, a)
    z = theirs(b)
    assert torch.equal(y, z)
    assert size == math.ceil(x.numel() / 8) == masks.saved_bytes(kind, x.numel())
    g = torch.randn_like(z)
    (da,), (db,) = torch.autograd.grad(y, a, g), torch.autograd.grad(z, b, g)
    # torch keeps the constant 1/6 of hardsigmoid in float32.
    torch.testing.assert_close(da, db, rtol=1e-7 if kind == "hardsigmoid" else 1e-15, atol=0)


@pytest.mark.parametrize("kind", masks.SMOOTH)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smooth_derivative_within_its_bound(kind, bits, dtype):
    x = torch.linspace(-8, 8, 1001, dtype=dtype).requires_grad_()
    y, size = saved(lambda t: masks.smooth(t, kind, bits), x)
    z = getattr(F, kind)(x)
    assert torch.equal(y, z)
    assert size == math.ceil(1001 * bits / 8)
    (da,), (db,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(z.sum(), x)
    error = (da - db).abs()
    rounding = 1e-9 if dtype == torch.float64 else 1e-6
    assert error.max() <= masks.DERIVATIVE_ERROR[bits] * (1 + rounding)
    if kind == "hardswish":
        assert error[x.abs() > 3].max() < (1e-12 if dtype == torch.float64 else rounding)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
@settings(max_examples=50, deadline=None)
def test_pack_round_trip(bits):
    mask = torch.tensor(bits)
    packed = masks.pack(mask)
    assert packed.numel() == math.ceil(len(bits) / 8)
    assert torch.equal(masks.unpack(packed, len(bits)).bool(), mask)


def test_module_in_place_and_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Softmax(1))
    x = torch.randn(2, 3, 6, 6)
    before = model(x)
    assert masks.pack_activations(model) == ["1", "3"]
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    model(x).sum().backward()
    masks.unpack_activations(model)
    assert type(model[1]) is nn.ReLU6
    assert type(model[3]) is nn.Hardswish


def test_nothing_saved_without_gradient():
    _, size = saved(masks.relu6, torch.randn(100))
    assert size == 0


@pytest.mark.parametrize("train", ["none", "bias", "both"])
def test_frozen_norm_equals_eval_batch_norm(train):
    generator = torch.Generator().manual_seed(1)
    norm = nn.BatchNorm2d(5).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(5, generator=generator))
        norm.running_var.copy_(torch.rand(5, generator=generator) + 0.1)
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    expected = norm(x)
    g = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    grads = torch.autograd.grad(expected, [x, norm.weight, norm.bias], g)

    model = nn.Sequential(norm)
    assert freeze_norms(model, train) == ["0"]
    frozen = model[0]
    assert isinstance(frozen, FrozenBatchNorm2d)
    hidden = x * 1.0  # not a leaf, so that saving it would be seen
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.data_ptr()) or t, lambda t: t):
        y = frozen_norm(hidden, frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias, frozen.eps)
    assert (hidden.data_ptr() in seen) == (train == "both")
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.backward(g)
    torch.testing.assert_close(x.grad, grads[0], rtol=1e-12, atol=1e-12)
    for parameter, gradient, on in zip((frozen.weight, frozen.bias), grads[1:], (train == "both", train != "none"), strict=True):
        if on:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
        else:
            assert parameter.grad is None
    thaw_norms(model)
    assert model[0] is norm
    torch.testing.assert_close(norm.eval()(x), expected)


def test_frozen_norm_keeps_state_dict_keys():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    keys = list(model.state_dict())
    freeze_norms(model)
    assert sorted(model.state_dict()) == sorted(keys)


def test_deepcopy_of_a_frozen_norm_goes_back_to_its_own_parameters():
    import copy

    model = nn.Sequential(nn.BatchNorm2d(4))
    freeze_norms(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].bias.add_(1)
    thaw_norms(twin)
    thaw_norms(model)
    assert torch.equal(twin[0].bias, torch.ones(4))
    assert torch.equal(model[0].bias, torch.zeros(4))
