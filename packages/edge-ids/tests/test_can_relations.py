"""Checksums, redundant signals, repetition and the tiny network: against hand-made payloads and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from edge_ids.can import engine
from edge_ids.can.relations import _matches, fit_checksum, fit_cross
from edge_ids.can.tiny import fit_tiny, quantise
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score


def crc8(data: bytes, polynomial: int) -> int:
    """Bit by bit, as the standards write it; initial value and final XOR are zero."""
    crc = 0
    for byte in data:
        for bit in range(7, -1, -1):
            top = crc >> 7 ^ (byte >> bit & 1)
            crc = (crc << 1 & 0xFF) ^ (polynomial if top else 0)
    return crc


def packed(rows: list[bytes]) -> np.ndarray:
    return np.array([int.from_bytes(row.ljust(8, b"\0"), "big") for row in rows], np.uint64).view(np.int64)


KINDS = {
    1: lambda d: np.bitwise_xor.reduce(list(d)) ^ 0x5A,
    2: lambda d: (0x33 - sum(d)) & 0xFF,
    3: lambda d: (sum(d) + 7) & 0xFF,
} | {5 + row: (lambda d, p=polynomial: crc8(d, p) ^ 0xFF) for row, polynomial in enumerate(engine.POLYNOMIALS)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 5])
def test_checksum_is_found_and_a_forged_byte_breaks_it(kind: int, position: int) -> None:
    rng = np.random.default_rng(kind)
    rows = []
    for number in range(400):
        body = bytes([number & 0xFF, *rng.integers(0, 256, 2).tolist(), 9, *rng.integers(0, 4, 1).tolist()])
        rows.append(body[:position] + bytes([int(KINDS[kind](body))]) + body[position:])
    found, breaks = fit_checksum(packed(rows), np.full(400, 6))
    assert breaks == 0
    assert found is not None
    constants = {int(engine.checksum(found[0], found[1], 6, value)) for value in packed(rows).tolist()}
    assert constants == {found[2]}
    forged = bytearray(rows[17])
    forged[(position + 1) % 6] ^= 0x41
    assert engine.checksum(found[0], found[1], 6, packed([bytes(forged)])[0]) != found[2]


def test_no_checksum_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    length = np.full(500, 8)
    noise = packed([bytes(rng.integers(0, 256, 8, dtype=np.uint8)) for _ in range(500)])
    mirrored = packed([bytes([n & 0xFF, n & 0xFF, 0, 0, 0, 0, 0, 0]) for n in range(500)])
    constant = packed([bytes(8)] * 500)
    for p in (noise, mirrored, constant):
        assert fit_checksum(p, length)[0] is None


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=100, deadline=None)
def test_mix_is_that_of_big_integers(a: int, b: int) -> None:
    h = 0
    for word in (a & 0xFFFFFFFF, (a >> 32) & 0xFFFFFFFF, b & 0xFFFFFFFF, (b >> 32) & 0xFFFFFFFF):
        h = ((h ^ word) * 0x9E3779B1) & 0xFFFFFFFF
        h ^= h >> 15
    assert engine.mix(np.int64(a), np.int64(b)) == h & 0x7FFFFFFF


def test_replayed_noise_matches_and_fresh_noise_does_not() -> None:
    p = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 2000)
    assert _matches(p)[:2] == (0, 0)
    replayed = np.concatenate([p, p[700:1700]])
    matches, longest, _ = _matches(replayed)
    sampled = sum(engine.mix(a, b) & 3 == 0 for a, b in zip(p[701:1700], p[700:1699], strict=True))
    assert 0.2 * sampled < matches <= sampled  # a slot that another pair has taken since hides one match and the next
    assert longest >= 5


def test_cross_check_finds_the_line_and_its_tolerance_holds() -> None:
    """The same speed on two IDs, one at half the resolution and half the rate; a third ID is unrelated."""
    rng = np.random.default_rng(1)
    n = 4000
    speed = np.cumsum(rng.normal(0, 10, n)).clip(-2000, 2000) + 4000
    other = np.cumsum(rng.normal(0, 10, n)).clip(-2000, 2000) + 4000
    time, key, payload = [], [], []
    for i in range(n):
        time += [10_000 * i, 10_000 * i + 3000]
        key += [0, 2]
        payload += [int(speed[i]) << 48, int(other[i]) << 48]
        if i % 2:
            time.append(10_000 * i + 5000)
            key.append(1)
            payload.append(int(speed[i] / 2 + 50) << 48)
    t, k, p = (np.array(column, np.int64) for column in (time, key, payload))
    rows_K = [np.flatnonzero(k == index) for index in range(3)]
    cross, evidence = fit_cross(t, p, np.full(len(t), 2), rows_K, np.array([10_000, 20_000, 10_000]))
    assert cross[2, 0, engine.X_KIND] == 0
    assert (cross[0, 0, engine.X_PARTNER], cross[1, 0, engine.X_PARTNER]) == (1, 0)
    assert abs(cross[1, 0, engine.X_SLOPE] / 65536 - 0.5) < 5e-3
    assert abs(cross[1, 0, engine.X_INTERCEPT] - 50) <= 15
    assert cross[1, 0, engine.X_TOLERANCE] < 100
    assert evidence[1, 0] > 0


def test_integers_of_the_tiny_network_follow_its_floats() -> None:
    rng = np.random.default_rng(0)
    weight, bias, out = (
        rng.normal(0, 0.4, (engine.FEATURES, engine.HIDDEN)),
        rng.normal(0, 0.3, engine.HIDDEN),
        rng.normal(0, 1, engine.HIDDEN),
    )
    x = rng.integers(0, 128, (300, engine.FEATURES))
    tables = quantise(weight, bias, out, 0.7, x)
    assert np.abs(tables["tiny_MF"]).max() == 127
    assert np.abs(tables["tiny_out_M"]).max() == 127
    nats = np.maximum(x / 32 @ weight + bias, 0) @ out + 0.7
    hidden = np.minimum(np.maximum(x @ tables["tiny_MF"].T + tables["tiny_bias_M"], 0) >> tables["tiny_meta"][1], 127)
    got = (hidden @ tables["tiny_out_M"] + tables["tiny_meta"][2]) * tables["tiny_meta"][3] / 65536 / 16 * np.log(2)
    assert np.corrcoef(got, nats)[0, 1] > 0.995
    assert np.abs(got - nats).mean() < 0.05 * np.abs(nats).mean() + 0.1


def test_tiny_network_learns_a_mixture_and_needs_examples() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (3000, engine.FEATURES))
    y = x[:, 0] + x[:, 4] > 70
    tables = fit_tiny(x, y)
    assert tables is not None
    hidden = np.minimum(np.maximum(x @ tables["tiny_MF"].T + tables["tiny_bias_M"], 0) >> tables["tiny_meta"][1], 127)
    assert roc_auc_score(y, hidden @ tables["tiny_out_M"]) > 0.85
    assert fit_tiny(x[:60], np.arange(60) < 5) is None
