"""Whether the traffic still looks like the calibration traffic. The model and its threshold stay as they are: a detector that retrains on what
it sees can be led astray by the one who is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_ids.flow.detector import Detector
from edge_ids.flow.table import Array

BLOCK = 4096
PSI_LIMIT = 0.25


@dataclass(frozen=True)
class Drift:
    """One finished block of flows against the calibration.

    Attributes:
        psi: population stability index of the scores over the deciles of benign calibration scores; above 0.25 counts as a shift.
        outside: share of scaled feature values outside of the training range.
        drifted: whether either is too high.
    """

    psi: float
    outside: float
    drifted: bool


class DriftMonitor:
    """Count scores and out-of-range values in blocks of 4,096 flows."""

    def __init__(self, detector: Detector) -> None:
        self._edges = np.array(detector.reference["score_edges"])
        self._limit = 5 * detector.reference["outside"][0] + 0.01
        self._values_per_flow = len(detector.schema)
        self._counts = np.zeros(len(self._edges) + 1, np.int64)
        self._outside = 0
        self.last: Drift | None = None
        self.blocks = 0
        self.drifted_blocks = 0

    def update(self, scores: Array, x_EF: Array) -> Drift | None:
        """Take a window in; returns a verdict when a block is full."""
        self._counts += np.bincount(np.searchsorted(self._edges, scores), minlength=len(self._counts))
        self._outside += int(((x_EF < 0) | (x_EF > 1)).sum())
        flows = int(self._counts.sum())
        if flows < BLOCK:
            return None
        # Half a flow in every bin keeps the logarithm finite.
        share = (self._counts + 0.5) / (flows + 0.5 * len(self._counts))
        expected = 1 / len(self._counts)
        psi = float(((share - expected) * np.log(share / expected)).sum())
        outside = self._outside / (flows * self._values_per_flow)
        self.last = Drift(psi, outside, psi > PSI_LIMIT or outside > self._limit)
        self.blocks += 1
        self.drifted_blocks += self.last.drifted
        self._counts[:] = 0
        self._outside = 0
        return self.last

    def state(self) -> dict[str, Any]:
        """Plain data from which `restore` goes on."""
        return {"counts": self._counts.tolist(), "outside": self._outside, "blocks": self.blocks, "drifted_blocks": self.drifted_blocks}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._counts[:] = state["counts"]
        self._outside, self.blocks, self.drifted_blocks = state["outside"], state["blocks"], state["drifted_blocks"]
