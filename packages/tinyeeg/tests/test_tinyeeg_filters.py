"""Filters against scipy's Butterworth designs, against the recurrence that C runs, and in chunks."""

from __future__ import annotations

import numpy as np
import pytest
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from tinyeeg import filters


@pytest.mark.parametrize(("corner", "rate", "order"), [(1.0, 256, 2), (1.0, 256, 4), (0.5, 128, 2), (40.0, 256, 6)])
@pytest.mark.parametrize("kind", ["high", "low"])
def test_response_is_that_of_scipys_butterworth(corner, rate, order, kind):
    ours = filters.high_pass(corner, rate, order) if kind == "high" else filters.low_pass(corner, rate, order)
    freqs = np.linspace(0.05, rate / 2 - 0.5, 400)
    theirs = np.abs(signal.sosfreqz(signal.butter(order, corner, kind, fs=rate, output="sos"), freqs, fs=rate)[1])
    # Coefficients are float32 numbers, so the responses differ by their rounding only.
    np.testing.assert_allclose(filters.response(ours, freqs, rate), theirs, atol=5e-6)
    assert 20 * np.log10(filters.response(ours, np.array([corner]), rate)[0]) == pytest.approx(-3.0103, abs=0.01)


def test_notch_stops_mains_and_leaves_the_rest():
    gains = 20 * np.log10(filters.response(filters.notch(50, 256), np.array([10.0, 50.0, 90.0]), 256))
    assert gains[1] < -30
    assert np.abs(gains[[0, 2]]).max() < 0.1


@pytest.mark.parametrize("section", [*filters.high_pass(1, 256, 4), *filters.low_pass(30, 128, 6), *filters.notch(50, 256, 30)])
def test_sos_equals_the_recurrence_that_the_generated_c_runs(section):
    x = np.random.default_rng(0).normal(size=300)
    s1 = s2 = 0.0
    wanted = []
    for value in x:
        v3 = value - s2
        v1 = section.a1 * s1 + section.a2 * v3
        v2 = s2 + section.a2 * s1 + section.a3 * v3
        s1, s2 = 2 * v1 - s1, 2 * v2 - s2
        wanted.append(section.m0 * value + section.m1 * v1 + section.m2 * v2)
    np.testing.assert_allclose(filters.apply((section,), x)[0], wanted, atol=1e-10)
    assert np.abs(np.roots(section.sos()[3:])).max() < 1


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 400), max_size=6), seed=st.integers(0, 99))
def test_chunks_equal_the_whole(cuts, seed):
    x = np.random.default_rng(seed).normal(size=(2, 500)).cumsum(axis=1)
    sections = (*filters.high_pass(1, 256), *filters.notch(50, 256))
    whole, _ = filters.apply(sections, x)
    state, parts = None, []
    for part in np.split(x, sorted(cuts), axis=1):
        if part.shape[1]:
            done, state = filters.apply(sections, part, state)
            parts.append(done)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-10)


@pytest.mark.parametrize(("corner", "order", "word"), [(0, 2, "corner"), (128, 2, "corner"), (10, 3, "order"), (10, 0, "order")])
def test_impossible_filters_are_refused(corner, order, word):
    with pytest.raises(InputError, match=word):
        filters.high_pass(corner, 256, order)
