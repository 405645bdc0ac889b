"""Raw-feature detectors: Isolation Forest, PCA, HBOS and CBLOF, fitted by scikit-learn, kept as plain arrays, scored by numpy.

They see one flow at a time and no graph: the control that any graph model has to beat, and a choice for devices without torch.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from edge_ids.flow.table import Array

ClassicalKind = Literal["iforest", "pca", "hbos", "cblof"]
CLASSICAL_KINDS = ("iforest", "pca", "hbos", "cblof")


BLOCK = 256
"""Flows that go down the trees of a forest together: what they touch stays in the cache."""


class RawModel(Protocol):
    """Scores flows from their own features; `arrays` is all of its state."""

    arrays: dict[str, Array]

    def score(self, x_EF: Array) -> Array:
        """Higher is more suspicious, (E,)."""
        ...


class IsolationForest:
    """Liu, Ting, Zhou 2008, as `sklearn.ensemble.IsolationForest` with 100 trees of 256 flows; scores equal ``-score_samples``."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(cls, x_EF: Array, seed: int) -> IsolationForest:
        """Grow the trees on (E, F) float32."""
        from sklearn.ensemble import IsolationForest as Forest

        forest = Forest(n_estimators=100, random_state=seed).fit(x_EF)
        trees = [estimator.tree_ for estimator in forest.estimators_]
        size = max(tree.node_count for tree in trees)

        def pad(values: list[Array], kind: type) -> Array:
            return np.stack([np.pad(value, (0, size - len(value))).astype(kind) for value in values])

        left = [np.where(tree.children_left < 0, np.arange(tree.node_count), tree.children_left) for tree in trees]
        right = [np.where(tree.children_right < 0, np.arange(tree.node_count), tree.children_right) for tree in trees]
        return cls({
            "feature": pad([np.maximum(tree.feature, 0) for tree in trees], np.int32),
            "threshold": pad([tree.threshold for tree in trees], np.float64),
            "left": pad(left, np.int32),
            "right": pad(right, np.int32),
            "length": pad([_depths(tree) + _average_path(tree.n_node_samples) for tree in trees], np.float64),
            "shape": np.array([max(tree.max_depth for tree in trees), forest.max_samples_]),
        })  # fmt: skip

    def score(self, x_EF: Array) -> Array:
        """2 to the power of minus mean path length / expected path length, in (0, 1]."""
        a = self.arrays
        depth, samples = (int(value) for value in a["shape"])
        # All trees as one table, their children side by side, and a block of flows down all trees at once.
        roots_T = np.arange(len(a["left"])) * a["left"].shape[1]
        child = (np.stack([a["left"], a["right"]], -1) + roots_T[:, None, None]).astype(np.int64).ravel()
        feature, threshold, length = a["feature"].astype(np.int64).ravel(), a["threshold"].ravel(), a["length"].ravel()
        lengths_E = np.empty(len(x_EF))
        for start in range(0, len(x_EF), BLOCK):
            part = np.ascontiguousarray(x_EF[start : start + BLOCK])
            first = np.arange(len(part))[:, None] * part.shape[1]
            node = np.broadcast_to(roots_T, (len(part), len(roots_T)))
            for _ in range(depth):
                node = child.take(2 * node + (part.take(first + feature.take(node)) > threshold.take(node)))
            lengths_E[start : start + BLOCK] = length.take(node).sum(1)
        expected = len(roots_T) * float(_average_path(np.array([samples]))[0])
        # A forest grown on one flow has no paths: every score is 1.
        return np.exp2(-lengths_E / max(expected, 1e-12))


class PCA:
    """Shyu et al. 2003: squared distance from the mean along each principal axis, over its variance.

    Axes whose variance is below 1e-6 of the total count as 1e-6 of it: benign flows leave them empty, attacks may not.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(cls, x_EF: Array, seed: int) -> PCA:
        """Take the axes of (E, F); `seed` is unused."""
        from sklearn import decomposition

        axes = decomposition.PCA().fit(x_EF.astype(np.float64)) if len(x_EF) > 1 else None
        mean = x_EF.mean(0, dtype=np.float64)
        components = np.eye(x_EF.shape[1]) if axes is None else axes.components_
        variance = np.zeros(len(components)) if axes is None else axes.explained_variance_
        floor = max(1e-6 * float(variance.sum()), 1e-12)
        return cls({"mean": mean, "components": components, "variance": np.maximum(variance, floor)})

    def score(self, x_EF: Array) -> Array:
        """Mean over the axes, (E,)."""
        a = self.arrays
        return (((x_EF - a["mean"]) @ a["components"].T) ** 2 / a["variance"]).mean(1)


class HBOS:
    """Goldstein and Dengel 2012: sum over the features of minus the logarithm of a histogram density; 10 bins, 0.1 flow added to each.

    A value outside the histogram counts as an empty bin.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(cls, x_EF: Array, seed: int, bins: int = 10) -> HBOS:
        """Count (E, F); `seed` is unused."""
        low, width = x_EF.min(0).astype(np.float64), np.maximum(np.ptp(x_EF, 0), 1e-9)
        place = _bins(x_EF, low, width, bins)
        counts = np.stack([np.bincount(column, minlength=bins + 1) for column in place.T])
        return cls({"low": low, "width": width, "cost": -np.log((counts + 0.1) / (len(x_EF) + 0.1 * (bins + 1)))})

    def score(self, x_EF: Array) -> Array:
        """Mean over the features, (E,)."""
        a = self.arrays
        place = _bins(x_EF, a["low"], a["width"], a["cost"].shape[1] - 1)
        return a["cost"][np.arange(x_EF.shape[1]), place].mean(1)


class CBLOF:
    """He et al. 2003: distance to the nearest centre of a large cluster (k-means, 8 clusters; the largest that hold 90 % are large)."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(cls, x_EF: Array, seed: int) -> CBLOF:
        """Cluster (E, F)."""
        from sklearn.cluster import KMeans

        clusters = min(8, len(np.unique(x_EF, axis=0)))
        model = KMeans(clusters, random_state=seed, n_init=3).fit(x_EF)
        sizes = np.bincount(model.labels_, minlength=clusters)
        order = np.argsort(-sizes, kind="stable")
        count = int(np.searchsorted(np.cumsum(sizes[order]), 0.9 * len(x_EF))) + 1
        return cls({"centres": model.cluster_centers_[order[:count]].astype(np.float64)})

    def score(self, x_EF: Array) -> Array:
        """Euclidean distance, (E,)."""
        centres = self.arrays["centres"]
        squares = (x_EF.astype(np.float64) ** 2).sum(1, keepdims=True) - 2 * x_EF @ centres.T + (centres**2).sum(1)
        return np.sqrt(np.maximum(squares.min(1), 0))


CLASSICAL: dict[str, type[IsolationForest] | type[PCA] | type[HBOS] | type[CBLOF]] = {
    "iforest": IsolationForest, "pca": PCA, "hbos": HBOS, "cblof": CBLOF,
}  # fmt: skip


def _bins(x_EF: Array, low: Array, width: Array, bins: int) -> Array:
    """Bin of each value, (E, F); the last one is for values outside."""
    place = (x_EF - low) / width * bins
    outside = (place < -1e-4) | (place > bins + 1e-4)
    return np.where(outside, bins, np.clip(place, 0, bins - 1).astype(np.int64))


def _depths(tree: object) -> Array:
    left, right = tree.children_left, tree.children_right  # type: ignore[attr-defined]
    depths = np.zeros(len(left))
    # Children come after their parent in scikit-learn's numbering.
    for node in np.flatnonzero(left >= 0):
        depths[left[node]] = depths[right[node]] = depths[node] + 1
    return depths


def _average_path(samples: Array) -> Array:
    """Average path length of an unsuccessful search in a binary tree of that many flows."""
    samples = np.asarray(samples, float)
    safe = np.maximum(samples, 3)
    long = 2 * (np.log(safe - 1) + np.euler_gamma) - 2 * (safe - 1) / safe
    return np.where(samples > 2, long, np.where(samples == 2, 1.0, 0.0))
