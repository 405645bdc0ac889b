"""Random Forest, LightGBM and LCCDE (Yang et al., GLOBECOM 2022) on single frames.

The study's hyper-parameters are not public; these are the libraries' defaults, said so in every result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from edge_shared.errors import require

from edge_ids.can.frames import Array


def smote(x: Array, y: Array, target: int, seed: int) -> tuple[Array, Array]:
    """Raise every attack class to `target` rows by SMOTE (Chawla et al. 2002); for a training part only.

    Classes with fewer than two rows, or already with more than `target`, stay as they are.
    """
    require("imblearn", "edge-ids[can]")
    from imblearn.over_sampling import SMOTE

    counts = {int(c): int(n) for c, n in zip(*np.unique(y, return_counts=True), strict=True)}
    wanted = {c: target for c, n in counts.items() if c != 0 and 2 <= n < target}
    if not wanted:
        return x, y
    neighbours = min(5, min(counts[c] for c in wanted) - 1)
    return SMOTE(sampling_strategy=wanted, k_neighbors=neighbours, random_state=seed).fit_resample(x, y)


class _Estimator:
    def __init__(self, seed: int = 0):
        self.seed = seed

    def _make(self, classes: int) -> Any:
        raise NotImplementedError

    def fit(self, x: Array, y: Array, classes: int) -> Any:
        """Train on (N, 9) features with labels below `classes`; classes without a row get probability 0."""
        self.classes = classes
        self.present, codes = np.unique(y, return_inverse=True)
        self.model = self._make(len(self.present)).fit(x, codes) if len(self.present) > 1 else None
        return self

    def predict_proba(self, x: Array) -> Array:
        """Probabilities (N, classes)."""
        out = np.zeros((len(x), self.classes))
        out[:, self.present] = self.model.predict_proba(x) if self.model is not None else 1.0
        return out


class RandomForest(_Estimator):
    """scikit-learn's forest of 100 trees."""

    def _make(self, classes: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(n_estimators=100, random_state=self.seed, n_jobs=2)


class LightGBM(_Estimator):
    """LightGBM with its defaults."""

    def _make(self, classes: int) -> Any:
        require("lightgbm", "edge-ids[can]")
        from lightgbm import LGBMClassifier

        return _Named(LGBMClassifier(random_state=self.seed, n_jobs=2, verbose=-1))


class _XGBoost(_Estimator):
    def _make(self, classes: int) -> Any:
        require("xgboost", "edge-ids[can]")
        from xgboost import XGBClassifier

        return XGBClassifier(random_state=self.seed, n_jobs=2, verbosity=0)


class _CatBoost(_Estimator):
    def _make(self, classes: int) -> Any:
        require("catboost", "edge-ids[can]")
        from catboost import CatBoostClassifier

        return CatBoostClassifier(iterations=100, random_seed=self.seed, thread_count=2, verbose=False, allow_writing_files=False)


class _Named:
    """LightGBM names its columns; arrays without names then warn in scikit-learn."""

    def __init__(self, model: Any):
        self.model = model

    def fit(self, x: Array, y: Array) -> _Named:
        self.model.fit(x, y)
        return self

    def predict_proba(self, x: Array) -> Array:
        return (
            self.model.booster_.predict(x)
            if self.model.n_classes_ > 2
            else np.stack([1 - (p := self.model.booster_.predict(x)), p], axis=1)
        )


class LCCDE:
    """Leader class and confidence decision ensemble: for each class the booster with the best F1 on it leads.

    All three agree: that class. Two agree: the class that the leader of their class predicts. None agree: of the models
    that lead the class they predict, the most confident one; if there is none, the most confident of all.
    Leaders are chosen on the last fifth of the training rows (the authors' code uses its test set), then all three are
    trained on all rows.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, x: Array, y: Array, classes: int) -> LCCDE:
        """Train on (N, 9) features with labels below `classes`."""
        from sklearn.metrics import f1_score

        order = np.random.default_rng(self.seed).permutation(len(y))
        cut = max(int(0.8 * len(y)), 1)
        inner, check = order[:cut], order[cut:]
        makers = (LightGBM, _XGBoost, _CatBoost)
        scores = []
        for maker in makers:
            guess = maker(self.seed).fit(x[inner], y[inner], classes).predict_proba(x[check]).argmax(axis=1)
            scores.append(f1_score(y[check], guess, labels=np.arange(classes), average=None, zero_division=0))
        self.leaders = np.array(scores).argmax(axis=0)
        self.models = [maker(self.seed).fit(x, y, classes) for maker in makers]
        return self

    def predict_proba(self, x: Array) -> Array:
        """One-hot decisions mixed with the deciding model's probabilities (N, classes); the argmax is the decision."""
        return lccde_decision(np.stack([model.predict_proba(x) for model in self.models]), self.leaders)


def lccde_decision(proba_MNC: Array, leaders_C: Array) -> Array:
    """Probabilities (N, C) of the model that decides each row, see `LCCDE`.

    Args:
        proba_MNC: of the three models.
        leaders_C: index of the leading model of each class.
    """
    guess_MN = proba_MNC.argmax(axis=2)
    confidence_MN = proba_MNC.max(axis=2)
    leads_MN = leaders_C[guess_MN] == np.arange(3)[:, None]
    free = np.where(leads_MN, confidence_MN, confidence_MN - 2)  # leaders first, then confidence
    decider_N = free.argmax(axis=0)
    a, b, c = guess_MN
    same = (a == b) & (b == c)
    pair_N = np.where((a == b) | (a == c), a, b)
    has_pair = ((a == b) | (a == c) | (b == c)) & ~same
    decider_N = np.where(has_pair, leaders_C[pair_N], decider_N)
    rows = np.arange(len(a))
    mean_NC = proba_MNC.mean(axis=0)
    return np.where(same[:, None], mean_NC, proba_MNC[decider_N, rows])
