"""The integer reference against arithmetic written out in whole numbers and fractions."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcu_vision.integer import IntegerNet, Op, quantise_multiplier, requantise, run


@given(st.floats(1e-9, 1e6))
def test_a_multiplier_is_the_factor_to_31_bits(factor):
    multiplier, shift = quantise_multiplier(factor)
    if multiplier == 0:
        assert factor < 2.0**-30
    else:
        assert 2**30 <= multiplier < 2**31
        assert abs(multiplier * 2.0 ** (shift - 31) / factor - 1) <= 2.0**-30


@given(st.integers(-(2**31), 2**31 - 1), st.integers(2**30, 2**31 - 1), st.integers(-30, 0))
def test_requantisation_rounds_the_exact_product_half_up(value, multiplier, shift):
    exact = Fraction(value * multiplier) * Fraction(2) ** (shift - 31)
    got = int(requantise(np.array([value], dtype=np.int64), multiplier, shift)[0])
    assert got == floor(exact + Fraction(1, 2))


def layer(kind, shape, out, kernel, stride, padding, rng, zero):
    height, width = ((shape[axis] + 2 * padding - kernel) // stride + 1 for axis in (0, 1))
    size = {"conv": (out, kernel, kernel, shape[2]), "depthwise": (kernel, kernel, shape[2]), "linear": (out, shape[2])}[kind]
    out_shape = (1, 1, out) if kind == "linear" else (height, width, out)
    pairs = [quantise_multiplier(factor) for factor in rng.uniform(1e-4, 3e-3, out)]
    return Op(
        kind, "layer", ("in",), "out", shape, out_shape, (zero,), int(rng.integers(-20, 20)), -128, 127, (kernel,) * 2, (stride,) * 2,
        (padding,) * 2, rng.integers(-127, 128, size).astype(np.int8), rng.integers(-5000, 5000, out).astype(np.int32),
        np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int8),
    )  # fmt: skip


def written_out(op, x):
    """One image, one output at a time, in Python's own integers."""
    result = np.zeros(op.out_shape, dtype=np.int8)
    for row, column, out in np.ndindex(*op.out_shape):
        total = int(op.bias[out])
        for i in range(op.kernel[0]):
            for j in range(op.kernel[1]):
                y, z = row * op.stride[0] - op.padding[0] + i, column * op.stride[1] - op.padding[1] + j
                if not (0 <= y < x.shape[0] and 0 <= z < x.shape[1]):
                    continue  # padding is the input's zero
                for channel in [out] if op.kind == "depthwise" else range(x.shape[2]):
                    place = {"conv": (out, i, j, channel), "depthwise": (i, j, channel), "linear": (out, channel)}[op.kind]
                    total += (int(x[y, z, channel]) - op.in_zeros[0]) * int(op.weight[place])
        scaled = floor(Fraction(total * int(op.multiplier[out])) * Fraction(2) ** (int(op.shift[out]) - 31) + Fraction(1, 2))
        result[row, column, out] = max(op.low, min(op.high, scaled + op.out_zero))
    return result


def net_of(op):
    table = np.arange(-128, 128, dtype=np.int16).astype(np.int8)[None].repeat(op.in_shape[2], 0)
    return IntegerNet("one", "in", "out", op.in_shape, (op,), table, 1.0, 0, {}, tuple(map(str, range(op.out_shape[2]))))


@pytest.mark.parametrize(
    ("kind", "shape", "out", "kernel", "stride", "padding"),
    [
        ("conv", (5, 5, 3), 4, 3, 1, 1),
        ("conv", (6, 6, 2), 3, 5, 2, 2),
        ("conv", (4, 4, 5), 6, 1, 1, 0),
        ("depthwise", (5, 5, 4), 4, 3, 2, 1),
        ("depthwise", (3, 3, 3), 3, 5, 1, 2),
        ("linear", (1, 1, 7), 5, 1, 1, 0),
    ],
)
def test_kernels_equal_the_sums_written_out(kind, shape, out, kernel, stride, padding):
    rng = np.random.default_rng(0)
    op = layer(kind, shape, out, kernel, stride, padding, rng, zero=-9)
    images = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    got = run(net_of(op), images).reshape(2, *op.out_shape)
    for image, value in zip(images, got, strict=True):
        np.testing.assert_array_equal(value, written_out(op, (image.astype(np.int16) - 128).astype(np.int8)))


def test_an_addition_is_the_sum_of_the_real_values():
    """Within half a step of the output's grid, and the operands' tiny rounding."""
    rng = np.random.default_rng(1)
    scales, zeros, out_scale, out_zero = (0.02, 0.05), (-5, 17), 0.06, 3
    widest = 2 * max(scales)
    pairs = [quantise_multiplier(value) for value in (scales[0] / widest, scales[1] / widest, widest / (2**20 * out_scale))]
    op = Op(
        "add", "add", ("in", "in"), "out", (4, 4, 3), (4, 4, 3), zeros, out_zero, -128, 127,
        multiplier=np.array([m for m, _ in pairs], np.int32), shift=np.array([s for _, s in pairs], np.int8),
    )  # fmt: skip
    images = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    got = run(net_of(op), images).reshape(images.shape).astype(float)
    q = images.astype(float) - 128
    real = scales[0] * (q - zeros[0]) + scales[1] * (q - zeros[1])
    expected = np.clip(real / out_scale + out_zero, -128, 127)
    assert np.abs(got - expected).max() <= 0.5 + 1e-4


def test_pooling_rounds_the_mean_half_away_from_zero():
    op = Op("pool", "pool", ("in",), "out", (1, 2, 2), (1, 1, 2), (0,), 0, -128, 127, kernel=(1, 2))
    images = np.array([[[[128 + 1, 128 - 1], [128 + 2, 128 - 2]]]], dtype=np.uint8)  # means 1.5 and -1.5
    np.testing.assert_array_equal(run(net_of(op), images), [[2, -2]])
