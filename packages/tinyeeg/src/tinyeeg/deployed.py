"""A trained chain and classifier as plain data: what `model.json` holds, what the stream runs and what becomes C.

Scores of a feature vector f: ``z = clip((f - center) / scale, -clip, clip)``, then one of

* linear: ``scores = W z + b``;
* mlp: ``scores = W2 relu(W1 z + b1) + b2``;
* trees: ``scores = sum over trees of the values of the leaf that z falls into`` (go left where ``z[feature] <= threshold``).

The class is the first of the largest scores. No pickle: a file of numbers.

Dimensions: F features, K classes, H hidden units, N nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_json, write_json
from numpy.typing import NDArray

from tinyeeg.chain import Chain

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """``weights`` (K, F) and ``bias`` (K,)."""

    weights: Array
    bias: Array

    def scores(self, z_NF: Array) -> Array:
        """Scores, (N, K)."""
        return z_NF @ self.weights.T + self.bias


@dataclass(frozen=True)
class Mlp:
    """One hidden layer: ``w1`` (H, F), ``b1`` (H,), ``w2`` (K, H), ``b2`` (K,)."""

    w1: Array
    b1: Array
    w2: Array
    b2: Array

    def scores(self, z_NF: Array) -> Array:
        """Scores, (N, K)."""
        return np.maximum(z_NF @ self.w1.T + self.b1, 0) @ self.w2.T + self.b2


@dataclass(frozen=True)
class Trees:
    """An additive ensemble in one array of nodes.

    Attributes:
        root: first node of each tree.
        feature: feature of a node, -1 for a leaf, shape (N,).
        threshold: shape (N,), representable in float32.
        left, right: children; for a leaf `left` is its row of `values`.
        values: what a leaf adds to the scores, shape (leaves, K).
        bias: start of the scores, shape (K,).
    """

    root: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: Array
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    values: Array
    bias: Array

    def leaves(self, z_NF: NDArray[Any], threshold: NDArray[Any] | None = None) -> NDArray[np.int64]:
        """Row of `values` that each row falls into, per tree, shape (N, trees)."""
        threshold = self.threshold if threshold is None else threshold
        node = np.tile(self.root, (len(z_NF), 1))
        while True:
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                return self.left[node]
            value = np.take_along_axis(z_NF, np.maximum(feature, 0), axis=1)
            child = np.where(value <= threshold[node], self.left[node], self.right[node])
            node = np.where(inner, child, node)

    def scores(self, z_NF: Array) -> Array:
        """Scores, (N, K)."""
        return self.bias + self.values[self.leaves(z_NF.astype(np.float32).astype(np.float64))].sum(axis=1)


Model = Linear | Mlp | Trees
_KINDS: dict[str, type[Linear] | type[Mlp] | type[Trees]] = {"linear": Linear, "mlp": Mlp, "trees": Trees}


@dataclass(frozen=True)
class Deployed:
    """Everything between raw samples and a state.

    Attributes:
        chain: preprocessing.
        classes: K names.
        center, scale: shape (F,), decibels.
        clip: largest magnitude after scaling.
        person: True if `center` is to be replaced by the mean feature vector of the person who wears the headset
            (unlabelled calibration in ordinary use); `center` is then the average person.
        model: classifier on z.
        provenance: data, seed, scores: how it came to be.
    """

    chain: Chain
    classes: tuple[str, ...]
    center: Array
    scale: Array
    clip: float
    person: bool
    model: Model
    provenance: dict[str, Any]

    @property
    def kind(self) -> str:
        """``linear``, ``mlp`` or ``trees``."""
        return next(name for name, cls in _KINDS.items() if isinstance(self.model, cls))

    def scores(self, features_NF: Array, center: Array | None = None) -> Array:
        """Scores of feature vectors, (N, K).

        Args:
            features_NF: decibels.
            center: the person's mean feature vector, shape (F,); the average person's by default.
        """
        z = (np.asarray(features_NF) - (self.center if center is None else center)) / self.scale
        return self.model.scores(np.clip(z, -self.clip, self.clip))

    def predict(self, features_NF: Array, center: Array | None = None) -> NDArray[np.int64]:
        """Index of the state for each feature vector, (N,)."""
        return np.argmax(self.scores(features_NF, center), axis=1)

    def save(self, path: str | Path) -> None:
        """Write ``model.json``."""
        write_json(
            path,
            {
                "format": "tinyeeg-model-1",
                "chain": self.chain.to_json(),
                "classes": self.classes,
                "center": self.center,
                "scale": self.scale,
                "clip": self.clip,
                "person": self.person,
                "model": {"kind": self.kind, **asdict(self.model)},
                "provenance": self.provenance,
            },
        )

    @staticmethod
    def load(path: str | Path) -> Deployed:
        """Read what `save` wrote; a run folder stands for its ``model.json``.

        Raises:
            InputError: if it is no such file or its shapes do not fit.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "model.json"
        data = read_json(path, "model")
        try:
            if data["format"] != "tinyeeg-model-1":
                raise InputError(f"{path} has format {data['format']!r}; this version reads tinyeeg-model-1")
            fields = dict(data["model"])
            kind = _KINDS[fields.pop("kind")]
            integers = ("root", "feature", "left", "right")
            arrays: dict[str, Any] = {
                key: np.array(value, dtype=np.int64 if key in integers else np.float64) for key, value in fields.items()
            }
            model = kind(**arrays)
            chain = Chain.from_json(data["chain"])
            result = Deployed(
                chain, tuple(data["classes"]), np.array(data["center"], dtype=np.float64), np.array(data["scale"], dtype=np.float64),
                float(data["clip"]), bool(data["person"]), model, dict(data["provenance"]),
            )  # fmt: skip
            if not (np.isfinite(result.center).all() and (result.scale > 0).all()):
                raise ValueError("center and scale must be numbers, scale above 0")
            if result.scores(np.zeros((1, chain.n_features))).shape != (1, len(result.classes)):
                raise ValueError("shapes do not fit")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is no model of tinyeeg ({type(error).__name__}: {error}); make one with tinyeeg train --out"
            ) from error
        return result


def from_sklearn(estimator: Any, features: int, classes: int) -> Model:
    """Turn a fitted scikit-learn classifier into plain data.

    Args:
        estimator: linear (LDA, LinearSVC, logistic regression), MLPClassifier with one ReLU layer, random forest, or gradient boosting.
        features, classes: F and K.

    Raises:
        InputError: for any other estimator.
    """
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.neural_network import MLPClassifier

    if isinstance(estimator, MLPClassifier) and estimator.activation == "relu" and len(estimator.coefs_) == 2:
        w2, b2 = estimator.coefs_[1].T, estimator.intercepts_[1]
        if len(w2) == 1:
            w2, b2 = np.concatenate([-w2, w2]) / 2, np.concatenate([-b2, b2]) / 2
        return Mlp(estimator.coefs_[0].T.copy(), estimator.intercepts_[0].copy(), w2.copy(), np.asarray(b2).copy())
    if isinstance(estimator, RandomForestClassifier):
        count = len(estimator.estimators_)
        return _trees([(tree.tree_, None) for tree in estimator.estimators_], np.zeros(classes), 1 / count)
    if isinstance(estimator, GradientBoostingClassifier):
        prior = np.log(np.maximum(estimator.init_.class_prior_, 1e-9))
        stages = estimator.estimators_
        if stages.shape[1] == 1:
            # Two classes: one raw score, the log odds of the second; split evenly between both.
            odds = prior[1] - prior[0]
            trees = [(tree.tree_, (np.array([-0.5, 0.5]))) for tree in stages.ravel()]
            return _trees(trees, np.array([-odds / 2, odds / 2]), estimator.learning_rate)
        trees = [(tree.tree_, np.eye(classes)[column]) for row in stages for column, tree in enumerate(row)]
        return _trees(trees, prior, estimator.learning_rate)
    if hasattr(estimator, "coef_") and hasattr(estimator, "intercept_"):
        weights, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
        if len(weights) == 1:
            # Two classes: one score, positive for the second; split evenly between both.
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        return Linear(weights.astype(np.float64), bias.astype(np.float64))
    raise InputError(
        f"{type(estimator).__name__} cannot be deployed; use a linear model, a forest, boosted trees or an MLP with one ReLU layer"
    )


def _trees(trees: Sequence[tuple[Any, Array | None]], bias: Array, factor: float) -> Trees:
    root: list[int] = []
    feature: list[int] = []
    threshold: list[float] = []
    left: list[int] = []
    right: list[int] = []
    values: list[Array] = []
    for tree, direction in trees:
        offset = len(feature)
        root.append(offset)
        for node in range(tree.node_count):
            if tree.children_left[node] < 0:
                leaf = tree.value[node, 0]
                values.append(factor * (leaf / leaf.sum() if direction is None else leaf[0] * direction))
                feature.append(-1)
                threshold.append(0.0)
                left.append(len(values) - 1)
                right.append(len(values) - 1)
            else:
                feature.append(int(tree.feature[node]))
                threshold.append(_float32_below(float(tree.threshold[node])))
                left.append(offset + int(tree.children_left[node]))
                right.append(offset + int(tree.children_right[node]))
    return Trees(
        np.array(root), np.array(feature), np.array(threshold), np.array(left), np.array(right), np.array(values), np.asarray(bias, float)
    )


def _float32_below(value: float) -> float:
    """The largest float32 not above `value`: for a float32 x, ``x <= value`` and ``x <= result`` are the same."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))
