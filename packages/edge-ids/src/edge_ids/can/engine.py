"""The streaming engine: O(1) integer work per frame, constant memory, the same code for a batch and for one frame.

Each detector turns a frame into *evidence*, the surprise ``-log2 p`` of what it saw under the benign training data, in
1/16 bit. Evidence adds up per ID and detector in a leaky sum (a one-sided CUSUM with a drift of one bit per frame),
and an alarm is raised when the sum crosses the detector's threshold for that ID. An ID seen only a few times in training
cannot give much evidence per frame, so short training makes the detector slow rather than noisy.

The detectors of payload *values* (bits, jump, frozen) generalise only as far as training has seen the vehicle: a car that
stood still in training surprises them when it drives off. Until the profile is mature (`L_MATURE`, see
`edge_ids.can.profile`) what they find is an *anomaly*, reported but neither an alert nor part of a frame's score.

All state is int64, so that batch, streaming, resumed and C runs agree bit for bit. Legend of array suffixes: ``_K`` known
IDs, ``_D`` detectors, ``_H`` slots of a hash table, ``_U`` slots for unknown IDs.
"""

# ruff: noqa: N815 - dimensions are suffixes of names, see the legend
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edge_ids.can._jit import compiled

DETECTORS = ("timing", "format", "payload-bits", "payload-jump", "counter", "frozen", "ensemble", "silence", "unknown-id", "bus-load")
TIMING, FORMAT, BITS, JUMP, COUNTER, FROZEN, ENSEMBLE, SILENCE, UNKNOWN, LOAD = range(10)
PER_ID = 7  # detectors 0..6 keep a sum per ID; silence is a timer per ID; the last two are of the whole bus
ONE_BIT = 16
ENSEMBLE_CAP = 24 * ONE_BIT
ALIEN_BITS = 16  # no benign trace at hand ever showed more than 13 unseen bits at once, however short the training
HINT = 16  # shift of a detector's bit in the mask of a frame when it may raise anomalies only
BINS = 256  # interval bins, 8 per octave of microseconds
UNKNOWN_SLOTS = 1024
BUCKET_US = 100_000
COOL_DOWN_US = 2_000_000
HOLD_US = 2_000_000
NEW_CAPTURE_US = 60_000_000
FORGET_US = 60_000_000
NEVER = -(1 << 62)


class Model(NamedTuple):
    """What training found; plain arrays, see `edge_ids.can.profile` for how they are made.

    Attributes:
        hash_key_H, hash_slot_H: open addressing from frame key to index of the known ID; an empty slot is -1.
        lengths_K: bit mask of payload lengths seen.
        length_evidence_K: evidence of another length, or of `ALIEN_BITS` and more unseen payload bits in one frame.
        timing_evidence_KB: evidence of an interval by its logarithmic bin (short side only).
        median_K: median interval, us; 0 if never repeated.
        silence_K: an ID silent for longer, us, is missing; 0 for an ID without a reliable period.
        ones_K, zeros_K: payload bits ever seen at 1 and at 0.
        byte_evidence_K: evidence of one byte with bits never seen.
        jump_evidence_KJ: evidence of a Hamming distance to the previous payload (0..64).
        step_KB: largest change of each payload byte between frames, modulo 256 and in either direction (0..128), with a margin.
        counter_KC3: right shift, bits, step of up to four counters; bits 0 ends the list.
        counter_evidence_KC: evidence of a break.
        frozen_K: a payload repeated this often is frozen; 0 for an ID whose payload may rest.
        threshold_KD: thresholds of the per-ID detectors.
        limits: bus-wide numbers, index by the `L_` constants.
    """

    hash_key_H: Any
    hash_slot_H: Any
    lengths_K: Any
    length_evidence_K: Any
    timing_evidence_KB: Any
    median_K: Any
    silence_K: Any
    ones_K: Any
    zeros_K: Any
    byte_evidence_K: Any
    jump_evidence_KJ: Any
    step_KB: Any
    counter_KC3: Any
    counter_evidence_KC: Any
    frozen_K: Any
    threshold_KD: Any
    limits: Any


L_UNKNOWN_EVIDENCE, L_UNKNOWN_THRESHOLD, L_LOAD_BITS, L_LOAD_THRESHOLD, L_STALL_US, L_GAP_US, L_MATURE = range(7)


class State(NamedTuple):
    """What changes while frames pass; its size depends on the model only, never on the traffic.

    Attributes:
        last_K: time of the last frame, us, or `NEVER`.
        interval_K: the last interval, us.
        backlog_K: how much earlier than the period the frames come, us (see `_timing`).
        payload_K, has_payload_K, run_K: previous payload, whether there is one, how often it was repeated.
        novel_K, novel_time_K: unseen bits already counted, and when one was last seen.
        sums_KD, active_KD, alerted_KD, evidence_KD: leaky sums (1/16 bit), alarm state, time of the last alert and of
            the last evidence.
        silent_K, silent_alerted_K: an alarm of silence is on; time of its last alert.
        unknown_U: recent unknown keys, -1 for a free slot.
        bus: bus-wide numbers, index by the `B_` constants.
    """

    last_K: Any
    interval_K: Any
    backlog_K: Any
    payload_K: Any
    has_payload_K: Any
    run_K: Any
    novel_K: Any
    novel_time_K: Any
    sums_KD: Any
    active_KD: Any
    alerted_KD: Any
    evidence_KD: Any
    silent_K: Any
    silent_alerted_K: Any
    unknown_U: Any
    bus: Any


(
    B_TIME, B_BUCKET, B_BITS, B_UNKNOWN_SUM, B_UNKNOWN_TIME, B_UNKNOWN_ACTIVE, B_UNKNOWN_ALERTED, B_LOAD_SUM, B_LOAD_ACTIVE,
    B_LOAD_ALERTED, B_POINTER, B_FRAMES, B_UNKNOWN_FRAMES, B_ERRORS, B_GAPS, B_ALERTS, B_ANOMALIES,
) = range(17)  # fmt: skip


def new_state(known: int) -> State:
    """A state before the first frame, for a model of `known` IDs."""

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.int64)

    bus = zeros(17)
    for index in (B_TIME, B_BUCKET, B_UNKNOWN_TIME, B_UNKNOWN_ALERTED, B_LOAD_ALERTED):
        bus[index] = NEVER
    k = max(known, 1)
    return State(
        last_K=np.full(k, NEVER), interval_K=zeros(k), backlog_K=zeros(k), payload_K=zeros(k), has_payload_K=zeros(k), run_K=zeros(k),
        novel_K=zeros(k), novel_time_K=np.full(k, NEVER), sums_KD=zeros(k, PER_ID), active_KD=zeros(k, PER_ID),
        alerted_KD=np.full((k, PER_ID), NEVER), evidence_KD=np.full((k, PER_ID), NEVER),
        silent_K=zeros(k), silent_alerted_K=np.full(k, NEVER),
        unknown_U=np.full(UNKNOWN_SLOTS, -1), bus=bus,
    )  # fmt: skip


@compiled
def interval_bin(us: int) -> int:
    """Logarithmic bin of a positive interval: 8 per octave, 0 to `BINS` - 1."""
    if us < 8:
        return max(us, 0)
    octave = 0
    while us >= 16:
        us >>= 1
        octave += 1
    return min(8 * octave + us, 255)


@compiled
def popcount(x: int) -> int:
    """Number of ones among the 64 bits of an int64."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x & 0x00FF00FF00FF00FF) + ((x >> 8) & 0x00FF00FF00FF00FF)) * 0x0001000100010001 >> 48 & 0x7F


@compiled
def slot_of(hash_key_H: Any, hash_slot_H: Any, key: int) -> int:
    """Index of a known ID, or -1."""
    mask = len(hash_key_H) - 1
    i = (key ^ (key >> 7) ^ (key >> 15)) & mask
    while hash_key_H[i] >= 0:
        if hash_key_H[i] == key:
            return hash_slot_H[i]
        i = (i + 1) & mask
    return -1


@compiled
def _alert(out: Any, n: int, frame: int, time: int, key: int, detector: int, level: int, threshold: int) -> int:
    if n < len(out):
        out[n, 0] = frame
        out[n, 1] = time
        out[n, 2] = key
        out[n, 3] = detector
        out[n, 4] = level
        out[n, 5] = threshold
        return n + 1
    return n


@compiled
def tick(m: Model, s: State, keys_K: Any, now: int, out: Any, n: int) -> int:
    """Look for silent IDs at time `now` without a frame (the live timer); returns the number of alerts in `out`."""
    for k in range(len(keys_K)):
        n = _silence(m, s, keys_K, k, now, out, n)
    return n


@compiled
def _silence(m: Model, s: State, keys_K: Any, k: int, now: int, out: Any, n: int) -> int:
    if m.silence_K[k] > 0 and s.last_K[k] != NEVER and s.silent_K[k] == 0 and now - s.last_K[k] > m.silence_K[k]:
        s.silent_K[k] = 1
        if now - s.silent_alerted_K[k] >= COOL_DOWN_US:
            s.silent_alerted_K[k] = now
            s.bus[B_ALERTS] += 1
            n = _alert(out, n, s.bus[B_FRAMES], now, keys_K[k], SILENCE, now - s.last_K[k], m.silence_K[k])
    return n


@compiled
def _forget_times(s: State) -> None:
    for k in range(len(s.last_K)):
        s.last_K[k] = NEVER
        s.backlog_K[k] = 0
        s.has_payload_K[k] = 0
        s.run_K[k] = 0


@compiled
def step(
    m: Model, s: State, keys_K: Any, time: int, key: int, error: int, length: int, payload: int, out: Any, n: int
) -> tuple[int, int, int]:
    """Take one frame.

    Args:
        m, s: model and state (the state is changed).
        keys_K: keys of the known IDs.
        time: us.
        key: see `edge_ids.can.detector.keys_of`.
        error: 1 for an error frame: counted, not scored.
        length: payload bytes.
        payload: first eight bytes, big endian, zero filled at the end.
        out: int64 (A, 6), alerts: frame number, time, key, detector, level, threshold.
        n: alerts already in `out`.

    Returns:
        Alerts in `out`; highest ratio of a sum to its threshold times 1000 (halved for a frame that added no evidence);
        bit mask of the detectors whose alarm is on and that this frame adds to (anomalies shifted by `HINT`).
    """
    bus = s.bus
    frame = bus[B_FRAMES]
    known = len(keys_K)
    ratio = 0
    raised = 0

    # Clock: a step back or a long gap starts a new capture; a stall of the logger is taken out of all intervals.
    if bus[B_TIME] != NEVER:
        passed = time - bus[B_TIME]
        if passed < 0 or passed > NEW_CAPTURE_US:
            _forget_times(s)
            bus[B_BUCKET] = NEVER
            bus[B_UNKNOWN_TIME] = time
            bus[B_GAPS] += 1
        elif passed > m.limits[L_STALL_US]:
            bus[B_GAPS] += 1
            bus[B_BUCKET] = NEVER
            for k in range(known):
                if s.last_K[k] != NEVER:
                    s.last_K[k] += passed
            if passed > m.limits[L_GAP_US]:
                bus[B_ALERTS] += 1
                n = _alert(out, n, frame, time, -1, SILENCE, passed, m.limits[L_GAP_US])
                raised |= 1 << SILENCE
    bus[B_TIME] = time
    bus[B_FRAMES] = frame + 1

    # Bus load: bits on the wire (without stuffing) per 100 ms.
    if bus[B_BUCKET] == NEVER:
        bus[B_BUCKET] = time
        bus[B_BITS] = 0
    elif time - bus[B_BUCKET] >= BUCKET_US:
        if bus[B_BITS] > m.limits[L_LOAD_BITS]:
            bus[B_LOAD_SUM] = min(bus[B_LOAD_SUM] + 10 * ONE_BIT, 2 * m.limits[L_LOAD_THRESHOLD])
        else:
            bus[B_LOAD_SUM] = max(bus[B_LOAD_SUM] - 5 * ONE_BIT, 0)
        if bus[B_LOAD_SUM] >= m.limits[L_LOAD_THRESHOLD]:
            if bus[B_LOAD_ACTIVE] == 0 and time - bus[B_LOAD_ALERTED] >= COOL_DOWN_US:
                bus[B_LOAD_ALERTED] = time
                bus[B_ALERTS] += 1
                n = _alert(out, n, frame, time, -1, LOAD, bus[B_BITS], m.limits[L_LOAD_BITS])
            bus[B_LOAD_ACTIVE] = 1
        elif bus[B_LOAD_SUM] == 0:
            bus[B_LOAD_ACTIVE] = 0
        bus[B_BUCKET] = time
        bus[B_BITS] = 0
    bus[B_BITS] += (67 if key & 0x20000000 else 47) + 8 * length

    # Silence: one known ID is looked at per frame, round robin, so the work per frame is constant.
    if known > 0:
        bus[B_POINTER] = (bus[B_POINTER] + 1) % known
        n = _silence(m, s, keys_K, bus[B_POINTER], time, out, n)

    if error:
        bus[B_ERRORS] += 1
        return n, ratio, raised

    k = slot_of(m.hash_key_H, m.hash_slot_H, key)
    if k < 0:
        # Unknown ID: a new one is a full surprise, a recent one a single bit; two bits leak away per second.
        bus[B_UNKNOWN_FRAMES] += 1
        if bus[B_UNKNOWN_TIME] == NEVER:
            bus[B_UNKNOWN_TIME] = time
        leak = max(time - bus[B_UNKNOWN_TIME], 0) * (2 * ONE_BIT) // 1_000_000
        bus[B_UNKNOWN_TIME] += leak * 1_000_000 // (2 * ONE_BIT)
        bus[B_UNKNOWN_SUM] = max(bus[B_UNKNOWN_SUM] - leak, 0)
        threshold = m.limits[L_UNKNOWN_THRESHOLD]
        if bus[B_UNKNOWN_SUM] < threshold // 4:
            bus[B_UNKNOWN_ACTIVE] = 0
        u = (key ^ (key >> 5) ^ (key >> 13)) & (UNKNOWN_SLOTS - 1)
        evidence = ONE_BIT
        if s.unknown_U[u] != key:
            s.unknown_U[u] = key
            evidence = m.limits[L_UNKNOWN_EVIDENCE]
        bus[B_UNKNOWN_SUM] = min(bus[B_UNKNOWN_SUM] + evidence, 2 * threshold)
        if bus[B_UNKNOWN_SUM] >= threshold:
            if bus[B_UNKNOWN_ACTIVE] == 0 and time - bus[B_UNKNOWN_ALERTED] >= COOL_DOWN_US:
                bus[B_UNKNOWN_ALERTED] = time
                bus[B_ALERTS] += 1
                n = _alert(out, n, frame, time, key, UNKNOWN, bus[B_UNKNOWN_SUM], threshold)
            bus[B_UNKNOWN_ACTIVE] = 1
            raised |= 1 << UNKNOWN
        return n, 1000 * bus[B_UNKNOWN_SUM] // threshold, raised

    # --- evidence of this frame, by detector
    e_timing = 0
    e_format = 0
    in_time = 0
    e_bits = 0
    e_jump = 0
    e_counter = 0
    e_frozen = 0
    drift_bits = ONE_BIT

    last = s.last_K[k]
    s.last_K[k] = time
    s.silent_K[k] = 0
    median = m.median_K[k]
    if last != NEVER and median > 0:
        # The backlog tells a forged extra frame (more frames than time allows) from one that was only held up
        # (a long interval, then short ones): after a normal interval it fades, otherwise period minus interval adds.
        interval = max(time - last, 0)
        if 3 * interval > 2 * median and 2 * interval < 3 * median:
            s.backlog_K[k] = s.backlog_K[k] * 7 // 8
            in_time = 1
        else:
            s.backlog_K[k] = min(max(s.backlog_K[k] + median - interval, -8 * median), 8 * median)
        # A slow ID that falls into an even rhythm at a third of its period or less has changed its mode; forged frames
        # between the legitimate ones cannot keep an even rhythm.
        even = 8 * abs(interval - s.interval_K[k]) <= interval and 3 * interval <= median and median >= 50_000
        s.interval_K[k] = interval
        if 2 * s.backlog_K[k] >= median and not even:
            e_timing = m.timing_evidence_KB[k, interval_bin(interval)]

    if (m.lengths_K[k] >> min(length, 62)) & 1 == 0:
        e_format = m.length_evidence_K[k]

    if key & 0x40000000 == 0:
        present = -1 if length >= 8 else -1 << (64 - 8 * length) if length > 0 else 0
        unseen = ((payload & ~m.ones_K[k]) | (~payload & ~m.zeros_K[k])) & present
        if unseen != 0:
            if s.novel_time_K[k] != NEVER and time - s.novel_time_K[k] > FORGET_US:
                s.novel_K[k] = 0
            s.novel_time_K[k] = time
            fresh = unseen & ~s.novel_K[k]
            if popcount(fresh) >= ALIEN_BITS:
                e_format = max(e_format, 3 * m.length_evidence_K[k])
            s.novel_K[k] |= unseen
            byte = 0xFF
            for _ in range(8):
                if fresh & byte:
                    e_bits += m.byte_evidence_K[k]
                byte <<= 8
            if e_bits == 0:
                drift_bits = ONE_BIT // 4  # still in unseen territory: forget slowly
        if s.has_payload_K[k]:
            changed = payload ^ s.payload_K[k]
            e_jump = m.jump_evidence_KJ[k, popcount(changed)]
            if changed != 0:
                for b in range(8):
                    difference = ((payload >> (8 * b)) - (s.payload_K[k] >> (8 * b))) & 0xFF
                    if min(difference, 256 - difference) > m.step_KB[k, b]:
                        e_jump += m.byte_evidence_K[k]
            for c in range(4):
                width = m.counter_KC3[k, c, 1]
                if width == 0:
                    break
                shift = m.counter_KC3[k, c, 0]
                span = (1 << width) - 1
                if (((payload >> shift) - (s.payload_K[k] >> shift)) & span) != m.counter_KC3[k, c, 2]:
                    e_counter = max(e_counter, m.counter_evidence_KC[k, c])
            s.run_K[k] = s.run_K[k] + 1 if changed == 0 else 0
            if m.frozen_K[k] > 0 and s.run_K[k] >= m.frozen_K[k]:
                e_frozen = 2 * ONE_BIT if s.run_K[k] > m.frozen_K[k] else 32 * ONE_BIT
        s.payload_K[k] = payload
        s.has_payload_K[k] = 1

    # --- leaky sums and alarms
    mature = m.limits[L_MATURE]
    alone = False
    if mature and in_time:
        e_counter *= 2  # no frame is missing, so the break is not the logger's
    # To the ensemble no detector gives more than half of its base threshold at once: it takes two of them.
    # The detectors of values have no vote: when a vehicle enters new territory they are wrong together.
    total = min(e_timing, ENSEMBLE_CAP) + min(e_format, ENSEMBLE_CAP) + min(e_counter, ENSEMBLE_CAP)
    for d in range(PER_ID):
        evidence = total
        drift = ONE_BIT
        if d == TIMING:
            evidence = e_timing
        elif d == FORMAT:
            evidence = e_format
        elif d == BITS:
            evidence = e_bits
            drift = drift_bits
        elif d == JUMP:
            evidence = e_jump
        elif d == COUNTER:
            evidence = e_counter
        elif d == FROZEN:
            evidence = e_frozen
        threshold = m.threshold_KD[k, d]
        if evidence > 0:
            s.evidence_KD[k, d] = time
        elif s.sums_KD[k, d] > 0 and time - s.evidence_KD[k, d] > HOLD_US + 4 * median:
            s.sums_KD[k, d] = 0  # whatever it was is over; the next event is a new alarm
        level = s.sums_KD[k, d] + evidence - drift
        level = min(max(level, 0), 2 * threshold)
        s.sums_KD[k, d] = level
        if d == ENSEMBLE and alone:
            continue  # a single detector says it already
        if level == 0:
            s.active_KD[k, d] = 0
            continue
        hint = mature == 0 and d in (BITS, JUMP, FROZEN)
        if level >= threshold:
            if s.active_KD[k, d] == 0 and time - s.alerted_KD[k, d] >= COOL_DOWN_US:
                s.alerted_KD[k, d] = time
                bus[B_ANOMALIES if hint else B_ALERTS] += 1
                n = _alert(out, n, frame, time, key, d, level, threshold)
            s.active_KD[k, d] = 1
            alone = alone or not hint
            if evidence > 0:
                raised |= 1 << (d + HINT if hint else d)
        elif 4 * level < threshold:
            s.active_KD[k, d] = 0
        if hint:
            continue
        share = 1000 * level // threshold
        ratio = max(ratio, share if evidence > 0 else share // 2)
    return n, ratio, raised


@compiled
def process(
    m: Model, s: State, keys_K: Any, time_N: Any, key_N: Any, error_N: Any, length_N: Any, payload_N: Any, start: int,
    ratio_N: Any, raised_N: Any, out: Any,
) -> tuple[int, int]:  # fmt: skip
    """Take frames `start` to the end, or until `out` might overflow; returns next frame to take and alerts in `out`."""
    n = 0
    room = len(out) - PER_ID - 4  # what a single frame can raise at most
    for i in range(start, len(time_N)):
        if n > room:
            return i, n
        n, ratio_N[i], raised_N[i] = step(m, s, keys_K, time_N[i], key_N[i], error_N[i], length_N[i], payload_N[i], out, n)
    return len(time_N), n


@compiled
def highest_sums(m: Model, s: State, keys_K: Any, time_N: Any, key_N: Any, length_N: Any, payload_N: Any, highest_KD: Any) -> int:
    """Highest sum per ID and detector into `highest_KD`; returns that of unknown IDs."""
    out = np.zeros((16, 6), np.int64)
    unknown = 0
    for i in range(len(time_N)):
        step(m, s, keys_K, time_N[i], key_N[i], 0, length_N[i], payload_N[i], out, 0)
        k = slot_of(m.hash_key_H, m.hash_slot_H, key_N[i])
        if k >= 0:
            for d in range(PER_ID):
                highest_KD[k, d] = max(highest_KD[k, d], s.sums_KD[k, d])
        unknown = max(unknown, s.bus[B_UNKNOWN_SUM])
    return unknown
