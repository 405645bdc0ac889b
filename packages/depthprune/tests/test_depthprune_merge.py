"""Merge algebra against running the two steps, over the whole parameter grid, in float64."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
from depthprune.merge import (
    Conv,
    Refused,
    bias_pad,
    compose,
    exact,
    from_module,
    front_pad,
    merge,
    merge_chain,
    ring,
    ring_share,
    to_module,
)
from depthprune.merge.borders import bias_map, compact, expand
from depthprune.merge.conv import blocks, densify
from depthprune.merge.dead import constant, is_dead, shrink
from depthprune.merge.flatten import through_flatten
from depthprune.merge.norm import batch_norm, layer_norm_affine, scale_after, scale_before
from depthprune.merge.parallel import add, identity, shifted
from depthprune.merge.pool import average, through_global_average
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

TOLERANCE = 1e-10


def random_conv(generator: torch.Generator, o: int, i: int, kernel, stride, padding, dilation, groups: int, bias: bool = True) -> Conv:
    weight = torch.randn(o, i // groups, *kernel, generator=generator, dtype=torch.float64)
    b = torch.randn(o, generator=generator, dtype=torch.float64) if bias else torch.zeros(o, dtype=torch.float64)
    return Conv(weight, b, tuple(stride), tuple(padding), tuple(dilation), groups)


@st.composite
def pairs(draw, axes: int = 2):
    """Two convolutions that fit, and an input that both can take: per-axis everything, uneven padding, any groups."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    g1, g2 = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (2, 4), (4, 2), (4, 4), (6, 4), (12, 12), (3, 12), (12, 3)]))
    i = 12 if g1 in (12, 6, 3) or g2 in (12, 3) else 4
    m = i * draw(st.sampled_from([1, 2])) if i == 4 else 12
    o = draw(st.sampled_from([4, 8])) if g2 in (1, 2, 4) else 12

    def one(o: int, i: int, g: int, kernels: list[int]) -> Conv:
        each = [
            (
                draw(st.sampled_from(kernels)),
                draw(st.integers(1, 2)),
                (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
                draw(st.integers(1, 2)),
            )
            for _ in range(axes)
        ]
        kernel, stride, padding, dilation = zip(*each, strict=True)
        return random_conv(generator, o, i, kernel, stride, padding, dilation, g)

    first, second = one(m, i, g1, [1, 2, 3, 5]), one(o, m, g2, [1, 3])
    x = torch.randn(2, i, *[draw(st.integers(9, 20)) for _ in range(axes)], generator=generator, dtype=torch.float64)
    if min(second.size(first.size(x.shape[2:]))) < 1:
        x = torch.randn(2, i, *[24] * axes, generator=generator, dtype=torch.float64)
    return first, second, x


def inside(y: torch.Tensor, rings) -> torch.Tensor:
    for axis, (front, back) in enumerate(rings, start=2):
        y = y.narrow(axis, min(front, y.shape[axis]), max(0, y.shape[axis] - front - back))
    return y


@settings(max_examples=400, deadline=None)
@given(pairs())
def test_composition_over_the_grid(case) -> None:
    first, second, x = case
    expected, actual = second(first(x)), compose(first, second)(x)
    assert actual.shape == expected.shape
    rings = ring(first, second, tuple(x.shape[2:]))
    for (front, _), (before, _), stride in zip(rings, second.padding, second.stride, strict=True):
        assert front <= ceil(before / stride)
    torch.testing.assert_close(inside(actual, rings), inside(expected, rings), rtol=0, atol=TOLERANCE)
    if exact(first, second):
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(pairs(axes=1))
def test_composition_on_one_axis(case) -> None:
    first, second, x = case
    rings = ring(first, second, tuple(x.shape[2:]))
    torch.testing.assert_close(inside(compose(first, second)(x), rings), inside(second(first(x)), rings), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("k1", [1, 2, 3, 5])
@pytest.mark.parametrize("k2", [1, 3])
@pytest.mark.parametrize("s1", [1, 2])
@pytest.mark.parametrize("s2", [1, 2])
@pytest.mark.parametrize("d1", [1, 2])
@pytest.mark.parametrize("d2", [1, 2])
@pytest.mark.parametrize("p1", [0, 1, 2])
def test_the_table_of_square_cases(k1, k2, s1, s2, d1, d2, p1) -> None:
    generator = torch.Generator().manual_seed(k1 * 100 + k2)
    for p2 in (0, 1):
        first = random_conv(generator, 4, 3, (k1, k1), (s1, s1), ((p1, p1),) * 2, (d1, d1), 1)
        second = random_conv(generator, 5, 4, (k2, k2), (s2, s2), ((p2, p2),) * 2, (d2, d2), 1)
        x = torch.randn(1, 3, 23, 26, generator=generator, dtype=torch.float64)
        expected, actual = second(first(x)), compose(first, second)(x)
        rings = ring(first, second, (23, 26))
        assert actual.shape == expected.shape
        assert p2 or all(pair == (0, 0) for pair in rings)
        assert all(max(pair) <= ceil(p2 / s2) for pair in rings)
        torch.testing.assert_close(inside(actual, rings), inside(expected, rings), rtol=0, atol=TOLERANCE)


def test_predicted_kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    three = random_conv(generator, 4, 4, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), 1)
    strided = replace(three, stride=(2, 2))
    assert (compose(three, three).kernel, compose(three, three).padding) == ((5, 5), ((2, 2),) * 2)
    assert (compose(strided, three).kernel, compose(strided, three).padding, compose(strided, three).stride) == (
        (7, 7),
        ((3, 3),) * 2,
        (2, 2),
    )
    chain = three
    for n in range(2, 5):
        chain = compose(chain, three)
        assert chain.kernel == (2 * n + 1, 2 * n + 1)


def test_the_border_is_really_wrong_where_predicted() -> None:
    generator = torch.Generator().manual_seed(1)
    three = random_conv(generator, 4, 4, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), 1)
    x = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    error = (compose(three, three)(x) - three(three(x))).abs().amax((0, 1))
    assert (error[1:-1, 1:-1] < TOLERANCE).all()
    assert (error[0] > 1e-3).all()
    assert (error[:, -1] > 1e-3).all()
    assert ring_share(ring(three, three, (8, 8)), (8, 8)) == pytest.approx(1 - (6 / 8) ** 2)
    assert ring_share(ring(three, three, (4, 4)), (4, 4)) == pytest.approx(0.75)


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_front_pad_then_merge_is_exact(case) -> None:
    first, second, x = case
    moved = front_pad([first, second])
    before = moved[1](moved[0](x))
    assert before.shape == second(first(x)).shape
    torch.testing.assert_close(compose(*moved)(x), before, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(merge(first, second, "front-pad")(x) if not exact(first, second) else before, before, rtol=0, atol=TOLERANCE)


def one_then_three(generator: torch.Generator, i: int, m: int, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = True):
    first = random_conv(generator, m, i, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 1, bias)
    second = random_conv(generator, m, m, (3, 3), (stride,) * 2, ((1, 1),) * 2, (dilation,) * 2, groups)
    return first, second, torch.randn(2, i, 9, 10, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 6), (1, 1, 6)])
def test_the_exact_border_modes(stride, dilation, groups) -> None:
    generator = torch.Generator().manual_seed(2)
    first, second, x = one_then_three(generator, 3, 6, stride, dilation, groups)
    expected = second(first(x))
    merged = merge(first, second, "bias-map", (9, 10))
    assert merged.mode == "bias-map"
    torch.testing.assert_close(merged(x), expected, rtol=0, atol=TOLERANCE)
    padded = merge(first, second, "bias-pad")
    torch.testing.assert_close(padded(x), bias_pad(first, second, x), rtol=0, atol=TOLERANCE)
    assert (padded(x) - expected).abs().max() > 1e-3
    with pytest.raises(Refused, match="no input constant"):
        merge(first, second, "const-pad")
    first, second, x = one_then_three(generator, 8, 6, stride, dilation, groups)
    merged = merge(first, second, "const-pad")
    assert merged.shift is not None
    torch.testing.assert_close(merged(x), second(first(x)), rtol=0, atol=TOLERANCE)
    assert merge(first, second, "auto").mode == "const-pad"
    first, second, x = one_then_three(generator, 3, 6, stride, dilation, groups, bias=False)
    assert merge(first, second).mode == "exact"
    torch.testing.assert_close(merge(first, second)(x), second(first(x)), rtol=0, atol=TOLERANCE)


def test_const_pad_residual_is_the_least_squares_error() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second, _ = one_then_three(generator, 3, 6)
    merged = merge(first, second, "const-pad", tolerance=1e9)
    solution = torch.linalg.lstsq(first.weight.flatten(1), -first.bias).solution
    assert merged.shift is not None
    torch.testing.assert_close(merged.shift, solution)


def test_patch_embedding_then_convolution_needs_no_remedy() -> None:
    """A 3x3 stride-3 convolution sees only padding outside, so the pair is exact with bias 0 and repairable with any."""
    generator = torch.Generator().manual_seed(4)
    for extra in (0, 1, 2):
        first = random_conv(generator, 4, 3, (3, 3), (3, 3), ((2, 2),) * 2, (1, 1), 1, bias=False)
        second = random_conv(generator, 5, 4, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), 1)
        x = torch.randn(1, 3, 14 + extra, 14 + extra, generator=generator, dtype=torch.float64)
        assert exact(first, second)
        torch.testing.assert_close(compose(first, second)(x), second(first(x)), rtol=0, atol=TOLERANCE)
        biased = replace(first, bias=torch.randn(4, dtype=torch.float64))
        torch.testing.assert_close(merge(biased, second, "bias-map", (14 + extra,) * 2)(x), second(biased(x)), rtol=0, atol=TOLERANCE)


def test_three_by_three_pairs_are_refused_with_a_reason() -> None:
    three = random_conv(torch.Generator().manual_seed(0), 4, 4, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), 1)
    for mode in ("auto", "exact", "const-pad", "bias-map", "bias-pad"):
        with pytest.raises(Refused):
            merge(three, three, mode, (8, 8))
    assert merge(three, three, "approx", (8, 8)).ring_share == pytest.approx(0.4375)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["bias-map", "front-pad"])
def test_inverted_residual_becomes_one_convolution(stride, mode) -> None:
    generator = torch.Generator().manual_seed(5)
    expand_ = random_conv(generator, 24, 4, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 1)
    depthwise = random_conv(generator, 24, 24, (3, 3), (stride,) * 2, ((1, 1),) * 2, (1, 1), 24)
    project = random_conv(generator, 4, 24, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 1)
    x = torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64)
    chain = [expand_, depthwise, project]
    merged = merge_chain(chain, mode, (9, 9))
    expected = x
    for conv in front_pad(chain) if mode == "front-pad" else chain:
        expected = conv(expected)
    assert merged.conv.kernel == (3, 3)
    assert merged.conv.stride == (stride, stride)
    assert merged.conv.padding == ((1, 1),) * 2
    torch.testing.assert_close(merged(x), expected, rtol=0, atol=TOLERANCE)
    if stride == 1:
        block = add(merged.conv, identity(merged.conv))
        extra = 0 if merged.map is None else merged.map
        torch.testing.assert_close(block(x) + extra, expected + x, rtol=0, atol=TOLERANCE)


def test_structure_is_kept() -> None:
    generator = torch.Generator().manual_seed(6)
    depthwise = random_conv(generator, 6, 6, (3, 3), (1, 1), ((0, 0),) * 2, (1, 1), 6)
    assert compose(depthwise, depthwise).groups == 6
    assert compose(depthwise, depthwise).weight.shape == (6, 1, 5, 5)
    pointwise = random_conv(generator, 8, 6, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 1)
    merged = compose(depthwise, pointwise)
    expected = torch.einsum("oi,iyx->oiyx", pointwise.weight[:, :, 0, 0], depthwise.weight[:, 0])
    torch.testing.assert_close(merged.weight, expected)
    four, six = (random_conv(generator, 12, 12, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), g) for g in (4, 6))
    assert compose(four, six).groups == 2
    dense = compose(densify(four), densify(six))
    torch.testing.assert_close(blocks(compose(four, six).weight, 2, 1)[0], dense.weight)


@pytest.mark.parametrize("dilated", [False, True])
def test_dilation_is_compressed(dilated) -> None:
    generator = torch.Generator().manual_seed(7)
    d = 2 if dilated else 1
    first = random_conv(generator, 4, 3, (3, 3), (1, 1), ((d, d),) * 2, (d, d), 1)
    second = random_conv(generator, 4, 4, (3, 3), (1, 1), ((0, 0),) * 2, (d, d), 1)
    merged = compose(first, second)
    assert merged.dilation == (d, d)
    assert merged.kernel == (5, 5)
    x = torch.randn(1, 3, 15, 15, dtype=torch.float64)
    torch.testing.assert_close(merged(x), second(first(x)), rtol=0, atol=TOLERANCE)


@settings(max_examples=100, deadline=None)
@given(pairs(), st.booleans())
def test_sum_of_parallel_branches(case, use_identity) -> None:
    left, _, x = case
    if use_identity:
        left = replace(left, stride=(1, 1), padding=tuple((r // 2, r - 1 - r // 2) for r in left.reach))
        right = identity(left)
        if left.out_channels != left.in_channels:
            with pytest.raises(Refused):
                add(left, right)
            return
    else:
        moved = tuple((p + 1, q + 3) for p, q in left.padding)
        right = random_conv(
            torch.Generator().manual_seed(8),
            left.out_channels,
            left.in_channels,
            [k + 4 for k in left.kernel],
            left.stride,
            moved,
            (1, 1),
            1,
        )
        right = replace(right, weight=right.weight[:, :, : left.reach[0] + 4, : left.reach[1] + 4])
        if right.kernel != tuple(r + 4 for r in left.reach):
            right = random_conv(
                torch.Generator().manual_seed(8),
                left.out_channels,
                left.in_channels,
                [r + 4 for r in left.reach],
                left.stride,
                moved,
                (1, 1),
                1,
            )
    torch.testing.assert_close(add(left, right)(x), left(x) + right(x), rtol=0, atol=TOLERANCE)


def test_downsample_skip_is_one_tap() -> None:
    generator = torch.Generator().manual_seed(9)
    branch = random_conv(generator, 8, 4, (3, 3), (2, 2), ((1, 1),) * 2, (1, 1), 1)
    skip = random_conv(generator, 8, 4, (1, 1), (2, 2), ((0, 0),) * 2, (1, 1), 1)
    merged = add(branch, skip)
    assert merged.kernel == (3, 3)
    torch.testing.assert_close(merged.weight[:, :, 1, 1], branch.weight[:, :, 1, 1] + skip.weight[:, :, 0, 0])
    with pytest.raises(Refused, match="strides"):
        add(branch, replace(skip, stride=(1, 1)))
    constant_c = torch.randn(4, dtype=torch.float64)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(shifted(skip, constant_c)(x - constant_c.reshape(-1, 1, 1)), skip(x))


def test_linear_pairs_and_parameters_of_a_bert_mlp() -> None:
    up, down = nn.Linear(768, 3072), nn.Linear(3072, 768)
    merged = compose(from_module(up), from_module(down))
    assert sum(p.numel() for layer in (up, down) for p in layer.parameters()) == 4_722_432
    assert merged.weight.numel() + merged.bias.numel() == 590_592
    x = torch.randn(3, 5, 768, dtype=torch.float64)
    torch.testing.assert_close(merged(x), down.double()(up.double()(x)), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(add(merged, identity(merged))(x), merged(x) + x, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_norm_folding(groups) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, 2, 1, 1, groups, bias=groups != 2).double()
    norm = nn.BatchNorm2d(8).double()
    with torch.no_grad():
        norm(torch.randn(20, 8, 5, 5).double() * 3 + 1)
        norm.weight.uniform_(-1, 2)
        norm.bias.normal_()
    with pytest.raises(Refused, match="training mode"):
        batch_norm(norm)
    norm.eval()
    x = torch.randn(2, 4, 9, 9).double()
    folded = scale_after(from_module(conv), batch_norm(norm))
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=0, atol=TOLERANCE)
    reference = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm)
    torch.testing.assert_close(folded.weight, reference.weight.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
def test_batch_norm_before_a_convolution(padding) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.bias.data.normal_()
    conv = nn.Conv2d(4, 6, 3, 1, padding, groups=2).double()
    folded, constant_c = scale_before(batch_norm(norm), from_module(conv))
    x = torch.randn(2, 4, 7, 7).double()
    if padding:
        padded = torch.empty(2, 4, 9, 9).double()
        padded[:] = constant_c.reshape(1, -1, 1, 1)
        padded[:, :, 1:-1, 1:-1] = x
        x_in, folded = padded, replace(folded, padding=((0, 0),) * 2)
    else:
        assert constant_c is None
        x_in = x
    torch.testing.assert_close(folded(x_in), conv(norm(x)), rtol=0, atol=TOLERANCE)


def test_layer_norm_affine_folding() -> None:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(6).double(), nn.Linear(6, 3).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(2, 5, 6).double()
    folded = layer_norm_affine(norm.weight.detach(), norm.bias.detach(), from_module(linear))
    torch.testing.assert_close(folded(nn.functional.layer_norm(x, (6,))), linear(norm(x)), rtol=0, atol=TOLERANCE)


def test_global_average_pool_commutes_with_one_by_one() -> None:
    generator = torch.Generator().manual_seed(10)
    head = random_conv(generator, 8, 4, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 2)
    linear = Conv(torch.randn(3, 8, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(through_global_average(head, linear)(x.mean((2, 3))), linear(head(x).mean((2, 3))), rtol=0, atol=TOLERANCE)
    with pytest.raises(Refused, match="1x1"):
        through_global_average(replace(head, stride=(2, 2)))
    pool = average(4, (2, 2), (2, 2), (1, 1))
    torch.testing.assert_close(pool(x), nn.functional.avg_pool2d(x, 2, 2, 1), rtol=0, atol=TOLERANCE)
    with pytest.raises(Refused, match="count_include_pad"):
        average(4, (2, 2), (2, 2), (1, 1), counts_padding=False)


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_flatten_and_linear_absorb_any_convolution(case) -> None:
    conv, _, x = case
    size = tuple(x.shape[2:])
    features = conv.out_channels * conv.size(size)[0] * conv.size(size)[1]
    linear = random_conv(torch.Generator().manual_seed(0), 3, features, (), (), (), (), 1)
    torch.testing.assert_close(through_flatten(conv, linear, size)(x.flatten(1)), linear(conv(x).flatten(1)), rtol=0, atol=10 * TOLERANCE)
    with pytest.raises(Refused, match="features"):
        through_flatten(conv, linear, (size[0] + 8, size[1]))


def test_front_pad_and_bias_pad_are_one_function_behind_a_one_by_one() -> None:
    """Why `prune` prepares with front-pad only: padding before a 1x1 layer gives the border its bias, which is what bias-pad pads with."""
    first, second, x = one_then_three(torch.Generator().manual_seed(13), 3, 6)
    moved = front_pad([first, second])
    torch.testing.assert_close(moved[1](moved[0](x)), bias_pad(first, second, x), rtol=0, atol=TOLERANCE)


def test_dead_branch_is_a_constant_with_a_border() -> None:
    generator = torch.Generator().manual_seed(11)
    first = random_conv(generator, 4, 3, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), 1)
    first = replace(first, weight=torch.zeros_like(first.weight))
    second = random_conv(generator, 5, 4, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), 1)
    assert is_dead(first)
    assert not is_dead(second)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(constant([first, second], (6, 6)).expand(2, -1, -1, -1), second(first(x)), rtol=0, atol=TOLERANCE)
    assert shrink(constant([first, second], (6, 6))).shape == (5, 6, 6)
    assert shrink(constant([first], (6, 6))).shape == (4, 1, 1)


@settings(max_examples=40, deadline=None)
@given(pairs(), st.integers(0, 3))
def test_bias_map_can_be_rebuilt_for_other_sizes(case, steps) -> None:
    n = 12 + 4 * steps  # the remainder by any of the strides stays
    first, second, _ = case
    first = replace(first, weight=first.weight[:, :, :1, :1], padding=((0, 0),) * 2, dilation=(1, 1))
    rings = ring(first, second, (12, 12))
    if second.size(first.size((n, n))) < (1, 1) or rings != ring(first, second, (n, n)):
        return
    values = compact(bias_map(first, second, (12, 12)), rings)
    expected = bias_map(first, second, (n, n))
    if all(m >= f + 1 + b for m, (f, b) in zip(second.size(first.size((12, 12))), rings, strict=True)) and all(
        m >= f + 1 + b for m, (f, b) in zip(expected.shape[1:], rings, strict=True)
    ):
        torch.testing.assert_close(expand(values, rings, tuple(expected.shape[1:])), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (2, 1))])
def test_modules_round_trip(padding) -> None:
    conv = random_conv(torch.Generator().manual_seed(12), 4, 6, (3, 2), (2, 1), padding, (1, 2), 2)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(to_module(conv, torch.float64)(x), conv(x))
    with pytest.raises(Refused, match="padding mode"):
        from_module(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    same = nn.Conv2d(2, 2, 4, padding="same", dilation=2, dtype=torch.float64)
    torch.testing.assert_close(from_module(same)(x[:, :2]), same(x[:, :2]))


def test_channels_must_fit() -> None:
    a = random_conv(torch.Generator().manual_seed(0), 4, 4, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 1)
    with pytest.raises(Refused, match="4 channels"):
        compose(a, random_conv(torch.Generator().manual_seed(0), 4, 6, (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), 1))
