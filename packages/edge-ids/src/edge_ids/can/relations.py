"""What ties payload bytes together, learned from benign traffic: checksums, redundant signals, sequences that never repeat.

These see a masquerade whose timing is perfect: a forged byte breaks the checksum, a frozen or shifted speed contradicts the
same speed on another ID, a replayed recording repeats payloads in order. Redundant signals are the idea of the signal
similarity detectors for ROAD's masquerades (Moriano et al. 2022), here as fixed-point lines with a tolerance, in O(1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_ids.can import engine
from edge_ids.can._jit import compiled
from edge_ids.can.engine import CRC_PB, ONE_BIT, mix
from edge_ids.can.frames import Array

SAMPLE = 4000  # payloads that decide on a checksum
GRID_US = 100_000
GRID_POINTS = 12_000
FIELDS_PER_ID = 6
MAX_FIELDS = 128
MEMORIES = 16
CROSS_BITS = 6
LEAST_SAMPLED = 200


def fit_checksum(p: Array, length_N: Array) -> tuple[tuple[int, int, int, int] | None, int]:
    """Find the checksum of one ID by trying the usual ones on every byte.

    Args:
        p: int64 (N), payloads in order.
        length_N: payload bytes (N).

    Returns:
        ``(kind, byte, constant, length)`` as in `engine.Model.checksum_K4`, or None; payloads that break it. A checksum has to
        hold in 99.9 % of at least 64 distinct payloads, with three or more bytes that move, its own among them in eight or
        more values: two bytes that mirror each other, or a flag that follows another, are not one.
    """
    length = int(np.bincount(length_N).argmax())
    p = p[length_N == length]
    if not 3 <= length <= 8 or len(p) < 64:
        return None, 0
    distinct = np.unique(p)
    if len(distinct) < 64:
        return None, 0
    sample = distinct[np.linspace(0, len(distinct) - 1, min(SAMPLE, len(distinct))).astype(np.int64)]
    bytes_NB = ((sample[:, None] >> (56 - 8 * np.arange(length))) & 0xFF).astype(np.int64)
    values = np.array([len(np.unique(bytes_NB[:, b])) for b in range(length)])
    if (values > 1).sum() < 3:
        return None, 0
    carriers = [b for b in np.argsort(-values, kind="stable").tolist() if values[b] >= 8]
    candidates = [(kind, carriers[0]) for kind in (1, 2) if carriers]
    candidates += [(kind, b) for b in carriers for kind in (3, *range(5, 5 + len(CRC_PB)))] + [(4, b) for b in carriers[:1]]
    for kind, position in candidates:
        if kind == 4:
            nibbles_ND = np.concatenate([bytes_NB >> 4, bytes_NB & 15], axis=1)
            if (nibbles_ND.max(axis=0) > nibbles_ND.min(axis=0)).sum() < 4:
                continue  # two or three nibbles agree by chance too easily
        counts = np.bincount(_checksums(bytes_NB, kind, position), minlength=256)
        if counts.max() < 0.999 * len(sample):
            continue
        constant = int(counts.argmax())
        everything_NB = ((p[:, None] >> (56 - 8 * np.arange(length))) & 0xFF).astype(np.int64)
        breaks = int((_checksums(everything_NB, kind, position) != constant).sum())
        if breaks <= 0.001 * len(p):
            return (kind, position, constant, length), breaks
    return None, 0


def _checksums(bytes_NB: Array, kind: int, position: int) -> Array:
    """`engine.checksum` of many payloads."""
    others = [b for b in range(bytes_NB.shape[1]) if b != position]
    match kind:
        case 1:
            return np.bitwise_xor.reduce(bytes_NB, axis=1)
        case 2:
            return bytes_NB.sum(axis=1) & 0xFF
        case 3:
            return (bytes_NB[:, others].sum(axis=1) - bytes_NB[:, position]) & 0xFF
        case 4:
            return ((bytes_NB >> 4) + (bytes_NB & 15)).sum(axis=1) & 0xF
    crc = np.zeros(len(bytes_NB), np.int64)
    for b in others:
        crc = CRC_PB[kind - 5][crc ^ bytes_NB[:, b]]
    return crc ^ bytes_NB[:, position]


def fit_repeat(tables: dict[str, Any], payload_N: Array, rows_K: list[Array]) -> None:
    """Choose the IDs whose payloads are so varied that pairs of them do not come again, twice in a row, at the same distance.

    Counters and the checksum do not count. The evidence of a match is the surprise under the number of matches that training
    itself had (Laplace).
    """
    scored = []
    for k, rows in enumerate(rows_K):
        p = payload_N[rows] & tables["signal_mask_K"][k]
        changed = int((p[1:] != p[:-1]).sum())
        if changed < 200:
            continue
        matches, longest, sampled = _matches(p)
        # Some sequences come again by themselves (a vehicle that pulls away): the ID then has no noise to tell a replay by.
        if sampled >= LEAST_SAMPLED and longest <= 1:
            scored.append((changed, k, float(np.log2((sampled + 2) / (matches + 1)))))
    for row, (_, k, evidence) in enumerate(sorted(scored, reverse=True)[:MEMORIES]):
        tables["repeat_K"][k] = row
        tables["repeat_evidence_K"][k] = int(min(evidence, 10) * ONE_BIT)


def signal_bits(counter_C3: Array, checksum_4: Array) -> Any:
    """Payload bits that carry signals: int64 mask without counters and checksum, which go on while the vehicle stands still."""
    mask = (1 << 64) - 1
    for shift, width, _ in counter_C3.tolist():
        mask &= ~(((1 << width) - 1) << shift)
    if checksum_4[0] > 0:
        mask &= ~(0xFF << (56 - 8 * int(checksum_4[1])))
    return np.array([mask], np.uint64).view(np.int64)[0]


@compiled
def _matches(p: Any) -> tuple[int, int, int]:
    """Pairs that repeat at the distance of the pair before, the longest run of them, and pairs looked at, as the engine counts."""
    memory_T = np.zeros(engine.REPEAT_SLOTS, np.int64)
    matches, sampled, last, run, longest = 0, 0, 0, 0, 0
    for i in range(1, len(p)):
        if p[i] == p[i - 1]:
            continue
        h = mix(p[i], p[i - 1])
        if h & 3 != 0:
            continue
        sampled += 1
        t = (h >> 2) & (engine.REPEAT_SLOTS - 1)
        lag = 0
        if memory_T[t] >> 32 == h:
            lag = i - (memory_T[t] & 0xFFFFFFFF)
        run = run + 1 if lag > engine.SHORT_LAG and lag == last else 0
        matches += run > 0
        longest = max(longest, run)
        last = lag
        memory_T[t] = h << 32 | i
    return matches, longest, sampled


def fit_cross(time_us: Array, payload_N: Array, length_N: Array, rows_K: list[Array], median_K: Array) -> tuple[Array, Array]:
    """Find signals that tell the same thing on two IDs, as lines with a tolerance.

    A field is a byte or a 16-bit word that takes 16 or more values and moves smoothly. On a 100 ms grid each field of an ID is
    correlated with all fields of other IDs; where ``|r| >= 0.98`` the line is fitted, and the tolerance is twice the
    99.9 % quantile of the residual, frame by frame as the engine sees it, plus a step of either signal (gears shift between two
    frames). A line
    whose tolerance is more than a quarter of the field's range says too little and is dropped.

    Returns:
        int64 (K, 3, 11) and (K, 3), see `engine.Model`.
    """
    K = len(rows_K)
    cross_KCX = np.zeros((K, engine.CROSS_CHECKS, 11), np.int64)
    evidence_KC = np.zeros((K, engine.CROSS_CHECKS), np.int64)
    fields = [field for k, rows in enumerate(rows_K) for field in _fields(k, payload_N[rows], length_N[rows], int(median_K[k]))]
    fields = fields[:MAX_FIELDS]
    if len({field[0] for field in fields}) < 2:
        return cross_KCX, evidence_KC
    start, end = time_us[0], time_us[-1]
    grid = np.linspace(start, end, int(min(max((end - start) // GRID_US, 2), GRID_POINTS))).astype(np.int64)
    values_SG = np.empty((len(fields), len(grid)))
    for index, (k, shift, kind) in enumerate(fields):
        at = np.searchsorted(time_us[rows_K[k]], grid, side="right") - 1
        values_SG[index] = _values(payload_N[rows_K[k]], shift, kind)[np.maximum(at, 0)]
    moving = values_SG.std(axis=1) > 0
    correlation_SS = np.zeros((len(fields), len(fields)))
    correlation_SS[np.ix_(moving, moving)] = np.corrcoef(values_SG[moving])
    for k in {field[0] for field in fields}:
        checks = []
        for i in (i for i, field in enumerate(fields) if field[0] == k):
            others = [j for j, field in enumerate(fields) if field[0] != k and abs(correlation_SS[i, j]) >= 0.98]
            best = None
            for j in sorted(others, key=lambda j: -abs(correlation_SS[i, j]))[:2]:
                check = _line(time_us, payload_N, rows_K, fields[i], fields[j], values_SG[i], values_SG[j], median_K)
                if check is not None and (best is None or check[0] < best[0]):
                    best = check
            if best is not None:
                checks.append(best)
        for c, (_, row, bits) in enumerate(sorted(checks, key=lambda check: check[0])[: engine.CROSS_CHECKS]):
            cross_KCX[k, c] = row
            evidence_KC[k, c] = int(min(bits, CROSS_BITS) * ONE_BIT)
    return cross_KCX, evidence_KC


def _values(p: Array, shift: int, kind: int) -> Array:
    if kind == 1:
        return (p >> shift) & 0xFF
    word = (p >> shift) & 0xFFFF
    return word if kind == 2 else (word >> 8) | (word & 0xFF) << 8


def _step(values: Array) -> float:
    """A usual step of a signal: the 90 % quantile of those that are not zero."""
    step = np.abs(np.diff(values))
    step = step[step > 0]
    return float(np.quantile(step, 0.9)) if len(step) else 0.0


def _fields(k: int, p: Array, length_N: Array, median: int) -> list[tuple[int, int, int]]:
    """``(ID, shift, kind)`` of the smooth fields of an ID, words before bytes, the widest ranges first."""
    if len(p) < 100 or not 0 < median <= 1_500_000:
        return []
    length = min(int(length_N.max()), 8)
    found = []
    words: set[int] = set()
    for kind in (2, 3, 1):
        for byte in range(length if kind == 1 else length - 1):
            if byte in words or (kind != 1 and byte + 1 in words):
                continue
            shift = 56 - 8 * byte if kind == 1 else 48 - 8 * byte
            value = _values(p, shift, kind)
            span = int(value.max() - value.min())
            # Where the high byte stands still the low one tells as much.
            if len(np.unique(value)) < 16 or (kind != 1 and value.min() >> 8 == value.max() >> 8):
                continue
            step = np.abs(np.diff(value))
            # Counters, checksums and the low byte of a word wrap around; a signal does not.
            if np.quantile(step, 0.99) > span / 8:
                continue
            if kind != 1:
                words |= {byte, byte + 1}
            found.append((span / (256 if kind == 1 else 65536), (k, shift, kind)))
    return [field for _, field in sorted(found, reverse=True)[:FIELDS_PER_ID]]


def _line(
    time_us: Array, payload_N: Array, rows_K: list[Array], own: tuple[int, int, int], other: tuple[int, int, int],
    own_G: Array, other_G: Array, median_K: Array,
) -> tuple[float, list[int], float] | None:  # fmt: skip
    """Fit one line; returns tolerance over range, the row of the table, and the surprise of a violation in bits."""
    slope, intercept = np.polyfit(other_G, own_G, 1)
    if not np.isfinite(slope) or abs(slope) > 4096:
        return None
    slope_fixed = round(slope * 65536)
    (k, shift, kind), (partner, partner_shift, partner_kind) = own, other
    mine = _values(payload_N[rows_K[k]], shift, kind)
    theirs = _values(payload_N[rows_K[partner]], partner_shift, partner_kind)
    at = np.searchsorted(rows_K[partner], rows_K[k]) - 1  # the partner's last frame before each of ours
    stale = int(3 * median_K[partner] + 20_000)
    fresh = at >= 0
    fresh &= time_us[rows_K[k]] - time_us[rows_K[partner]][np.maximum(at, 0)] <= stale
    if fresh.sum() < 100:
        return None
    partner_value = theirs[at[fresh]]
    residual = np.abs(mine[fresh] - ((slope_fixed * partner_value >> 16) + round(intercept)))
    steps = _step(mine) + abs(slope) * _step(theirs)  # the phase of the two IDs drifts: now one sees a step first, now the other
    tolerance = 2 * int(np.quantile(residual, 0.999)) + 2 + int(steps)
    span = int(mine.max() - mine.min())
    if 2 * tolerance > span:
        return None
    row = [shift, kind, partner, partner_shift, partner_kind, slope_fixed, round(intercept), tolerance]
    return (
        tolerance / span,
        [*row, int(partner_value.min()), int(partner_value.max()), stale],
        float(np.log2((len(residual) + 2) / ((residual > tolerance).sum() + 1))),
    )
