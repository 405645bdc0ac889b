"""The choice of segments against brute force, and prices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from depthprune.latency import compare, interleaved, median_interval
from depthprune.merge import Conv, Merged
from depthprune.prices import Macs, Memory, make
from depthprune.segments import best
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st


def brute_force(n: int, cost, combine: str) -> float:
    """Try all 2^(n-1) ways to cut."""
    lowest = math.inf
    for cuts in itertools.product([False, True], repeat=n - 1):
        points = [0, *[i + 1 for i, cut in enumerate(cuts) if cut], n]
        values = [cost(i, j) for i, j in itertools.pairwise(points)]
        lowest = min(lowest, max(values) if combine == "max" else sum(values))
    return lowest


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 10), st.integers(0, 2**31), st.sampled_from(["sum", "max"]))
def test_shortest_path_equals_brute_force(n, seed, combine) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(n + 1, n + 1, generator=generator).tolist()
    refused = torch.rand(n + 1, n + 1, generator=generator).lt(0.3).tolist()

    def cost(i: int, j: int) -> float:
        return math.inf if j > i + 1 and refused[i][j] else table[i][j] * (j - i) ** 0.7

    value, segments = best(n, cost, combine)
    assert value == pytest.approx(brute_force(n, cost, combine))
    assert segments[0][0] == 0
    assert segments[-1][1] == n
    assert all(a[1] == b[0] for a, b in itertools.pairwise(segments))
    each = [cost(i, j) for i, j in segments]
    assert value == pytest.approx(max(each) if combine == "max" else sum(each))


def test_equal_costs_prefer_fewer_segments() -> None:
    assert best(3, lambda i, j: float(j - i))[1] == [(0, 3)]


def test_prices_of_one_convolution() -> None:
    conv = Conv(torch.zeros(8, 4, 3, 3), torch.zeros(8), (2, 2), ((1, 1), (1, 1)), (1, 1))
    merged = Merged(conv, "exact")
    assert Macs().layer(merged, (1, 4, 9, 9)) == 8 * 4 * 9 * 25
    assert Memory().layer(merged, (1, 4, 9, 9)) == 4 * (4 * 81 + 8 * 25)  # weights are not live tensors
    linear = Merged(Conv(torch.zeros(5, 7), torch.zeros(5)), "exact")
    assert Macs().layer(linear, (2, 3, 7)) == 35 * 3
    with pytest.raises(InputError, match="unknown policy"):
        make("speed")


def test_latency_of_a_layer_is_measured_once_per_shape() -> None:
    price = make("latency", "torch")
    conv = Merged(Conv(torch.zeros(4, 4, 3, 3), torch.zeros(4), (1, 1), ((1, 1), (1, 1)), (1, 1)), "exact")
    assert price.layer(conv, (2, 4, 8, 8)) == price.layer(conv, (1, 4, 8, 8)) >= 0
    assert price.addition((1, 4, 8, 8)) >= 0
    onnx = make("latency", "onnxruntime")
    mapped = Merged(conv.conv, "bias-map", shift=torch.zeros(4), map=torch.zeros(4, 8, 8))
    assert onnx.layer(mapped, (1, 4, 8, 8)) >= 0
    assert onnx.layer(Merged(Conv(torch.zeros(5, 7), torch.zeros(5)), "exact"), (1, 3, 7)) >= 0


def test_runs_are_interleaved_and_intervals_hold_the_median() -> None:
    order: list[str] = []
    interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=4, warmup=0)
    assert "".join(order) == "abbaabba"
    limited = interleaved({"a": lambda: None, "b": lambda: None}, repeats=500, warmup=0, limit_s=0.0)
    assert {len(values) for values in limited.values()} == {20}
    result = compare(lambda: sum(range(200)), lambda: sum(range(4000)), repeats=50)
    assert result.low <= result.ratio <= result.high
    assert result.ratio > 1
    values = torch.arange(101.0).numpy()
    assert median_interval(values) == (50.0, 40.0, 61.0)
