"""Why a flow was flagged: which of its features, and which of its hosts' means, lie outside of what benign training flows show.

A deviation is the distance from the benign 1 to 99 % range in units of that range (at least 0.001 of the scaled axis). It names what is unusual, not what
the network computed; for the edge-aware model, whose score is a sum over features, `shares` is the latter and exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_ids.flow.detector import Detector
from edge_ids.flow.stream import ScoredWindow
from edge_ids.flow.table import Array

TOP = 3


def explain(detector: Detector, window: ScoredWindow, flow: int) -> dict[str, Any]:
    """Explain flow number `flow` of `window`; plain data."""
    raw = window.table.features[flow]
    result: dict[str, Any] = {"flow": _unusual(detector, window.x[flow], raw)}
    if detector.uses_graph:
        result["source_host"] = _unusual(detector, window.means[window.src[flow]])
        result["destination_host"] = _unusual(detector, window.means[window.dst[flow]])
    if detector.kind == "edge-aware":
        result["score_shares"] = shares(detector, window, flow)
    return result


def _unusual(detector: Detector, x_F: Array, raw_F: Array | None = None) -> list[dict[str, Any]]:
    low, high = np.array(detector.reference["low"]), np.array(detector.reference["high"])
    away = np.maximum(x_F - high, low - x_F) / np.maximum(high - low, 1e-3)
    found = []
    for index in np.argsort(-away, kind="stable")[:TOP]:
        if away[index] > 0:
            entry: dict[str, Any] = {"feature": detector.schema.features[index], "deviation": round(float(away[index]), 3)}
            entry |= {"scaled": round(float(x_F[index]), 4), "benign": [round(float(low[index]), 4), round(float(high[index]), 4)]}
            if raw_F is not None:
                entry["value"] = float(raw_F[index])
            found.append(entry)
    return found


def shares(detector: Detector, window: ScoredWindow, flow: int) -> list[dict[str, Any]]:
    """The features that make up most of an edge-aware score, with their share of it."""
    import torch

    start = flow // detector.window * detector.window
    rows = slice(start, start + detector.window)
    x = torch.from_numpy(np.ascontiguousarray(window.x[rows]))
    with torch.inference_mode():
        src, dst = torch.from_numpy(window.src[rows]), torch.from_numpy(window.dst[rows])
        z = detector.model.embed(torch.from_numpy(window.means), src, dst, x)
        parts = detector.model.feature_errors(z[None], x[None])[0, flow - start].numpy()
    return [
        {"feature": detector.schema.features[index], "share": round(float(parts[index] / max(parts.sum(), 1e-12)), 3)}
        for index in np.argsort(-parts, kind="stable")[:TOP]
    ]
