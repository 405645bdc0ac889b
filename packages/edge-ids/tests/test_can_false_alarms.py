"""What keeps benign traffic quiet: distances without carries, rests extrapolated, short training, modes never seen."""

from __future__ import annotations

import numpy as np
import pytest
from edge_ids.can import engine
from edge_ids.can.detector import StreamingDetector
from edge_ids.can.frames import Frames
from edge_ids.can.generate import Message, Signal, default_vehicle, generate, like
from edge_ids.can.inject import Attack, inject
from edge_ids.can.profile import REST_HOURS, Profile, _fit_stuck, _rest_limit, key_name, train
from edge_ids.can.relations import _matches
from hypothesis import given, settings
from hypothesis import strategies as st


def split(frames: Frames, seconds: float) -> tuple[Frames, Frames]:
    cut = int(np.searchsorted(frames.time_us, frames.time_us[0] + int(seconds * 1e6)))
    return frames.take(slice(0, cut)), frames.take(slice(cut, None))


def alerts(profile: Profile, frames: Frames) -> list[str]:
    return [
        f"{key_name(found.key)} {found.detector}" for found in StreamingDetector(profile).process(frames).detections if not found.anomaly
    ]


@given(value=st.integers(0, 2**16 - 2), shift=st.integers(0, 48), rest=st.integers(0, 2**64 - 1))
@settings(max_examples=300, deadline=None)
def test_a_number_that_steps_by_one_moves_two_bits_at_most(value: int, shift: int, rest: int) -> None:
    """Wherever the number lies and whatever carries: 0x0FFF to 0x1000 is no further than 0x1000 to 0x1001."""
    before = (rest & ~(0xFFFF << shift)) | value << shift
    after = before + (1 << shift)
    signed = np.array([before ^ after], np.uint64).view(np.int64)[0]
    assert 1 <= engine.distance(signed) <= 2
    assert engine.popcount(signed) == (value ^ (value + 1)).bit_count()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_distance_is_that_of_gray_codes(a: int, b: int) -> None:
    signed = np.array([a ^ b], np.uint64).view(np.int64)[0]
    assert engine.distance(signed) == ((a ^ a >> 1) ^ (b ^ b >> 1)).bit_count()


def test_a_bit_that_toggles_is_no_repetition() -> None:
    rng = np.random.default_rng(0)
    for period in (2, 3, 8, 16):
        p = np.resize(rng.integers(0, 2**62, period), 5000)
        assert _matches(p)[0] == 0
    assert _matches(np.resize(rng.integers(0, 2**62, 400), 5000))[0] > 100


@pytest.mark.parametrize("rest", [0.02, 0.2, 0.5])
def test_limit_of_rests_holds_on_fresh_noise(rest: float) -> None:
    """Geometric rests: in forty times the training, none as long as the limit, which is not absurdly high either."""
    rng = np.random.default_rng(1)
    limit = _rest_limit(rng.random(18_000) >= rest, 180.0, 100)
    moved = rng.random(720_000) >= rest
    longest = int((np.diff(np.flatnonzero(np.r_[True, moved, True])) - 1).max())
    expected = np.log(18_000 * REST_HOURS * 20) / np.log(1 / rest)  # where one run in that many is as long
    assert longest < limit < 3 * expected + 3 * engine.NEVER_RESTS


def test_limit_of_rests_where_there_are_none_or_long_ones() -> None:
    assert _rest_limit(np.ones(1000, np.bool_), 10, 100) == engine.NEVER_RESTS
    moved = np.ones(5000, np.bool_)
    moved[100:190] = False
    assert _rest_limit(moved, 50, 100) == 0


def test_smooth_signals_may_rest_and_noise_may_not() -> None:
    """A sine's walk stands still near its extremes; a byte of noise and a counter do not."""
    rng = np.random.default_rng(2)
    n = 18_000
    walk = np.round(100 * (1 + np.sin(np.cumsum(rng.normal(0, 0.06, n)))))
    data = np.zeros((n, 8), np.uint8)
    data[:, 0], data[:, 1], data[:, 2] = walk, rng.integers(0, 256, n), np.arange(n)
    tables = {"stuck_KB": np.zeros((1, 8), np.int64), "counter_KC3": np.zeros((1, 4, 3), np.int64)}
    tables["counter_KC3"][0, 0] = (40, 8, 1)
    difference = np.diff(data, axis=0)
    _fit_stuck(tables, 0, data, difference, 1800.0)
    assert (tables["stuck_KB"][0] > 0).tolist() == [False] * 5 + [True, True, False]  # byte 0 is the last


def test_a_stop_after_a_short_drive_is_no_alert() -> None:
    """Wheel speeds carry noise while the car moves; that they never rested in a minute of driving says nothing."""
    frames, _ = generate(400, seed=9)
    wheels = frames.data[frames.id == 0x110]
    moving = np.flatnonzero(wheels[1:].astype(np.int64).sum(axis=1) != wheels[:-1].astype(np.int64).sum(axis=1))
    start = frames.time_us[frames.id == 0x110][moving[len(moving) // 3]]
    rest = frames.take(frames.time_us >= start)
    first, later = split(rest, 30)
    assert alerts(train(first), later) == []


@pytest.mark.parametrize(("period", "fast"), [(200_000, 40_000), (100_000, 20_000), (40_000, 10_000), (20_000, 10_000)])
def test_a_mode_that_a_short_training_missed_is_no_forgery(period: int, fast: int) -> None:
    """An ID that goes faster while braking, trained without a brake; forged frames of the same ID are still found."""
    vehicle = (*default_vehicle()[:6], Message(0x321, period, 60, 8, (Signal("speed", 0, 2, 100), Signal("brake", 3)), 0, fast))
    frames, _ = generate(200, vehicle, seed=5)
    own = np.diff(frames.time_us[frames.id == 0x321])
    slow_until = frames.time_us[frames.id == 0x321][np.argmax(own < 0.6 * period)] - 100_000
    seconds = (slow_until - frames.time_us[0]) / 1e6
    assert 5 < seconds < 150, "this seed starts without braking, and brakes later"
    first, later = split(frames, seconds)
    profile = train(first)
    assert alerts(profile, later) == []
    calm = first.take(first.time_us >= first.time_us[-1] - 5_000_000)
    forged = inject(calm, Attack("fabrication", 1, 4, 0x321), seed=1).frames
    assert any(alert.startswith("0x321") for alert in alerts(profile, forged))


def test_jitter_of_a_fifth_of_the_period_is_no_flood() -> None:
    vehicle = (*default_vehicle()[:4], Message(0x345, 20_000, 3_000, 8, (Signal("noise", 0, 1, 9, 100),)))
    first, later = split(generate(330, vehicle, seed=3)[0], 30)
    assert alerts(train(first), later) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("traffic", ["default vehicle", "like a trace"])
def test_three_hours_of_benign_traffic_raise_three_alerts_at_most(traffic: str) -> None:
    vehicle = None if traffic == "default vehicle" else like(generate(60, seed=2)[0])
    first, later = split(generate(1800 + 10_800, vehicle, seed=21)[0], 1800)
    assert len(alerts(train(first), later)) <= 3
