"""Flows as they come: cut into windows, put into the horizon, scored; the same scores however the input is cut up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from edge_ids.flow.detector import Detector
from edge_ids.flow.horizon import EdgeHorizon
from edge_ids.flow.schema import Schema
from edge_ids.flow.table import Array, FlowTable, concatenate


@dataclass(frozen=True)
class ScoredWindow:
    """Flows that were scored together.

    Attributes:
        table: the flows; `src` and `dst` are rows of `names`, not of `table.hosts`.
        x: scaled features, (E, F).
        scores: (E,).
        src: entry of `names` of each flow's source, (E,).
        dst: likewise of its destination.
        names: addresses that occur in the window.
        means: in-flow means in the horizon at that moment, (len(names), F).
    """

    table: FlowTable
    x: Array
    scores: Array
    src: Array
    dst: Array
    names: list[str]
    means: Array


class StreamScorer:
    """Score a stream with the horizon of `detector`; state is bounded by horizon and window.

    A window is scored when it holds `window` flows, or when a flow comes whose time is more than `delay` after the window's
    first. A flow's own window is in the horizon when it is scored; no later one is.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.horizon = EdgeHorizon(len(detector.schema), detector.horizon.flows, detector.horizon.seconds)
        self._pending: FlowTable | None = None
        self._pending_x: Array = np.zeros((0, len(detector.schema)), np.float32)

    @property
    def pending(self) -> int:
        """Flows that wait for their window to fill."""
        return 0 if self._pending is None else len(self._pending)

    def feed(self, table: FlowTable) -> Iterator[ScoredWindow]:
        """Take flows in; yields the windows that they complete."""
        x_EF = self.detector.scaler.transform(table.features)
        if self._pending is not None and len(self._pending):
            table = concatenate([self._pending, table])
            x_EF = np.concatenate([self._pending_x, x_EF])
        edges = self._cuts(table)
        self._pending, self._pending_x = table.rows(slice(edges[-1], None)), x_EF[edges[-1] :]
        yield from self._score(table, x_EF, edges)

    def tick(self, now: float) -> Iterator[ScoredWindow]:
        """Score what waits if its first flow is more than `delay` before `now`, seconds since the epoch: a quiet network gets scores."""
        delay = self.detector.horizon.delay
        times = None if self._pending is None or not len(self._pending) else _times(self._pending)
        if times is not None and delay is not None and now > times[0] + delay:
            yield from self.flush()

    def flush(self) -> Iterator[ScoredWindow]:
        """Score what is left at the end."""
        if self._pending is not None and len(self._pending):
            table, self._pending = self._pending, None
            yield from self._score(table, self._pending_x, [0, len(table)])
            self._pending_x = self._pending_x[:0]

    def _cuts(self, table: FlowTable) -> list[int]:
        window, delay = self.detector.window, self.detector.horizon.delay
        times = _times(table)
        if times is None or delay is None:
            return list(range(0, len(table) + 1, window))
        times = np.maximum.accumulate(times)
        edges = [0]
        while edges[-1] < len(table):
            late = int(np.searchsorted(times, times[edges[-1]] + delay, side="right"))
            cut = min(late, edges[-1] + window)
            if cut == len(table) and cut < edges[-1] + window:
                break
            edges.append(cut)
        return edges

    def _score(self, table: FlowTable, x_EF: Array, edges: list[int]) -> Iterator[ScoredWindow]:
        times = _times(table)
        raw = None if self.detector.uses_graph or len(edges) < 2 else self.detector.model.score(x_EF[: edges[-1]])
        for start, stop in pairwise(edges):
            part, x = table.rows(slice(start, stop)), x_EF[start:stop]
            codes, ends = np.unique(np.concatenate([part.src, part.dst]), return_inverse=True)
            src, dst = np.split(ends.astype(np.int64), 2)
            names = part.hosts[codes].tolist()
            self.horizon.add(x, names, dst, None if times is None else times[start:stop])
            means = self.horizon.means(names)
            scores = self.detector.score(x, means, src, dst) if raw is None else raw[start:stop]
            yield ScoredWindow(part, x, scores, src, dst, names, means)

    def state(self) -> dict[str, Any]:
        """Plain arrays from which `restore` goes on."""
        state = {f"horizon.{name}": value for name, value in self.horizon.state().items()}
        if self._pending is not None and len(self._pending):
            table = self._pending
            state |= {"pending.src": table.hosts[table.src], "pending.dst": table.hosts[table.dst], "pending.features": table.features}
            for name in ("label", "attack", "start", "end"):
                if getattr(table, name) is not None:
                    state[f"pending.{name}"] = getattr(table, name)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the saved stream stopped."""
        self.horizon.restore({name.removeprefix("horizon."): value for name, value in state.items() if name.startswith("horizon.")})
        if "pending.features" in state:
            hosts, codes = np.unique(np.concatenate([state["pending.src"], state["pending.dst"]]), return_inverse=True)
            src, dst = np.split(codes.astype(np.int32), 2)
            schema = Schema(self.detector.schema.name, self.detector.schema.features)
            optional = [state.get(f"pending.{name}") for name in ("label", "attack", "start", "end")]
            self._pending = FlowTable(schema, self.detector.extractor, hosts, src, dst, state["pending.features"], *optional)
            self._pending_x = self.detector.scaler.transform(self._pending.features)


def stream_scores(detector: Detector, table: FlowTable) -> Array:
    """Scores of `table`, (E,), as a stream in its own order would have them."""
    scorer = StreamScorer(detector)
    windows = [*scorer.feed(table), *scorer.flush()]
    return np.concatenate([window.scores for window in windows]) if windows else np.zeros(0)


def _times(table: FlowTable) -> Array | None:
    return table.start if table.end is None else table.end
