"""Feature scaling that survives inf, NaN and 8.9e211, kept as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from edge_shared.errors import InputError

from edge_ids.flow.table import Array

Kind = Literal["minmax", "log1p"]
CLIP = 10.0


@dataclass(frozen=True)
class Scaler:
    """Map each feature to [0, 1] over the benign training flows, and clip to [-10, 10] (GraphIDS, section 4.2).

    Attributes:
        kind: ``minmax`` (the paper) or ``log1p``: sign(x) log(1 + |x|) first, which spreads heavy tails.
        low: least value of each feature, after the logarithm if any, (F,).
        high: greatest value, (F,).
    """

    kind: Kind
    low: Array
    high: Array

    @classmethod
    def fit(cls, features: Array, kind: Kind) -> Scaler:
        """Take the range of `features`, (E, F) float64; inf and NaN count as 0.

        Raises:
            InputError: if there is no flow.
        """
        if kind not in ("minmax", "log1p"):
            raise InputError(f"--scaler {kind}: choose minmax or log1p")
        if not len(features):
            raise InputError("no flow to fit the scaler on; the training part holds no benign flow")
        values = _prepare(features, kind)
        return cls(kind, values.min(0), values.max(0))

    def transform(self, features: Array) -> Array:
        """Scale (E, F) float64 to (E, F) float32; a constant feature maps to its difference from the constant."""
        values = _prepare(features, self.kind)
        width = self.high - self.low
        values -= self.low
        values /= np.where(width > 0, width, 1.0)
        return np.clip(values, -CLIP, CLIP, out=values).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data; floats survive the round trip bit for bit."""
        return {"kind": self.kind, "low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scaler:
        """The inverse of `to_json`."""
        return cls(data["kind"], np.array(data["low"], float), np.array(data["high"], float))


def _prepare(features: Array, kind: Kind) -> Array:
    values = np.nan_to_num(np.asarray(features, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.sign(values) * np.log1p(np.abs(values)) if kind == "log1p" else values
