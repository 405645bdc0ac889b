"""The sliding edge horizon: each host's mean over its recent incoming flows, updated in O(F) per flow, exact for ever.

Sums are 64-bit integers in units of 2^-32 (scaled features lie in [-10, 10]), so that adding and taking away a flow cancel to the last bit:
after any number of evictions the mean is that of the flows that are left, in whatever pieces they came.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_ids.flow.table import Array

_UNIT = float(2**32)


class EdgeHorizon:
    """The last flows, at most `capacity` and, if `seconds` is given, none older than that; memory is fixed by `capacity`.

    Args:
        features: F.
        capacity: flows.
        seconds: age limit, or None.
    """

    def __init__(self, features: int, capacity: int, seconds: float | None = None) -> None:
        self.capacity = capacity
        self.seconds = seconds
        self._x = np.zeros((capacity, features), np.float32)
        self._dst = np.zeros(capacity, np.int64)
        self._time = np.full(capacity, -np.inf)
        self._first = 0
        self._size = 0
        self._newest = -np.inf
        # One row per host with a flow in the horizon; at most `capacity` of them.
        self._sums = np.zeros((64, features), np.int64)
        self._counts = np.zeros(64, np.int64)
        self._rows: dict[str, int] = {}
        self._names: list[str | None] = [None] * 64
        self._free = list(range(63, -1, -1))

    def __len__(self) -> int:
        return self._size

    @property
    def hosts(self) -> int:
        """Hosts with a flow in the horizon."""
        return len(self._rows)

    def add(self, x_EF: Array, names: list[str], dst_E: Array, time_E: Array | None) -> None:
        """Take flows in, in order, and evict what is too many or too old.

        Args:
            x_EF: scaled features.
            names: addresses.
            dst_E: entry of `names` of each flow's destination.
            time_E: seconds, or None; a flow older than the newest one counts as that new (clocks of exporters differ).
        """
        for start in range(0, len(x_EF), self.capacity):
            piece = slice(start, start + self.capacity)
            self._add(x_EF[piece], names, dst_E[piece], None if time_E is None else time_E[piece])

    def _add(self, x_EF: Array, names: list[str], dst_E: Array, time_E: Array | None) -> None:
        count = len(x_EF)
        self._evict(max(0, self._size + count - self.capacity))
        used, place = np.unique(dst_E, return_inverse=True)
        rows = np.fromiter((self._row(names[code]) for code in used), np.int64, len(used))[place]
        slots = (self._first + self._size + np.arange(count)) % self.capacity
        self._x[slots], self._dst[slots] = x_EF, rows
        self._size += count
        self._apply(x_EF, rows, 1)
        if time_E is not None and self.seconds is not None:
            times = np.maximum.accumulate(np.maximum(time_E, self._newest))
            self._time[slots] = times
            self._newest = float(times[-1])
            kept = (self._first + np.arange(self._size)) % self.capacity
            self._evict(int(np.searchsorted(self._time[kept], self._newest - self.seconds)))

    def means(self, names: list[str]) -> Array:
        """Mean of each host's incoming flows, (len(names), F) float32; 0 for a host without any."""
        rows = np.fromiter((self._rows.get(name, -1) for name in names), np.int64, len(names))
        counts = np.where(rows >= 0, self._counts[rows], 1)
        sums = np.where(rows[:, None] >= 0, self._sums[rows], 0)
        return (sums / (counts[:, None] * _UNIT)).astype(np.float32)

    def _row(self, name: str) -> int:
        row = self._rows.get(name)
        if row is None:
            if not self._free:
                size = len(self._counts)
                self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._names += [None] * size
                self._free = list(range(2 * size - 1, size - 1, -1))
            row = self._rows[name] = self._free.pop()
            self._names[row] = name
        return row

    def _apply(self, x_EF: Array, rows: Array, sign: int) -> None:
        touched, place = np.unique(rows, return_inverse=True)
        units = np.rint(x_EF.astype(np.float64) * _UNIT).astype(np.int64)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(len(touched)))
        self._sums[touched] += sign * np.add.reduceat(units[order], starts, axis=0)
        self._counts[touched] += sign * np.bincount(place)

    def _evict(self, count: int) -> None:
        if not count:
            return
        slots = (self._first + np.arange(count)) % self.capacity
        rows = self._dst[slots]
        self._apply(self._x[slots], rows, -1)
        self._first = (self._first + count) % self.capacity
        self._size -= count
        for row in np.unique(rows[self._counts[rows] == 0]):
            name = self._names[row]
            if name is not None:
                del self._rows[name]
            self._names[row] = None
            self._free.append(int(row))

    def state(self) -> dict[str, Any]:
        """Plain arrays from which `restore` goes on."""
        kept = (self._first + np.arange(self._size)) % self.capacity
        return {
            "x": self._x[kept], "time": self._time[kept], "newest": np.array(self._newest),
            "dst": np.array([self._names[row] for row in self._dst[kept]], dtype=str),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Fill an empty horizon with a saved state."""
        if not len(state["x"]):
            return
        seconds, self.seconds = self.seconds, None
        names, dst = np.unique(state["dst"], return_inverse=True)
        self._add(state["x"], names.tolist(), dst, None)
        self.seconds = seconds
        self._time[: self._size] = state["time"]
        self._newest = float(state["newest"])
