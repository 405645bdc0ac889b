"""Hosts as nodes, flows as edges: the mean over a host's incoming flows, whole or sampled, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_ids.flow.table import Array


def in_means(x_EF: Array, dst_E: Array, hosts: int) -> Array:
    """Mean of the features of each host's incoming flows, (V, F) float32; 0 for a host without any.

    This is the aggregation of the E-GraphSAGE variant in GraphIDS (section 3.2), summed in float64.
    """
    counts = np.bincount(dst_E, minlength=hosts)
    sums = np.stack([np.bincount(dst_E, weights=x_EF[:, column], minlength=hosts) for column in range(x_EF.shape[1])], axis=1)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class InEdges:
    """Incoming flows by host in compressed rows: those of host v are ``edges[starts[v]:starts[v + 1]]``."""

    starts: Array
    edges: Array

    @classmethod
    def build(cls, dst_E: Array, hosts: int) -> InEdges:
        """Sort the flows by destination."""
        starts = np.concatenate([[0], np.cumsum(np.bincount(dst_E, minlength=hosts))])
        return cls(starts, np.argsort(dst_E, kind="stable"))


class SampledMeans:
    """In-flow means with at most `fanout` flows per host, drawn anew for every batch.

    A host with fewer flows has the same mean every time, whatever the weights are: the features are inputs, not
    learned. So those means are taken once, and only busier hosts are sampled.
    """

    def __init__(self, x_EF: Array, dst_E: Array, hosts: int, fanout: int) -> None:
        self._x = x_EF
        self._index = InEdges.build(dst_E, hosts)
        self._fanout = fanout
        self._means = in_means(x_EF, dst_E, hosts)
        self._busy = np.flatnonzero(np.diff(self._index.starts) > fanout)

    def draw(self, generator: np.random.Generator) -> Array:
        """Means for one batch, (V, F) float32; valid until the next call."""
        for host in self._busy:
            start, stop = self._index.starts[host : host + 2]
            chosen = generator.choice(stop - start, self._fanout, replace=False, shuffle=False)
            self._means[host] = self._x[self._index.edges[start + chosen]].mean(0, dtype=np.float64)
        return self._means
