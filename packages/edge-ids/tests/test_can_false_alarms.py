"""What keeps benign traffic quiet: distances without carries, rests extrapolated, short training, modes never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_ids.can import engine
from edge_ids.can.detector import StreamingDetector
from edge_ids.can.frames import Frames, concat, make_frames
from edge_ids.can.generate import Message, Signal, default_vehicle, generate, like
from edge_ids.can.inject import Attack, inject
from edge_ids.can.profile import REST_HOURS, Profile, _fit_stuck, _rest_limit, _tick, fit, key_name, train
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


def signed64(payload: int) -> int:
    return int(np.array([payload & (2**64 - 1)], np.uint64).view(np.int64)[0])


@given(
    before=st.integers(0, 0xFFFF), step=st.integers(-engine.CARRY_STEP, engine.CARRY_STEP), byte=st.integers(0, 6), little=st.booleans(),
    rest=st.integers(0, 2**64 - 1),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_small_steps_of_a_word_are_carries_wherever_it_lies(before: int, step: int, byte: int, little: bool, rest: int) -> None:
    now = (before + step) & 0xFFFF
    order = "little" if little else "big"
    packed = [
        int.from_bytes((data := rest.to_bytes(8, "big"))[:byte] + word.to_bytes(2, order) + data[byte + 2 :], "big")
        for word in (before, now)
    ]
    found = engine.carries(signed64(packed[1]), signed64(packed[0]), 8) & (2**64 - 1)
    both = 0xFFFF << (48 - 8 * byte)
    # FF throughout is an attacker's payload as well as a value that is not available.
    assert found == (both if before >> 8 != now >> 8 and packed[1] != 2**64 - 1 else 0)


@given(payload=st.integers(0, 2**64 - 1), byte=st.integers(0, 7), drift=st.lists(st.integers(-100, 100), min_size=8, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_byte_forged_to_ff_is_no_carry(payload: int, byte: int, drift: list[int]) -> None:
    """Whatever the others do, without carries of their own: its number steps by 128 and more."""
    old = payload.to_bytes(8, "big")
    new = bytes([min(max(value + step, 0), 254) for value, step in zip(old, drift, strict=True)])
    new = new[:byte] + b"\xff" + new[byte + 1 :]
    forged = new[byte] - old[byte]
    if forged < 16:
        return  # it was nearly there
    found = engine.carries(signed64(int.from_bytes(new, "big")), signed64(int.from_bytes(old, "big")), 8)
    neighbours = [n for n in (byte - 1, byte + 1) if 0 <= n < 8 and new[n] != old[n]]
    if not neighbours:
        assert found >> (56 - 8 * byte) & 0xFF == 0


def traffic_of(words_NW: np.ndarray, period_us: int = 10_000) -> Frames:
    """One ID of four 16-bit words among constant others."""
    n = len(words_NW)
    data = words_NW.astype(">u2").view(np.uint8).reshape(n, 8)
    other = make_frames(np.arange(n) * period_us + 4_000, np.full(n, 0x200), np.tile(np.arange(8, dtype=np.uint8), (n, 1)))
    own = make_frames(np.arange(n) * period_us, np.full(n, 0x100), data)
    return concat([own, other]).sorted()


def test_a_number_that_first_passes_zero_or_a_round_value_after_training_is_no_alert() -> None:
    """A yaw rate that was positive for 20 s, a value that rested at 0x1000, minus one beside a constant zero."""
    n = 3000
    rate = np.round(40 + 39 * np.sin(np.arange(n) / 90)).astype(np.int64)
    rate[2000:] -= 45  # passes zero in small steps
    words = np.stack([rate & 0xFFFF, np.full(n, 0x1000), np.zeros(n, np.int64), np.full(n, 0x8000)], axis=1)
    words[2100::7, 1] = 0x0FFF
    words[2200::5, 2] = 0xFFFF
    words[2300:, 3] = 0x7FFD
    frames = traffic_of(words)
    first, later = split(frames, 19)
    profile = train(first)
    assert alerts(profile, later) == []
    forged = later.data.copy()
    hit = (later.id == 0x100) & (later.time_us < 19_900_000)  # before the benign numbers have shown those bits
    forged[hit, 2:6] = 0xE7
    assert any("format" in alert for alert in alerts(profile, replace(later, data=forged)))
    forged = later.data.copy()
    forged[hit] = 0xFF
    assert any("format" in alert for alert in alerts(profile, replace(later, data=forged)))


def test_a_counter_in_the_high_nibble_counts_by_one() -> None:
    """The low nibble is 0, so the byte steps by 16: it is the nibble that counts, and no bits of a checksum beside it."""
    n = 400
    data = np.zeros((n, 8), np.uint8)
    data[:, 6] = (np.arange(n) % 16) << 4
    data[:, 7] = (np.arange(n) % 16) * 0x1D ^ 0x4D
    frames = make_frames(np.arange(n) * 20_000, np.full(n, 0x14B), data)
    profile = fit(frames, ("can0",))
    assert profile.model.counter_KC3[0, 0].tolist() == [12, 4, 1]
    data[:, 6] = (np.arange(n) % 2) << 1
    data[:, 7] = 0
    assert not fit(make_frames(np.arange(n) * 20_000, np.full(n, 0x14B), data), ("can0",)).model.counter_KC3.any(), "a bit that toggles"


def test_a_new_rhythm_with_frames_left_out_is_a_mode() -> None:
    """Trace 48: an ID of 100 ms goes on at 20 and 40 ms; forged frames right after each legitimate one are found all the same."""
    rng = np.random.default_rng(4)
    slow = np.full(150, 100_000)
    fast = rng.choice([20_000, 40_000], 300) + rng.integers(-400, 400, 300)
    time_us = np.cumsum(np.concatenate([slow, fast]))
    other = np.arange(0, time_us[-1], 10_000)
    own = make_frames(time_us, np.full(len(time_us), 0x300), np.zeros((len(time_us), 8), np.uint8))
    frames = concat([own, make_frames(other, np.full(len(other), 0x100), np.zeros((len(other), 8), np.uint8))]).sorted()
    first, later = split(frames, 13)
    profile = train(first)
    assert alerts(profile, later) == []
    forged = inject(first, Attack("fabrication", 3, 8, 0x300), seed=1).frames
    assert any(alert.startswith("0x300 timing") for alert in alerts(profile, forged))


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


def test_forged_frames_halfway_between_those_of_a_fast_id_are_found_after_a_short_training() -> None:
    """An ID of 10 ms has no faster mode to go to, so an even rhythm does not excuse it."""
    n = 3000
    rows = make_frames(np.arange(n) * 10_000, np.full(n, 0x110), np.zeros((n, 8), np.uint8))
    first, later = split(rows, 15)
    profile = train(first)
    assert alerts(profile, later) == []
    forged = later.take(slice(300, 700))
    both = concat([later, replace(forged, time_us=forged.time_us + 5_000)]).sorted()
    assert alerts(profile, both) == ["0x110 timing"]


def one_id(time_us: np.ndarray, data: np.ndarray | None = None, key: int = 0x100) -> Frames:
    """Frames of one ID, beside another that keeps the bus awake."""
    if data is None:
        data = np.tile(np.arange(8, dtype=np.uint8), (len(time_us), 1))
    other = np.arange(0, time_us[-1], 10_000) + 3_000
    beside = make_frames(other, np.full(len(other), 0x200), np.zeros((len(other), 8), np.uint8))
    return concat([make_frames(time_us, np.full(len(time_us), key), data), beside]).sorted()


def with_forged(frames: Frames, time_us: np.ndarray) -> Frames:
    """More frames of 0x100 with the payload of its first one."""
    row = int(np.argmax(frames.id == 0x100))
    forged = make_frames(time_us, np.full(len(time_us), 0x100), np.repeat(frames.data[row : row + 1], len(time_us), axis=0))
    return concat([frames, forged]).sorted()


@pytest.mark.parametrize("period", [20_000, 100_000, 1_000_000])
@pytest.mark.parametrize(("share", "phase"), [(1, 0.35), (2, 0.1), (4, 0.06), (10, 0.03)])
def test_forged_frames_in_an_even_rhythm_are_no_mode_while_the_legitimate_ones_go_on(period: int, share: int, phase: float) -> None:
    """Forged at the period, or at a half, a quarter, a tenth of it: unevenly between frames that stay a period apart."""
    frames = one_id(np.arange(120) * period)
    first, later = split(frames, 60 * period / 1e6)
    profile = train(first)
    assert alerts(profile, later) == []
    begin = later.time_us[0] + 5 * period
    forged = np.arange(begin + int(phase * period), begin + 30 * period, period // share)
    assert "0x100 timing" in alerts(profile, with_forged(later, forged))


def test_a_payload_rests_too_long_only_while_its_frames_come_at_their_period() -> None:
    """A counter that never stood still: the slow frames of another state of its ECU may repeat it, a masquerade at the period may not."""
    n = 4000
    data = np.zeros((n, 8), np.uint8)
    data[:, 0] = np.arange(n) % 256
    data[:, 1] = np.random.default_rng(0).integers(0, 256, n)
    profile = fit(one_id(np.arange(n) * 100_000, data), ("can0",))
    assert profile.model.frozen_K[0] == engine.NEVER_RESTS
    held = np.tile(data[-1], (30, 1))
    assert not [name for name in alerts(profile, one_id(np.arange(30) * 1_200_000, held)) if name.endswith("frozen")]
    assert "0x100 frozen" in alerts(profile, one_id(np.arange(30) * 100_000, held))
    seldom = np.cumsum(np.random.default_rng(1).integers(10_000, 900_000, n))  # no period: nothing is said of how long it may rest
    assert fit(one_id(seldom, data), ("can0",)).model.frozen_K[0] == 0


def test_a_coarse_clock_makes_no_interval_shorter_than_its_tick() -> None:
    frames = generate(20, seed=1)[0]
    coarse = replace(frames, time_us=frames.time_us // 10_000 * 10_000)
    assert _tick(frames.time_us) == 0
    assert _tick(coarse.time_us) == 10_000
    fine, rough = (fit(part, ("can0",)).model.timing_evidence_KB[:, 0].max() for part in (frames, coarse))
    assert rough < fine


def test_forged_frames_are_found_where_the_logger_loses_frames() -> None:
    """Long intervals are no credit for frames in excess if none of them is made up for."""
    rng = np.random.default_rng(6)
    time_us = (np.arange(3000) * 20_000)[rng.random(3000) > 0.2]
    first, later = split(one_id(time_us), 30)
    profile = train(first)
    assert alerts(profile, later) == []
    own = later.time_us[later.id == 0x100][100:160]
    assert "0x100 timing" in alerts(profile, with_forged(later, own + 300))


def test_an_event_driven_id_leaves_a_least_time_between_frames_and_a_forger_does_not() -> None:
    rng = np.random.default_rng(7)
    time_us = np.cumsum(rng.integers(1, 40, 800) * 20_000)
    first, later = split(one_id(time_us), time_us[400] / 1e6)
    profile = train(first)
    assert alerts(profile, later) == []
    own = later.time_us[later.id == 0x100][100:120]
    assert "0x100 timing" in alerts(profile, with_forged(later, own + 300))


def test_frames_held_up_in_training_do_not_hide_forged_ones() -> None:
    """One frame in fifty is late by nearly a period, so that the next one follows at once: that is no interval to get used to."""
    rng = np.random.default_rng(8)
    time_us = np.arange(3000) * 10_000 + np.where(rng.random(3000) < 0.02, 9_700, 0)
    first, later = split(one_id(time_us), 15)
    profile = train(first)
    assert alerts(profile, later) == []
    own = later.time_us[later.id == 0x100][100:160]
    assert "0x100 timing" in alerts(profile, with_forged(later, own + 300))


def test_a_blinker_that_training_never_saw_is_no_forgery() -> None:
    """A status of 500 ms that is also sent at every change, at any phase; forged values alternate with legitimate ones."""
    change = np.cumsum(np.full(60, 230_000)) + 20_000_000
    regular = np.arange(90) * 500_000
    time_us = np.sort(np.r_[regular, change])
    data = np.zeros((len(time_us), 8), np.uint8)
    data[:, 4] = 2 * (np.searchsorted(change, time_us, side="right") % 2)
    first, later = split(one_id(time_us, data), 19)
    assert alerts(train(first), later) == []
    calm = first.take(slice(len(first) // 2, None))
    own = calm.time_us[calm.id == 0x100][3:15]
    attacked = with_forged(calm, own + 30_000)
    attacked.data[np.isin(attacked.time_us, own + 30_000), 4] = 0x0E
    assert any("0x100" in alert for alert in alerts(train(first), attacked))


def test_ids_that_stop_together_are_an_ecu_that_is_switched_off_and_one_alone_is_missed() -> None:
    every = [0x100, 0x110, 0x120, 0x130, 0x140]
    time_us = np.arange(400) * 100_000
    parts = [make_frames(time_us + 5_000 * n, np.full(400, key), np.zeros((400, 8), np.uint8)) for n, key in enumerate(every)]
    first, later = split(concat(parts).sorted(), 20)
    profile = train(first)
    assert alerts(profile, later) == []
    stop = later.time_us[0] + 8_000_000
    alone = later.take((later.id != 0x120) | (later.time_us < stop))
    assert alerts(profile, alone) == ["0x120 silence"]
    ecu = later.take(~np.isin(later.id, every[:3]) | (later.time_us < stop))
    assert alerts(profile, ecu) == []
    found = StreamingDetector(profile).process(ecu).detections
    assert {(key_name(one.key), one.detector, one.anomaly) for one in found} == {(f"0x{key:03X}", "silence", True) for key in every[:3]}


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
