"""Three ways to part flows into training, validation and test: one of them is the paper's, and it leaks.

``random`` (GraphIDS, section 4.2) puts flows of one attack, host pair and second on every side. ``chronological`` and
``unseen-host-pair`` do not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from edge_shared.data.splits import Split
from edge_shared.errors import InputError

from edge_ids.flow.table import Array, FlowTable

Protocol = Literal["random", "chronological", "unseen-host-pair"]
PROTOCOLS = ("random", "chronological", "unseen-host-pair")
FRACTIONS = (0.8, 0.1, 0.1)


def split(table: FlowTable, protocol: Protocol, seed: int = 0) -> Split:
    """Part `table` 80/10/10 into train, val and test row numbers (attacks still in train; see `benign`).

    Args:
        table: flows.
        protocol: ``random`` is stratified by attack class; ``chronological`` goes by start time, or by file order where the
            source has no times (NF-v2); ``unseen-host-pair`` keeps both directions of a pair of hosts in one part, pairs with and
            without attacks being dealt separately.
        seed: of ``random`` and ``unseen-host-pair``.

    Raises:
        InputError: for an unknown protocol or fewer than 10 flows.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--split {protocol}: choose one of {', '.join(PROTOCOLS)}")
    if len(table) < 10:
        raise InputError(f"{len(table)} flows are too few to part into training, validation and test; give at least 10")
    if protocol == "random":
        return _random(_classes(table), seed)
    if protocol == "chronological":
        return _chronological(table)
    return _unseen_pairs(table, seed)


def benign(table: FlowTable, rows: Array) -> Array:
    """Those of `rows` that are not labelled as attacks; all of them without labels.

    Raises:
        InputError: if none is left.
    """
    rows = rows if table.label is None else rows[table.label[rows] == 0]
    if not len(rows):
        raise InputError("the training part holds no benign flow; use --split random, or give more benign traffic")
    return rows


def _classes(table: FlowTable) -> Array:
    if table.attack is not None:
        return np.unique(table.attack, return_inverse=True)[1]
    return np.zeros(len(table), int) if table.label is None else table.label.astype(int)


def _random(classes: Array, seed: int) -> Split:
    part_of = np.empty(len(classes), int)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(classes))
    for kind in np.unique(classes):
        rows = order[classes[order] == kind]
        # Cumulative shares, so that a class of 4 does not lose all of its flows to rounding.
        cuts = np.round(np.cumsum(FRACTIONS) * len(rows)).astype(int)
        part_of[rows] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
    return _parts(part_of)


def _chronological(table: FlowTable) -> Split:
    order = np.arange(len(table)) if table.start is None else np.argsort(table.start, kind="stable")
    cuts = np.round(np.cumsum(FRACTIONS) * len(table)).astype(int)
    return Split(*(part.astype(np.int64) for part in np.split(order, cuts[:2])))


def _unseen_pairs(table: FlowTable, seed: int) -> Split:
    low, high = np.minimum(table.src, table.dst).astype(np.int64), np.maximum(table.src, table.dst)
    _, pair = np.unique(low * len(table.hosts) + high, return_inverse=True)
    count = pair.max() + 1
    attacks = np.zeros(count) if table.label is None else np.bincount(pair, weights=table.label, minlength=count)
    sizes = np.bincount(pair, minlength=count)
    part_of = np.empty(count, int)
    generator = np.random.default_rng(seed)
    for chosen in (np.flatnonzero(attacks > 0), np.flatnonzero(attacks == 0)):
        chosen = generator.permutation(chosen)
        filled = np.zeros(3)
        for dealt, item in enumerate(chosen):
            lack = np.array(FRACTIONS) * sizes[chosen].sum() - filled
            empty = filled == 0
            if dealt and empty.sum() >= len(chosen) - dealt:
                lack[~empty] = -np.inf
            part_of[item] = lack.argmax()
            filled[part_of[item]] += sizes[item]
    return _parts(part_of[pair])


def _parts(part_of: Array) -> Split:
    return Split(*(np.flatnonzero(part_of == part) for part in range(3)))
