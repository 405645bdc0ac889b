"""Splits that cannot leak: no group, no moment (plus an embargo) and no duplicate lies on two sides.

All functions work on row numbers, need only numpy, and are fixed by their seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_shared.errors import InputError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, each ascending; rows lost to an embargo are in none."""

    train: Rows
    val: Rows
    test: Rows

    @property
    def parts(self) -> tuple[Rows, Rows, Rows]:
        """(train, val, test)."""
        return self.train, self.val, self.test


def by_group(groups: ArrayLike, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> Split:
    """Split rows so that all rows of a group (subject, capture, file) lie in one part.

    Groups are dealt, the largest first, to the part that lacks most rows; every part with a positive
    fraction gets a group.

    Args:
        groups: one group name or number per row, shape (n,).
        fractions: shares of train, val and test; they sum to 1 and may be 0.
        seed: breaks ties between groups of equal size.

    Raises:
        InputError: if there are fewer groups than parts.
    """
    shares = _shares(fractions)
    codes, count = _codes(groups, "groups")
    wanted = int((shares > 0).sum())
    if count < wanted:
        raise InputError(f"{count} groups cannot fill {wanted} parts without a leak; give at least {wanted} groups or fewer parts")
    sizes = np.bincount(codes, minlength=count)
    part_of = np.empty(count, dtype=np.int64)
    filled = np.zeros(3)
    order = _largest_first(sizes, seed)
    for dealt, group in enumerate(order):
        empty = (shares > 0) & (filled == 0)
        lack = np.where(shares > 0, shares * len(codes) - filled, -np.inf)
        if empty.sum() >= count - dealt:
            lack = np.where(empty, lack, -np.inf)
        part_of[group] = int(np.argmax(lack))
        filled[part_of[group]] += sizes[group]
    return _split(part_of[codes])


def by_time(times: ArrayLike, fractions: Sequence[float] = (0.7, 0.1, 0.2), embargo: float = 0.0) -> Split:
    """Split by time: train before val before test, with an embargo between them.

    Every row of an earlier part precedes every row of a later part, by at least `embargo`; rows that would be
    nearer are dropped from the earlier part. Rows of the same moment are never separated.

    Args:
        times: one time per row, in any order, shape (n,).
        fractions: shares of the rows before the embargo takes its toll.
        embargo: least distance between two parts, in the unit of `times`.

    Raises:
        InputError: if a time is not finite, or a part would be empty.
    """
    shares = _shares(fractions)
    moments = _times(times)
    if not (np.isfinite(embargo) and embargo >= 0):
        raise InputError(f"embargo is {embargo}; it is a time of 0 or more")
    ordered = np.sort(moments)
    cuts = np.rint(np.cumsum(shares)[:2] * len(ordered)).astype(int)
    starts = [-np.inf, *(ordered[cut] if cut < len(ordered) else np.inf for cut in cuts)]
    part = np.searchsorted(np.asarray(starts[1:]), moments, side="right")
    for index in (0, 1):
        later = moments[part > index]
        if len(later):
            part[(part == index) & ((later.min() - moments < embargo) | (moments >= later.min()))] = -1
    for name, index in (("train", 0), ("val", 1), ("test", 2)):
        if shares[index] > 0 and not (part == index).any():
            raise InputError(
                f"the {name} part is empty: {len(moments)} rows, embargo {embargo:g}; use a shorter embargo or other fractions"
            )
    return _split(part)


def stratified(labels: ArrayLike, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> Split:
    """Split rows at random with the same class shares in each part; for rows that are independent of each other.

    Each class is cut by largest remainder, so a class is off its share by less than one row.
    """
    codes, _ = _codes(labels, "labels")
    return by_content([b"%d" % row for row in range(len(codes))], labels, fractions, seed)


def by_content(
    keys: Sequence[bytes], labels: ArrayLike | None = None, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> Split:
    """Split rows by what they contain: equal rows always lie in one part, whatever the order of the rows.

    Args:
        keys: the content of each row, or a digest of it.
        labels: with them, every class is cut by the fractions (duplicates count with the class of the first in sorted order).
        fractions: shares of train, val and test.
        seed: another seed gives another split.
    """
    shares = _shares(fractions)
    salt = f"{seed}:".encode()
    if not len(keys):
        raise InputError("nothing to split: no rows")
    strata = np.zeros(len(keys), dtype=np.int64) if labels is None else _codes(labels, "labels")[0]
    if len(strata) != len(keys):
        raise InputError(f"labels has {len(strata)} rows, keys {len(keys)}")
    stratum_of: dict[bytes, int] = {}
    for key, stratum in zip(keys, strata.tolist(), strict=True):
        stratum_of[key] = min(stratum, stratum_of.get(key, stratum))
    members: dict[int, list[bytes]] = {}
    for key, stratum in stratum_of.items():
        members.setdefault(stratum, []).append(key)
    part_of: dict[bytes, int] = {}
    for stratum in sorted(members):
        ranked = sorted(members[stratum], key=lambda key: hashlib.sha256(salt + key).digest())
        sizes = _largest_remainder(len(ranked), shares, f"{seed}:{stratum}")
        for key, part in zip(ranked, np.repeat(np.arange(3), sizes).tolist(), strict=True):
            part_of[key] = part
    return _split(np.asarray([part_of[key] for key in keys]))


def k_fold_groups(groups: ArrayLike, folds: int = 5, seed: int = 0) -> Iterator[tuple[Rows, Rows]]:
    """Yield (train, test) rows of each fold; all rows of a group are in the same fold, folds are of like size.

    Raises:
        InputError: if there are fewer groups than folds.
    """
    codes, count = _codes(groups, "groups")
    if not 2 <= folds <= count:
        raise InputError(f"{folds} folds of {count} groups: folds is at least 2 and at most the number of groups")
    sizes = np.bincount(codes, minlength=count)
    fold_of = np.empty(count, dtype=np.int64)
    filled = np.zeros(folds)
    for group in _largest_first(sizes, seed):
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += sizes[group]
    for fold in range(folds):
        inside = fold_of[codes] == fold
        yield np.flatnonzero(~inside), np.flatnonzero(inside)


def leave_one_group_out(groups: ArrayLike) -> Iterator[tuple[Any, Rows, Rows]]:
    """Yield (group, train rows, test rows) for each group in sorted order: the group is the test part."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"{len(names)} group: leaving one out needs at least two")
    for code, name in enumerate(names):
        yield name.item(), np.flatnonzero(codes != code), np.flatnonzero(codes == code)


def contiguous_folds(rows: int, folds: int = 5, embargo: int = 0) -> Iterator[tuple[Rows, Rows]]:
    """Yield (train, test) rows of each fold, where a fold is a run of neighbouring rows.

    Args:
        rows: number of rows, in the order of time.
        folds: number of runs.
        embargo: rows on either side of the test run that are dropped from train.

    Raises:
        InputError: if there are fewer rows than folds, or the embargo leaves nothing to train on.
    """
    if not 2 <= folds <= rows:
        raise InputError(f"{folds} folds of {rows} rows: folds is at least 2 and at most the number of rows")
    if embargo < 0:
        raise InputError(f"embargo is {embargo} rows; it is 0 or more")
    edges = np.linspace(0, rows, folds + 1).round().astype(np.int64)
    everything = np.arange(rows)
    for low, high in pairwise(edges.tolist()):
        train = everything[(everything < low - embargo) | (everything >= high + embargo)]
        if not len(train):
            raise InputError(f"an embargo of {embargo} rows leaves nothing to train on in {rows} rows of {folds} folds")
        yield train, everything[low:high]


def subset(labels: ArrayLike, limit: int, seed: int = 0) -> Rows:
    """Choose at most `limit` rows with the class shares of the whole, ascending."""
    codes, _ = _codes(labels, "labels")
    if limit < 1:
        raise InputError(f"limit is {limit}; it is at least 1")
    if limit >= len(codes):
        return np.arange(len(codes))
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(codes))
    # The k-th row of a class of n stands at (k + u) / n; the lowest `limit` positions share the classes evenly.
    position = np.empty(len(codes))
    for code in np.unique(codes):
        rows = shuffled[codes[shuffled] == code]
        position[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return np.sort(np.argsort(position, kind="stable")[:limit])


def _split(part: NDArray[np.int64]) -> Split:
    return Split(*(np.flatnonzero(part == index) for index in range(3)))


def _shares(fractions: Sequence[float]) -> NDArray[np.float64]:
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6 or shares[0] == 0:
        raise InputError(f"fractions are {tuple(fractions)}; give three shares (train > 0, val, test) that sum to 1")
    return shares


def _codes(values: ArrayLike, what: str) -> tuple[NDArray[np.int64], int]:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise InputError(f"{what} has shape {array.shape}; give one value per row")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{what} row {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
    names, codes = np.unique(array, return_inverse=True)
    return codes, len(names)


def _times(times: ArrayLike) -> NDArray[np.float64]:
    moments = np.asarray(times, dtype=np.float64)
    if moments.ndim != 1 or not len(moments):
        raise InputError(f"times has shape {moments.shape}; give one time per row")
    if not np.isfinite(moments).all():
        raise InputError(f"times row {int(np.flatnonzero(~np.isfinite(moments))[0])} is not finite")
    return moments


def _largest_first(sizes: NDArray[np.int64], seed: int) -> list[int]:
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    return shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist()


def _largest_remainder(count: int, shares: NDArray[np.float64], salt: str) -> NDArray[np.int64]:
    exact = shares * count
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    # Ties go round by a digest, so that many small classes do not all favour the same part.
    turn = hashlib.sha256(salt.encode()).digest()
    order = sorted(range(3), key=lambda part: (-round(float(exact[part]) - int(sizes[part]), 9), shares[part] == 0, turn[part]))
    for part in order[: count - int(sizes.sum())]:
        sizes[part] += 1
    return sizes
