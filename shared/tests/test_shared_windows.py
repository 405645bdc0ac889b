"""Windows of timed streams: gaps split, irregular time is refused, parts share no sample."""

import itertools

import numpy as np
import pytest
from edge_shared.data import windows
from edge_shared.errors import InputError
from hypothesis import given
from hypothesis import strategies as st


def stream(lengths, rate=100.0, gap=1.0, seed=0):
    """Stretches of regular samples with gaps between, times jittered by a tenth of a period."""
    generator = np.random.default_rng(seed)
    times, start = [], 0.0
    for length in lengths:
        times.append(start + np.arange(length) / rate + generator.uniform(-0.1, 0.1, length) / rate)
        start = times[-1][-1] + gap
    times = np.concatenate(times)
    return times, np.stack([np.arange(len(times)), -np.arange(len(times))], axis=1).astype(float)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5).filter(lambda lengths: max(lengths) > 12),
    st.integers(1, 12),
    st.integers(1, 15),
    st.integers(0, 3),
)
def test_windows_are_exactly_the_runs_without_a_gap(lengths, length, stride, seed):
    times, values = stream(lengths, seed=seed)
    got = windows.sliding(times, values, seconds=length / 100, step=stride / 100, rate=100.0)
    expected = []
    start = 0
    for number, size in enumerate(lengths):
        expected += [(start + first, number) for first in range(0, size - length + 1, stride)]
        start += size
    assert list(zip(got.first.tolist(), got.segment.tolist(), strict=True)) == expected
    for row, first in enumerate(got.first):
        assert np.array_equal(got.values[row], values[first : first + length])
    assert np.array_equal(got.start, times[got.first])
    assert np.allclose(got.end - got.start, length / 100, atol=0.003)


def test_the_rate_is_found_and_a_single_channel_is_enough():
    times, values = stream([50, 50], rate=128.0)
    got = windows.sliding(times, values[:, 0], seconds=0.25)
    assert got.rate == pytest.approx(128, rel=0.02)
    assert got.values.shape == (2, 32, 1)


@pytest.mark.parametrize(
    ("times", "match"),
    [
        ([0.0, 0.1, 0.1, 0.2], "row 2"),
        ([0.0, 0.1, 0.05, 0.2], "must increase"),
        ([0.0, np.nan, 0.2], "row 1 is not finite"),
        (np.cumsum(np.random.default_rng(0).exponential(0.01, 500)), "irregular"),
        (np.cumsum([0.01, 0.02] * 100), "irregular"),
        (np.arange(100) * 0.008, "irregular"),
        ([0.0], "at least two"),
    ],
)
def test_irregular_time_is_refused(times, match):
    with pytest.raises(InputError, match=match):
        windows.segments(times, rate=100.0)


def test_bad_samples_and_sizes_are_refused():
    times, values = stream([50])
    values[7, 1] = np.nan
    with pytest.raises(InputError, match="row 7 channel 1"):
        windows.sliding(times, values, seconds=0.1)
    values[7, 1] = 0
    for arguments, match in [({"seconds": 0.0}, "seconds"), ({"seconds": 1.0}, "no window"), ({"seconds": 0.1, "step": -1.0}, "step")]:
        with pytest.raises(InputError, match=match):
            windows.sliding(times, values, rate=100.0, **arguments)
    with pytest.raises(InputError, match="shape"):
        windows.sliding(times[:-1], values, seconds=0.1)


@given(st.integers(0, 3), st.integers(1, 10), st.integers(1, 10), st.sampled_from([0.0, 0.03, 0.5]))
def test_clear_of_is_the_brute_force_distance(seed, length, stride, embargo):
    times = np.arange(200) / 100.0
    every = windows.sliding(times, times, seconds=length / 100, step=stride / 100, rate=100.0)
    chosen = np.random.default_rng(seed).random(len(every)) < 0.1
    others = every.select(chosen)
    clear = windows.clear_of(every, others, embargo)
    for row in range(len(every)):
        # In whole samples, so that no rounding can decide.
        near = any(
            round((every.start[row] - end) * 100) < round(embargo * 100) and round((start - every.end[row]) * 100) < round(embargo * 100)
            for start, end in zip(others.start, others.end, strict=True)
        )
        assert clear[row] == (not near)


@given(st.integers(1, 10), st.integers(1, 10), st.sampled_from([0.0, 0.05, 0.2]))
def test_parts_share_no_sample_and_keep_the_embargo(length, stride, embargo):
    times, values = stream([150, 150])
    every = windows.sliding(times, values, seconds=length / 100, step=stride / 100, rate=100.0)
    split = windows.split_windows(every, (0.5, 0.25, 0.25), embargo)
    samples = [{int(first) + offset for first in every.first[rows] for offset in range(length)} for rows in split.parts]
    for (one, before), (other, after) in itertools.combinations(zip(samples, split.parts, strict=True), 2):
        assert not one & other
        assert every.start[after].min() - every.end[before].max() >= embargo - 1e-4
    with pytest.raises(InputError, match="embargo"):
        windows.split_windows(every, embargo=100.0)


def test_a_window_with_two_labels_is_not_pure():
    times = np.arange(12) / 10
    every = windows.sliding(times, times, seconds=0.4, rate=10.0)
    pure, labels = windows.pure_labels(every, [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    assert pure.tolist() == [True, False, True]
    assert labels.tolist() == [0, 0, 2]
