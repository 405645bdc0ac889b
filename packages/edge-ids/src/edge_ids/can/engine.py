"""The streaming engine: O(1) integer work per frame, constant memory, the same code for a batch and for one frame.

Each detector turns a frame into *evidence*, the surprise ``-log2 p`` of what it saw under the benign training data, in
1/16 bit. Evidence adds up per ID and detector in a leaky sum (a one-sided CUSUM with a drift of one bit per frame),
and an alarm is raised when the sum crosses the detector's threshold for that ID. An ID seen only a few times in training
cannot give much evidence per frame, so short training makes the detector slow rather than noisy.

The detectors of payload *values* (bits, jump, frozen, cross, repeat, tiny) generalise only as far as training has seen the
vehicle: a car that stood still in training surprises them when it drives off. Until the profile is mature (`L_MATURE`, see
`edge_ids.can.profile`) what they find is an *anomaly*, reported but neither an alert nor part of a frame's score. Rules
that do not depend on where the vehicle is (counters, checksums, a payload with a counter that never once repeated) alert from the start.

All state is int64, so that batch, streaming, resumed and C runs agree bit for bit. Legend of array suffixes: ``_K`` known
IDs, ``_D`` detectors, ``_H`` slots of a hash table, ``_U`` slots for unknown IDs, ``_B`` payload bytes or bins, ``_R`` IDs
with a memory of payloads, ``_T`` its slots, ``_F`` features and ``_M`` hidden units of the tiny network.
"""

# ruff: noqa: N815 - dimensions are suffixes of names, see the legend
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edge_ids.can._jit import compiled

DETECTORS = (
    "timing", "format", "payload-bits", "payload-jump", "counter", "frozen", "ensemble", "silence", "unknown-id", "bus-load",
    "checksum", "cross", "repeat", "tiny",
)  # fmt: skip
TIMING, FORMAT, BITS, JUMP, COUNTER, FROZEN, ENSEMBLE, SILENCE, UNKNOWN, LOAD, CHECKSUM, CROSS, REPEAT, TINY = range(14)
# Silence is a timer per ID, unknown-id and bus-load are of the whole bus; all others keep a sum per ID (unused columns stay 0).
COLUMNS = 14
# The two that mix what others say come last: while one of the others has its alarm on, they keep quiet.
ORDER = np.array([TIMING, FORMAT, BITS, JUMP, COUNTER, FROZEN, CHECKSUM, CROSS, REPEAT, ENSEMBLE, TINY])
ONE_BIT = 16
ENSEMBLE_CAP = 24 * ONE_BIT
TINY_CAP = 12 * ONE_BIT
ALIEN_BITS = 16  # unseen bits at once, carries apart, that no value the vehicle moves on to makes, however short the training
ALIEN_BYTE = 8  # likewise in one byte; 7 count too once the profile is mature
CARRY_STEP = 127  # a byte forged to FF or 00 makes its number step by 128 and more
HINT = 16  # shift of a detector's bit in the mask of a frame when it may raise anomalies only
BINS = 256  # interval bins, 8 per octave of microseconds
UNKNOWN_SLOTS = 1024
REPEAT_SLOTS = 1024
SHORT_LAG = 16  # a bit that toggles repeats at short distances by itself
FEATURES = 18  # of the tiny network: evidence and sum of nine detectors
HIDDEN = 12
POLYNOMIALS = (0x07, 0x1D, 0x2F, 0x31, 0x9B)  # CRC-8: SMBus, SAE J1850, AUTOSAR H2F, Maxim (not reflected), WCDMA
BUCKET_US = 100_000
COOL_DOWN_US = 2_000_000
HOLD_US = 2_000_000
FAST_US = 15_000  # IDs with a shorter period have no faster mode, however short the training
MODE_US = 4_000  # no ID of a vehicle has a mode faster than this
TOGETHER_US = 1_000_000  # IDs that fall silent within this time of each other belong to one ECU that is switched off
COMPANIONS = 2  # and so many others make it one
LATE_PERIODS = 4  # an ID is late for company after so many periods
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
        pace_K: the period, us, of a periodic ID: its median; of any other the shortest time it leaves between frames.
        lossy_K: 1 if a long interval of the ID means frames lost, or nothing; 0 if it may mean one held up.
        backlog_K: short intervals are evidence only while the backlog is at least this, us.
        grid_K: how far frames of a periodic ID lie off a grid of its period, us; 0 where frames keep none.
        grid_evidence_K: evidence of frames in between while those on the grid go on.
        silence_K: an ID silent for longer, us, is missing; 0 for an ID without a reliable period.
        ones_K, zeros_K: payload bits ever seen at 1 and at 0.
        byte_evidence_K: evidence of one byte with bits never seen.
        jump_evidence_KJ: evidence of a `distance` of the signals to the previous payload (0..64).
        step_KB: largest change of each payload byte between frames, modulo 256 and in either direction (0..128), with a margin;
            128 where a counter is.
        counter_KC3: right shift, bits, step of up to four counters; bits 0 ends the list.
        counter_evidence_KC: evidence of a break.
        frozen_K: a payload repeated this often is frozen; 0 for an ID without a period or whose payload may rest, `NEVER_RESTS` for one that
            was never seen twice in a row.
        stuck_KB: a byte that stays the same through so many changes of the payload is stuck; 0 where that is normal.
        checksum_K4: kind (0 none; 1 XOR and 2 sum of all bytes, 3 sum of the others, 4 sum of nibbles modulo 16, from 5 on
            CRC-8 of the others by `POLYNOMIALS`), byte that carries it, constant, payload length.
        checksum_evidence_K: evidence of a checksum that does not fit.
        cross_KCX: up to three redundant signals per ID: own shift and kind (1 byte, 2 big-endian and 3 little-endian word;
            0 ends the list), partner ID, its shift and kind, slope (1/65536) and intercept, tolerance, lowest and highest
            partner value in training, age in us from which a partner is stale.
        cross_evidence_KC: evidence of a value outside of the tolerance.
        repeat_K: row of the payload memory, -1 for none.
        signal_mask_K: payload bits that carry signals: all but counters and the checksum.
        repeat_evidence_K: evidence of two pairs of payloads that repeat at the same distance.
        tiny_MF, tiny_bias_M, tiny_out_M: int8 weights (held as int64) of the tiny network, its 32-bit bias and output weights.
        tiny_meta: on (0 or 1), shift after the hidden layer, output bias, multiplier to 1/16 bit (1/65536).
        threshold_KD: thresholds of the per-ID detectors.
        limits: bus-wide numbers, index by the `L_` constants.
    """

    hash_key_H: Any
    hash_slot_H: Any
    lengths_K: Any
    length_evidence_K: Any
    timing_evidence_KB: Any
    median_K: Any
    pace_K: Any
    lossy_K: Any
    backlog_K: Any
    grid_K: Any
    grid_evidence_K: Any
    silence_K: Any
    ones_K: Any
    zeros_K: Any
    byte_evidence_K: Any
    jump_evidence_KJ: Any
    step_KB: Any
    counter_KC3: Any
    counter_evidence_KC: Any
    frozen_K: Any
    stuck_KB: Any
    checksum_K4: Any
    checksum_evidence_K: Any
    cross_KCX: Any
    cross_evidence_KC: Any
    repeat_K: Any
    signal_mask_K: Any
    repeat_evidence_K: Any
    tiny_MF: Any
    tiny_bias_M: Any
    tiny_out_M: Any
    tiny_meta: Any
    threshold_KD: Any
    limits: Any


NEVER_RESTS = 10
CROSS_CHECKS = 3
(X_SHIFT, X_KIND, X_PARTNER, X_PARTNER_SHIFT, X_PARTNER_KIND, X_SLOPE, X_INTERCEPT, X_TOLERANCE, X_LOW, X_HIGH, X_STALE) = range(11)


L_UNKNOWN_EVIDENCE, L_UNKNOWN_THRESHOLD, L_LOAD_BITS, L_LOAD_THRESHOLD, L_STALL_US, L_GAP_US, L_MATURE = range(7)


class State(NamedTuple):
    """What changes while frames pass; its size depends on the model only, never on the traffic.

    Attributes:
        last_K: time of the last frame, us, or `NEVER`.
        interval_K: the last interval, us.
        backlog_K: how much earlier than the pace the frames come, us (see `backlog_after`).
        anchor_K: time of the last frame on the grid of the period, us; extras_K: frames since; shortest_K, longest_K: their
            intervals, us; moved_K: whether one of them changed the payload; given_K: evidence of their intervals.
        payload_K, has_payload_K, run_K: previous payload, whether there is one, how often it was repeated, a period apart.
        novel_K, novel_time_K: unseen bits already counted, and when one was last seen.
        stuck_KB: for each byte, changes of the payload, a period apart, that it did not take part in.
        count_K: frames of the ID; lag_K: distance, in frames, of the last repeated pair of payloads; matches_K: how many pairs
            in a row repeated at that distance.
        memory_RT: hashes of pairs of payloads (high half) and when they came (low half), direct mapped.
        sums_KD, active_KD, alerted_KD, evidence_KD: leaky sums (1/16 bit), alarm state, time of the last alert and of
            the last evidence.
        silent_K, silent_alerted_K: an alarm of silence is on; time of its last alert.
        unknown_U: recent unknown keys, -1 for a free slot.
        features_F: what the tiny network saw last.
        bus: bus-wide numbers, index by the `B_` constants.
    """

    last_K: Any
    interval_K: Any
    backlog_K: Any
    anchor_K: Any
    extras_K: Any
    shortest_K: Any
    longest_K: Any
    moved_K: Any
    given_K: Any
    payload_K: Any
    has_payload_K: Any
    run_K: Any
    novel_K: Any
    novel_time_K: Any
    stuck_KB: Any
    count_K: Any
    lag_K: Any
    matches_K: Any
    memory_RT: Any
    sums_KD: Any
    active_KD: Any
    alerted_KD: Any
    evidence_KD: Any
    silent_K: Any
    silent_alerted_K: Any
    unknown_U: Any
    features_F: Any
    bus: Any


(
    B_TIME, B_BUCKET, B_BITS, B_UNKNOWN_SUM, B_UNKNOWN_TIME, B_UNKNOWN_ACTIVE, B_UNKNOWN_ALERTED, B_LOAD_SUM, B_LOAD_ACTIVE,
    B_LOAD_ALERTED, B_POINTER, B_FRAMES, B_UNKNOWN_FRAMES, B_ERRORS, B_GAPS, B_ALERTS, B_ANOMALIES, B_STALL,
) = range(18)  # fmt: skip


def new_state(known: int, memories: int) -> State:
    """A state before the first frame, for a model of `known` IDs of which `memories` remember their payloads."""

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.int64)

    bus = zeros(18)
    for index in (B_STALL, B_TIME, B_BUCKET, B_UNKNOWN_TIME, B_UNKNOWN_ALERTED, B_LOAD_ALERTED):
        bus[index] = NEVER
    k = max(known, 1)
    return State(
        last_K=np.full(k, NEVER), interval_K=zeros(k), backlog_K=zeros(k), anchor_K=np.full(k, NEVER), extras_K=zeros(k),
        shortest_K=zeros(k), longest_K=zeros(k), moved_K=zeros(k), given_K=zeros(k), payload_K=zeros(k), has_payload_K=zeros(k), run_K=zeros(k),
        novel_K=zeros(k), novel_time_K=np.full(k, NEVER), stuck_KB=zeros(k, 8), count_K=zeros(k), lag_K=zeros(k), matches_K=zeros(k),
        memory_RT=zeros(max(memories, 1), REPEAT_SLOTS), sums_KD=zeros(k, COLUMNS), active_KD=zeros(k, COLUMNS),
        alerted_KD=np.full((k, COLUMNS), NEVER), evidence_KD=np.full((k, COLUMNS), NEVER),
        silent_K=zeros(k), silent_alerted_K=np.full(k, NEVER),
        unknown_U=np.full(UNKNOWN_SLOTS, -1), features_F=zeros(FEATURES), bus=bus,
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
def regular(interval: int, median: int) -> bool:
    """Whether an interval is about one period."""
    return 3 * interval > 2 * median and 2 * interval < 3 * median


@compiled
def backlog_after(backlog: int, interval: int, pace: int, lossy: int) -> int:
    """How much earlier than the pace the frames come, us: after an interval of one pace it fades, otherwise pace minus interval adds.

    A long interval is credit for a frame that was held up and comes late, but none where frames are lost (`lossy`).
    """
    if regular(interval, pace) or (lossy and interval > pace):
        return backlog * 7 // 8
    return min(max(backlog + pace - interval, -8 * pace), 8 * pace)


@compiled
def early_frames(interval_N: Any, pace: int, lossy: int, least: int, early_N: Any) -> None:
    """For each interval of one ID, us, whether the backlog is at least `least` after it, into `early_N`."""
    backlog = pace - pace  # of the type of the others
    for i in range(len(interval_N)):
        backlog = backlog_after(backlog, interval_N[i], pace, lossy)
        early_N[i] = backlog >= least


@compiled
def rhythm(shortest: int, longest: int, frames: int) -> bool:
    """Whether frames between two that are a period apart keep a rhythm of their own: evenly spaced, or one in two left out."""
    if frames == 1:
        return 8 * longest <= 9 * shortest
    return 8 * longest <= 9 * shortest or 16 * abs(longest - 2 * shortest) <= 2 * shortest


@compiled
def uneven(s: State, k: int, time: int, interval: int, changed: int, pace: int, slack: int) -> int:
    """Frames of a second sender since the grid of a period: no mode puts frames unevenly between those that go on as before.

    Args:
        s: state (changed).
        k: known ID.
        time, interval: of its frame, us.
        changed: what the signals of the payload changed.
        pace, slack: period of the grid, and how far frames lie off it, us.

    Returns:
        Frames in between if this one lies a period after the last one on the grid and they keep no rhythm; -1 if they only brought a new
            value early, which this one has too, while forged and legitimate values alternate; else 0.
    """
    passed = time - s.anchor_K[k]
    found = 0
    if s.anchor_K[k] != NEVER:
        extras = s.extras_K[k]
        s.shortest_K[k] = min(s.shortest_K[k], interval) if extras > 0 else interval
        s.longest_K[k] = max(s.longest_K[k], interval) if extras > 0 else interval
        if passed < pace - slack:
            s.extras_K[k] += 1
            s.moved_K[k] |= int(changed != 0)
            return found
        if s.moved_K[k] and changed == 0:
            found = -1
        elif extras > 0 and passed <= pace + slack and not rhythm(s.shortest_K[k], s.longest_K[k], extras):
            found = extras
    s.anchor_K[k] = time
    s.extras_K[k] = 0
    s.moved_K[k] = 0
    return found


@compiled
def uneven_frames(s: State, time_N: Any, changed_N: Any, pace: int, slack: int, excused_N: Any) -> int:
    """How often `uneven` finds frames of a second sender in those of one ID; the intervals of those it excuses into `excused_N`.

    Args:
        s: fresh state.
        time_N: of the frames, us.
        changed_N, excused_N: of all but the first.
        pace, slack: see `uneven`.
    """
    found = 0
    start = 0
    for i in range(1, len(time_N)):
        extras = uneven(s, 0, time_N[i], time_N[i] - time_N[i - 1], changed_N[i - 1], pace, slack)
        found += int(extras > 0)
        if extras < 0:
            excused_N[start:i] = True
        if s.anchor_K[0] == time_N[i]:
            start = i
    return found


@compiled
def early(m: Model, s: State, k: int, time: int, changed: int, stalled: bool) -> int:
    """Evidence of the timing detector for a frame of ID `k`: frames in excess, by the interval and by the grid of the period.

    Args:
        m, s: model and state (the state is changed).
        k: known ID, with a pace, seen before.
        time: us.
        changed: what the signals of the payload changed.
        stalled: the logger stalled since the last frame, so that the interval is unknown.
    """
    last, pace, previous = s.last_K[k], m.pace_K[k], s.interval_K[k]
    interval = max(time - last, 0)
    s.interval_K[k] = interval
    if stalled:
        s.anchor_K[k] = NEVER
        return 0
    # The backlog tells a forged extra frame (more frames than time allows) from one that was only held up (a long interval, then short
    # ones). An ID that falls into an even rhythm at a third of its period or less has changed its mode. A short training may have missed
    # such modes: there a rough rhythm counts (one in two left out), and all but the fastest IDs, which have no faster mode to go to.
    s.backlog_K[k] = backlog_after(s.backlog_K[k], interval, pace, m.lossy_K[k])
    if m.limits[L_MATURE]:
        even = pace >= 50_000 and 8 * abs(interval - previous) <= interval
    else:
        even = pace > FAST_US and 8 * abs(interval - previous) <= 5 * max(interval, previous)
    even = even and pace == m.median_K[k] and 3 * interval <= pace and interval >= MODE_US
    evidence = 0
    if s.backlog_K[k] >= m.backlog_K[k] and not even:
        evidence = m.timing_evidence_KB[k, interval_bin(interval)]
    if m.grid_K[k] > 0:
        extras = uneven(s, k, time, interval, changed, pace, m.grid_K[k])
        if extras < 0:  # a new value came early: what its frames gave is taken back
            for d in (TIMING, ENSEMBLE, TINY):
                s.sums_KD[k, d] = max(s.sums_KD[k, d] - s.given_K[k], 0)
            evidence = 0
        elif extras > 0 and m.grid_evidence_K[k] > 0:
            # Those in between had their drift, one bit each: it is given back. What their intervals gave counts once.
            evidence = max(evidence, m.grid_evidence_K[k] + ONE_BIT * min(extras, 16) - s.given_K[k])
        s.given_K[k] = 0 if s.anchor_K[k] == time else s.given_K[k] + evidence
    return evidence


@compiled
def popcount(x: int) -> int:
    """Number of ones among the 64 bits of an int64."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x & 0x00FF00FF00FF00FF) + ((x >> 8) & 0x00FF00FF00FF00FF)) * 0x0001000100010001 >> 48 & 0x7F


@compiled
def distance(changed: int) -> int:
    """Hamming distance of two payloads in Gray code, from their XOR: a number that steps past a power of two flips two bits at most, not all."""
    return popcount(changed ^ ((changed >> 1) & 0x7FFFFFFFFFFFFFFF))


def _crc_tables() -> Any:
    tables = np.zeros((len(POLYNOMIALS), 256), np.int64)
    for row, polynomial in enumerate(POLYNOMIALS):
        for value in range(256):
            crc = value
            for _ in range(8):
                crc = (crc << 1) ^ (polynomial if crc & 0x80 else 0)
            tables[row, value] = crc & 0xFF
    return tables


CRC_PB = _crc_tables()


@compiled
def checksum(kind: int, position: int, length: int, payload: int) -> int:
    """What is constant over all frames if the payload carries a checksum of this kind, see `Model.checksum_K4`."""
    total = 0
    for b in range(length):
        byte = (payload >> (56 - 8 * b)) & 0xFF
        if kind == 1:
            total ^= byte
        elif kind == 2:
            total += byte
        elif kind == 3:
            total += -byte if b == position else byte
        elif kind == 4:
            total += (byte >> 4) + (byte & 0xF)
        elif b != position:
            total = CRC_PB[kind - 5, total ^ byte]
    if kind == 4:
        return total & 0xF
    if kind >= 5:
        total ^= (payload >> (56 - 8 * position)) & 0xFF
    return total & 0xFF


@compiled
def field_of(payload: int, shift: int, kind: int) -> int:
    """A byte (kind 1), big-endian word (2) or little-endian word (3) of a packed payload."""
    if kind == 1:
        return (payload >> shift) & 0xFF
    word = (payload >> shift) & 0xFFFF
    return word if kind == 2 else (word >> 8) | (word & 0xFF) << 8


@compiled
def carries(payload: int, previous: int, length: int) -> int:
    """Mask of the payload bytes that changed only because a number stepped past a power of two, or past zero.

    Two neighbours are one number, of either byte order, if the high one changed and together they step by at most `CARRY_STEP`:
    0FFF to 1000, 00 0A to FF FA. Numbers of 12 bits that share their high byte with a nibble that stays count too. A payload of FF
    alone is no number.

    Args:
        payload, previous: of this frame and the one before it.
        length: bytes.
    """
    found = 0
    present = -1 if length >= 8 else -1 << (64 - 8 * length) if length > 0 else 0
    if payload & present == present:
        return found
    for order in (1, -1):  # the low byte lies below (big endian), or above
        for b in range(8):
            low = b - order
            if low < 0 or low > 7 or min(b, low) < 8 - length:
                continue
            high, before = (payload >> (8 * b)) & 0xFF, (previous >> (8 * b)) & 0xFF
            if high == before:
                continue
            step = (high - before) << 8
            step += ((payload >> (8 * low)) & 0xFF) - ((previous >> (8 * low)) & 0xFF)
            span = 0x1000 if high >> 4 == before >> 4 else 0x10000
            step &= span - 1
            if min(step, span - step) <= CARRY_STEP:
                found |= 0xFF << (8 * b) | 0xFF << (8 * low)
    return found


@compiled
def mix(payload: int, previous: int) -> int:
    """Thirty-one bits that stand for a pair of payloads; a hash, the same in C."""
    h = 0
    for word in (payload & 0xFFFFFFFF, (payload >> 32) & 0xFFFFFFFF, previous & 0xFFFFFFFF, (previous >> 32) & 0xFFFFFFFF):
        h = ((h ^ word) * 0x9E3779B1) & 0xFFFFFFFF
        h ^= h >> 15
    return h & 0x7FFFFFFF


@compiled
def tiny_logit(m: Model, x_F: Any) -> int:
    """Output of the tiny network in 1/16 bit: int8 weights and inputs, 32-bit sums, one ReLU layer."""
    total = m.tiny_meta[2]
    for h in range(len(m.tiny_bias_M)):
        value = m.tiny_bias_M[h]
        for f in range(FEATURES):
            value += m.tiny_MF[h, f] * x_F[f]
        value = min(max(value, 0) >> m.tiny_meta[1], 127)
        total += m.tiny_out_M[h] * value
    return total * m.tiny_meta[3] >> 16


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
        # An attack silences few IDs while the rest goes on; IDs that stop together belong to an ECU, or a bus, that goes to sleep.
        company = 0
        for j in range(len(keys_K)):
            if m.silence_K[j] > 0 and s.last_K[j] != NEVER and abs(s.last_K[j] - s.last_K[k]) <= TOGETHER_US:
                company += int(now - s.last_K[j] > LATE_PERIODS * m.median_K[j])
        asleep = company > COMPANIONS  # it counts itself
        if now - s.silent_alerted_K[k] >= COOL_DOWN_US:
            s.silent_alerted_K[k] = now
            s.bus[B_ANOMALIES if asleep else B_ALERTS] += 1
            detector = SILENCE + HINT if asleep else SILENCE
            n = _alert(out, n, s.bus[B_FRAMES], now, keys_K[k], detector, now - s.last_K[k], m.silence_K[k])
    return n


@compiled
def _forget_times(s: State) -> None:
    for k in range(len(s.last_K)):
        s.last_K[k] = NEVER
        s.backlog_K[k] = 0
        s.anchor_K[k] = NEVER
        s.has_payload_K[k] = 0
        s.run_K[k] = 0
        s.matches_K[k] = 0


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
        out: int64 (A, 6), alerts: frame number, time, key, detector (plus `HINT` for an anomaly), level, threshold.
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
            bus[B_STALL] = time
            bus[B_BUCKET] = NEVER
            for k in range(known):
                if s.last_K[k] != NEVER:
                    s.last_K[k] += passed
                    s.backlog_K[k] = max(s.backlog_K[k] - passed, -8 * m.pace_K[k])  # what was held up comes all at once
            if passed > m.limits[L_GAP_US]:
                bus[B_ANOMALIES] += 1  # nobody is left to attack: the ignition, or the logger, was off
                n = _alert(out, n, frame, time, -1, SILENCE + HINT, passed, m.limits[L_GAP_US])
                raised |= 1 << SILENCE + HINT
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
    e_checksum = 0
    e_cross = 0
    e_repeat = 0
    mature = m.limits[L_MATURE]
    drift_bits = ONE_BIT

    last = s.last_K[k]
    s.silent_K[k] = 0
    median = m.median_K[k]
    if last != NEVER and median > 0:
        in_time = int(regular(max(time - last, 0), median))
        signals = (payload ^ s.payload_K[k]) & m.signal_mask_K[k] if s.has_payload_K[k] else 0
        e_timing = early(m, s, k, time, signals, last <= bus[B_STALL])
    s.last_K[k] = time

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
            carried = 0
            if s.has_payload_K[k] and popcount(fresh) >= ALIEN_BYTE - 1:
                carried = carries(payload, s.payload_K[k], length)
            if popcount(fresh & ~carried) >= ALIEN_BITS:
                e_format = max(e_format, 3 * m.length_evidence_K[k])
            s.novel_K[k] |= unseen
            for b in range(8):
                new = popcount((fresh >> (8 * b)) & 0xFF)
                if (carried >> (8 * b)) & 0xFF:
                    new = min(new, 1)  # a small step, whatever it does to the bits
                if new > 0:
                    e_bits += (1 + new // 3) * m.byte_evidence_K[k]
                if new >= ALIEN_BYTE - mature:
                    e_format = max(e_format, 4 * m.length_evidence_K[k])
            if e_bits == 0:
                drift_bits = ONE_BIT // 4  # still in unseen territory: forget slowly
        if s.has_payload_K[k]:
            changed = payload ^ s.payload_K[k]
            since = last > bus[B_STALL]  # otherwise frames are missing in between, and anything may have moved
            if since:
                e_jump = m.jump_evidence_KJ[k, distance(changed & m.signal_mask_K[k])]
            if changed != 0:
                for b in range(8):
                    difference = ((payload >> (8 * b)) & 0xFF) - ((s.payload_K[k] >> (8 * b)) & 0xFF)
                    if difference == 0:
                        s.stuck_KB[k, b] = s.stuck_KB[k, b] + 1 if in_time else 0
                        if mature and m.stuck_KB[k, b] > 0 and s.stuck_KB[k, b] >= m.stuck_KB[k, b]:
                            e_frozen = max(e_frozen, 2 * ONE_BIT if s.stuck_KB[k, b] > m.stuck_KB[k, b] else 32 * ONE_BIT)
                        continue
                    s.stuck_KB[k, b] = 0
                    difference &= 0xFF
                    difference = min(difference, 256 - difference)
                    if difference > m.step_KB[k, b] and since:
                        e_jump += m.byte_evidence_K[k]
                        while difference >= 2 * m.step_KB[k, b]:  # and more for every octave beyond
                            e_jump += 6 * ONE_BIT
                            difference >>= 1
            for c in range(4):
                width = m.counter_KC3[k, c, 1]
                if width == 0 or not since:
                    break
                shift = m.counter_KC3[k, c, 0]
                span = (1 << width) - 1
                if (((payload >> shift) - (s.payload_K[k] >> shift)) & span) == m.counter_KC3[k, c, 2]:
                    e_counter = 0  # one that goes on: the other may be a checksum that only looked like a counter
                    break
                e_counter = max(e_counter, m.counter_evidence_KC[k, c])
            # How many frames a payload rests says something only while they come at their period, as those of a masquerade do.
            s.run_K[k] = s.run_K[k] + 1 if changed == 0 and in_time else 0
            if m.frozen_K[k] > 0 and s.run_K[k] >= m.frozen_K[k]:
                e_frozen = max(e_frozen, 2 * ONE_BIT if s.run_K[k] > m.frozen_K[k] else 32 * ONE_BIT)
            if changed & m.signal_mask_K[k] and m.repeat_K[k] >= 0:
                # The memory takes one pair of payloads in four, chosen by its own hash, so that the same pairs are taken again.
                h = mix(payload & m.signal_mask_K[k], s.payload_K[k] & m.signal_mask_K[k])
                if h & 3 == 0:
                    r = m.repeat_K[k]
                    t = (h >> 2) & (REPEAT_SLOTS - 1)
                    seen = s.memory_RT[r, t]
                    now = s.count_K[k] & 0xFFFFFFFF
                    if seen >> 32 == h:
                        lag = (now - (seen & 0xFFFFFFFF)) & 0xFFFFFFFF
                        if lag == s.lag_K[k] and lag > SHORT_LAG:
                            s.matches_K[k] += 1
                            e_repeat = m.repeat_evidence_K[k]
                        else:
                            s.matches_K[k] = 0
                        s.lag_K[k] = lag
                    else:
                        s.lag_K[k] = 0
                        s.matches_K[k] = 0
                    s.memory_RT[r, t] = h << 32 | now
        kind = m.checksum_K4[k, 0] if length == m.checksum_K4[k, 3] else 0
        if kind > 0 and checksum(kind, m.checksum_K4[k, 1], length, payload) != m.checksum_K4[k, 2]:
            e_checksum = m.checksum_evidence_K[k]
        for c in range(CROSS_CHECKS):
            own = m.cross_KCX[k, c, X_KIND]
            if own == 0:
                break
            p = m.cross_KCX[k, c, X_PARTNER]
            if s.has_payload_K[p] == 0 or time - s.last_K[p] > m.cross_KCX[k, c, X_STALE] or s.last_K[p] <= bus[B_STALL]:
                continue  # not heard lately, or not since the logger stalled
            value = field_of(s.payload_K[p], m.cross_KCX[k, c, X_PARTNER_SHIFT], m.cross_KCX[k, c, X_PARTNER_KIND])
            if value < m.cross_KCX[k, c, X_LOW] or value > m.cross_KCX[k, c, X_HIGH]:
                continue  # nothing is said beyond what training has seen
            expected = (m.cross_KCX[k, c, X_SLOPE] * value >> 16) + m.cross_KCX[k, c, X_INTERCEPT]
            if abs(field_of(payload, m.cross_KCX[k, c, X_SHIFT], own) - expected) > m.cross_KCX[k, c, X_TOLERANCE]:
                e_cross = max(e_cross, m.cross_evidence_KC[k, c])
        s.count_K[k] += 1
        s.payload_K[k] = payload
        s.has_payload_K[k] = 1

    # --- leaky sums and alarms
    alone = False
    if mature and in_time:
        e_counter *= 2  # no frame is missing, so the break is not the logger's
    # To the ensemble no detector gives more than half of its base threshold at once: it takes two of them.
    # The detectors of values have no vote: when a vehicle enters new territory they are wrong together.
    total = min(e_timing, ENSEMBLE_CAP) + min(e_format, ENSEMBLE_CAP) + min(e_counter, ENSEMBLE_CAP)
    e_tiny = 0
    if m.tiny_meta[0]:
        x_F = s.features_F
        busy = 0
        for f, d, evidence in (
            (0, TIMING, e_timing), (1, FORMAT, e_format), (2, BITS, e_bits), (3, JUMP, e_jump), (4, COUNTER, e_counter),
            (5, FROZEN, e_frozen), (6, CHECKSUM, e_checksum), (7, CROSS, e_cross), (8, REPEAT, e_repeat),
        ):  # fmt: skip
            x_F[f] = min(evidence >> 2, 127)  # quarters of a bit
            x_F[f + 9] = min(s.sums_KD[k, d] >> 4, 127)  # bits
            busy |= x_F[f]
        if busy:  # without evidence in this frame it has nothing to say
            e_tiny = min(max(tiny_logit(m, x_F), 0), TINY_CAP)
    for d in ORDER:
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
        elif d == CHECKSUM:
            evidence = e_checksum
        elif d == CROSS:
            evidence = e_cross
        elif d == REPEAT:
            evidence = e_repeat
        elif d == TINY:
            evidence = e_tiny
        threshold = m.threshold_KD[k, d]
        if evidence > 0:
            s.evidence_KD[k, d] = time
        elif s.sums_KD[k, d] > 0 and time - s.evidence_KD[k, d] > HOLD_US + 4 * median:
            s.sums_KD[k, d] = 0  # whatever it was is over; the next event is a new alarm
        level = s.sums_KD[k, d] + evidence - drift
        level = min(max(level, 0), 2 * threshold)
        s.sums_KD[k, d] = level
        if level == 0:
            s.active_KD[k, d] = 0
            continue
        hint = mature == 0 and (d in (BITS, JUMP) or d >= CROSS or (d == FROZEN and m.frozen_K[k] != NEVER_RESTS))
        if level >= threshold:
            said = alone and d in (ENSEMBLE, TINY)  # a single detector says it already
            if s.active_KD[k, d] == 0 and not said and time - s.alerted_KD[k, d] >= COOL_DOWN_US:
                s.alerted_KD[k, d] = time
                bus[B_ANOMALIES if hint else B_ALERTS] += 1
                n = _alert(out, n, frame, time, key, d + HINT if hint else d, level, threshold)
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
    n: Any = np.int64(0)  # see `highest_sums`
    room = len(out) - COLUMNS - 4  # what a single frame can raise at most
    for i in range(start, len(time_N)):
        if n > room:
            return i, n
        n, ratio_N[i], raised_N[i] = step(m, s, keys_K, time_N[i], key_N[i], error_N[i], length_N[i], payload_N[i], out, n)
    return len(time_N), n


@compiled
def highest_sums(m: Model, s: State, keys_K: Any, time_N: Any, key_N: Any, length_N: Any, payload_N: Any, highest_KD: Any) -> int:
    """Highest sum per ID and detector into `highest_KD`; returns that of unknown IDs."""
    out, zero = np.zeros((16, 6), np.int64), np.int64(0)  # a literal 0 would be a type of its own, and `step` compiled again for it
    unknown = 0
    for i in range(len(time_N)):
        step(m, s, keys_K, time_N[i], key_N[i], zero, length_N[i], payload_N[i], out, zero)
        k = slot_of(m.hash_key_H, m.hash_slot_H, key_N[i])
        if k >= 0:
            for d in range(COLUMNS):
                highest_KD[k, d] = max(highest_KD[k, d], s.sums_KD[k, d])
        unknown = max(unknown, s.bus[B_UNKNOWN_SUM])
    return unknown
