"""A random sample of a file of flows, drawn while the file is read: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from edge_ids.flow.table import Array, FlowTable, concatenate


def sample(tables: Iterable[FlowTable], flows: int, seed: int) -> list[FlowTable]:
    """At most `flows` flows of `tables`, each subset of that size being as likely as any other, in the order in which they came.

    Every flow draws a random key, and those with the smallest keys stay. At no time are more than twice as many flows held, and one table.
    """
    random = np.random.default_rng(seed)
    held: list[FlowTable] = []
    keys: list[Array] = []
    cut = np.inf
    for table in tables:
        drawn = random.random(len(table))
        chosen = drawn < cut
        held.append(_compact(table.rows(chosen)))
        keys.append(drawn[chosen])
        if sum(map(len, keys)) > 2 * flows:
            held, keys, cut = _smallest(held, keys, flows)
    if sum(map(len, keys)) > flows:
        held, keys, cut = _smallest(held, keys, flows)
    return [table for table in held if len(table)]


def _smallest(held: list[FlowTable], keys: list[Array], flows: int) -> tuple[list[FlowTable], list[Array], float]:
    every = np.concatenate(keys)
    cut = float(np.partition(every, flows)[flows])
    chosen = every < cut
    return [_compact(concatenate(held).rows(chosen))], [every[chosen]], cut


def _compact(table: FlowTable) -> FlowTable:
    """Without the hosts that no flow names."""
    used, ends = np.unique(np.concatenate([table.src, table.dst]), return_inverse=True)
    src, dst = np.split(ends.astype(np.int32), 2)
    return replace(table, hosts=table.hosts[used], src=src, dst=dst)
