"""Classifiers by name, each as one scikit-learn pipeline of `Baseline` and model, with the grid that `--tune` searches.

All but the boosted trees weigh the states equally, because attention recordings rarely hold them for equally long.
Regularisation is stronger than scikit-learn's defaults: overlapping windows of a few people are far fewer independent
examples than rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from tinyeeg.features import Baseline


class BalancedLDA(LinearDiscriminantAnalysis):
    """Linear discriminant analysis with equal priors and shrunk covariance.

    Args:
        shrinkage: weight of the diagonal in the covariance, 0 to 1, or ``auto`` (Ledoit-Wolf).
    """

    def __init__(self, shrinkage: float | str = 0.5) -> None:
        super().__init__(solver="lsqr", shrinkage=shrinkage)

    def fit(self, X: Any, y: Any) -> BalancedLDA:
        """Fit with the same prior for each state of `y`."""
        count = len(np.unique(y))
        self.priors = np.full(count, 1 / count)
        return super().fit(X, y)


_MODELS: dict[str, tuple[Callable[[int], BaseEstimator], dict[str, list[Any]]]] = {
    "lda": (lambda seed: BalancedLDA(), {"shrinkage": [0.1, 0.3, 0.5, 0.8]}),
    "svm": (lambda seed: LinearSVC(C=0.001, class_weight="balanced", random_state=seed, max_iter=5000), {"C": [1e-4, 1e-3, 1e-2, 1e-1]}),
    "logistic": (lambda seed: LogisticRegression(C=0.03, class_weight="balanced", max_iter=1000), {"C": [0.003, 0.03, 0.3]}),
    # At most 15 x 63 nodes, so that the C of the compact chain with it stays below 24 kB whatever the data.
    "forest": (
        lambda seed: RandomForestClassifier(
            n_estimators=15, max_leaf_nodes=32, min_samples_leaf=5, class_weight="balanced", random_state=seed
        ),
        {"max_leaf_nodes": [8, 16, 32]},
    ),
    "boosting": (
        lambda seed: GradientBoostingClassifier(n_estimators=30, max_depth=3, subsample=0.5, max_features="sqrt", random_state=seed),
        {"max_depth": [2, 3]},
    ),
    "mlp": (
        lambda seed: MLPClassifier(hidden_layer_sizes=(16,), alpha=1.0, max_iter=60, early_stopping=False, random_state=seed),
        {"alpha": [0.1, 1.0, 10.0]},
    ),
}
NAMES = tuple(_MODELS)


def make(name: str, seed: int = 0) -> Pipeline:
    """A pipeline with the steps ``baseline`` and ``model``.

    Raises:
        InputError: for an unknown name.
    """
    return Pipeline([("baseline", Baseline()), ("model", _known(name)[0](seed))])


def grid(name: str) -> dict[str, list[Any]]:
    """The parameters of `make`'s pipeline that tuning tries."""
    return {f"model__{key}": values for key, values in _known(name)[1].items()}


def _known(name: str) -> tuple[Callable[[int], BaseEstimator], dict[str, list[Any]]]:
    if name not in _MODELS:
        raise InputError(f"--model {name}: not known; choose from {', '.join(NAMES)}")
    return _MODELS[name]
