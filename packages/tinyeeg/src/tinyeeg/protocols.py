"""Train and test under a protocol: one clone of the pipeline per fold, tuning nested inside, a clock as the rival.

Normalisation `person` subtracts the mean feature vector of each person before the classifier, `session` that of each session of
each person. They use no label, but they do use all unlabelled windows of the tested person (or session): the score is that of a
device that has been worn for a while in the states to be told apart. `global` learns centre and spread on the training set alone;
for the other two the score of `global` is reported beside them. By default a new person's windows are looked at only where that
pays, beyond chance, between the training people, see `choose`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from tinyeeg import models, splits
from tinyeeg.splits import Fold
from tinyeeg.table import Table, Windows

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

NORMALISE = ("auto", "person", "session", "global")


@dataclass(frozen=True)
class FoldScore:
    """The result of one fold.

    Attributes:
        fold: what was tested.
        balanced_accuracy, accuracy: of its test windows.
        n_train, n_test: windows.
        confusion: rows are true states, columns predicted ones, in the order of `classes`.
        parameters: what was chosen on its training rows: ``normalise`` under ``auto``, and what tuning found.
    """

    fold: str
    balanced_accuracy: float
    accuracy: float
    n_train: int
    n_test: int
    confusion: list[list[int]]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The result of a protocol.

    Attributes:
        protocol, model: what was run.
        asked: normalisation asked for, such as ``auto``; each fold names what it chose.
        normalise: what `choose` takes on all rows, for a model of all people.
        classes: names of the states.
        balanced_accuracy: mean over folds; the chance level is ``1 / len(classes)``.
        accuracy: mean over folds.
        majority: accuracy of always saying the most frequent state.
        folds: every fold.
        predicted: predicted state of each window, -1 where never tested, shape (N,).
    """

    protocol: str
    model: str
    asked: str
    normalise: str
    classes: tuple[str, ...]
    balanced_accuracy: float
    accuracy: float
    majority: float
    folds: tuple[FoldScore, ...]
    predicted: NDArray[np.int64]


def resolve(normalise: str, protocol: str, windows: Windows) -> str:
    """What `auto` may mean for the design of these recordings.

    Within a session `global`. Between people or sessions `session` if each session of each person holds all states in similar shares
    (none below half an equal one), `person` if at least half of the people have all states, else `global`: where a person shows one
    state only, subtracting the mean would subtract the state.

    Args:
        normalise: a word of `NORMALISE`.
        protocol: see `tinyeeg.splits`.
        windows: who showed which state, and when.

    Raises:
        InputError: for an unknown word, or for `session` under ``adaptable``, whose calibration is one per person.
    """
    if normalise not in NORMALISE:
        raise InputError(f"--normalise {normalise}: not known; choose from {', '.join(NORMALISE)}")
    if normalise == "session" and protocol == "adaptable":
        raise InputError("--normalise session: adaptable calibrates a person once, not each session; use person or global")
    if normalise != "auto":
        return normalise
    if protocol not in ("cross-subject", "cross-session", "adaptable"):
        return "global"
    if protocol != "adaptable" and (_shares(windows, windows.person_session) >= 0.5 / len(windows.classes)).all():
        return "session"
    complete = (_shares(windows, windows.subject) > 0).all(axis=1)
    return "person" if complete.mean() >= 0.5 else "global"


def choose(X: NDArray[np.float64], windows: Windows, normalise: str, protocol: str) -> str:
    """What `auto` means for these training rows.

    Under ``cross-subject`` the word of `resolve` has to pay: each of these people (or of ten groups of them) is left out in turn, and
    unless LDA gains more than one standard error of the gain, it is ``global``. Other protocols take the word as it is.

    Args:
        X: features of the training rows alone, shape (N, F).
        windows: their origin.
        normalise, protocol: see `evaluate`.
    """
    candidate = resolve(normalise, protocol, windows)
    if normalise != "auto" or candidate == "global" or protocol != "cross-subject":
        return candidate
    try:
        folds = splits.cross_subject(windows, max_folds=10)
    except InputError:
        return "global"  # one person, or a state that only one person shows: nothing to tell by
    scores = {}
    for word in (candidate, "global"):
        rows = centred(X, windows, word, protocol)

        def fit_predict(fold: Fold, rows: NDArray[np.float64] = rows) -> tuple[NDArray[np.int64], dict[str, Any]]:
            return models.make("lda").fit(rows[fold.train], windows.y[fold.train]).predict(rows[fold.test]), {}

        found = scored(windows, folds, fit_predict, protocol, "lda", word)
        scores[word] = np.array([fold.balanced_accuracy for fold in found.folds])
    gain = scores[candidate] - scores["global"]
    return candidate if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else "global"


def _shares(windows: Windows, keys: NDArray[np.str_]) -> NDArray[np.float64]:
    """Share of each state in the windows of each key, shape (keys, K)."""
    names, rows = np.unique(keys, return_inverse=True)
    counts = np.zeros((len(names), len(windows.classes)))
    np.add.at(counts, (rows, windows.y), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def wearers(windows: Windows, normalise: str, protocol: str) -> NDArray[np.str_]:
    """Whose mean is subtracted from each window: a person's, or a session's; shape (N,)."""
    return windows.person_session if normalise == "session" or protocol == "cross-session" else windows.subject


def centred(X: NDArray[np.float64], windows: Windows, normalise: str, protocol: str, fold: Fold | None = None) -> NDArray[np.float64]:
    """Subtract each person's (or session's) own mean feature vector, unless `normalise` is ``global``.

    Under ``adaptable`` the tested person's mean comes from the calibration windows only.
    """
    if normalise == "global":
        return X
    keys = wearers(windows, normalise, protocol)
    result = X.copy()
    for key in np.unique(keys):
        own = keys == key
        source = own
        if protocol == "adaptable" and fold is not None and np.isin(np.flatnonzero(own), fold.test).any():
            source = own & np.isin(np.arange(len(X)), fold.train)
        result[own] -= X[source].mean(axis=0)
    return result


def evaluate(
    table: Table,
    protocol: str,
    *,
    model: str = "lda",
    normalise: str = "auto",
    tune: bool = False,
    folds: list[Fold] | None = None,
    calibration_s: float = 20.0,
    seed: int = 0,
) -> Evaluation:
    """Score a model under a protocol.

    Args:
        table: features and origins.
        protocol: see `tinyeeg.splits`.
        model: name in `tinyeeg.models`.
        normalise: ``auto``, ``person``, ``session`` or ``global``, see `choose`.
        tune: search `tinyeeg.models.grid` by folds of the same kind inside each training set.
        folds: folds to use instead of the protocol's.
        calibration_s: for ``adaptable``.
        seed: of the model and of random splits.
    """
    plan = splits.split(protocol, table.windows, calibration_s=calibration_s, seed=seed) if folds is None else folds

    def fit_predict(fold: Fold) -> tuple[NDArray[np.int64], dict[str, Any]]:
        windows = table.windows.take(fold.train)
        word = choose(table.X[fold.train], windows, normalise, protocol)
        X = centred(table.X, table.windows, word, protocol, fold)
        fitted, parameters = fit(X[fold.train], windows, protocol, model=model, tune=tune, seed=seed)
        chosen = {"normalise": word} if normalise == "auto" else {}
        return fitted.predict(X[fold.test]), chosen | parameters

    word = choose(table.X, table.windows, normalise, protocol)
    return scored(table.windows, plan, fit_predict, protocol, model, word, asked=normalise)


def fit(X: NDArray[np.float64], windows: Windows, protocol: str, *, model: str, tune: bool, seed: int) -> tuple[Pipeline, dict[str, Any]]:
    """Fit a fresh pipeline on these rows alone; with `tune`, choose its parameters by folds inside them.

    Returns:
        The fitted pipeline and what tuning chose.
    """
    from sklearn.exceptions import ConvergenceWarning

    pipeline = models.make(model, seed)
    with warnings.catch_warnings():
        # The MLP and the linear SVM stop after a fixed number of passes; that is part of their regularisation.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not tune:
            return pipeline.fit(X, windows.y), {}
        from sklearn.model_selection import GridSearchCV

        inner = splits.inner_split(protocol, windows)
        search = GridSearchCV(pipeline, models.grid(model), scoring="balanced_accuracy", cv=inner, error_score="raise")
        search.fit(X, windows.y)
    return search.best_estimator_, {key.removeprefix("model__"): value for key, value in search.best_params_.items()}


def time_only(
    windows: Windows, protocol: str, *, folds: list[Fold] | None = None, calibration_s: float = 20.0, seed: int = 0
) -> Evaluation:
    """Score a shallow tree that sees only the minutes since the session began: what the clock alone explains.

    Arguments are those of `evaluate`.
    """
    from sklearn.tree import DecisionTreeClassifier

    plan = splits.split(protocol, windows, calibration_s=calibration_s, seed=seed) if folds is None else folds
    minutes = windows.minutes[:, None]

    def fit_predict(fold: Fold) -> tuple[NDArray[np.int64], dict[str, Any]]:
        tree = DecisionTreeClassifier(max_depth=3, class_weight="balanced", random_state=seed)
        return tree.fit(minutes[fold.train], windows.y[fold.train]).predict(minutes[fold.test]), {}

    return scored(windows, plan, fit_predict, protocol, "time-only", "global")


def nearest(table: Table, folds: list[Fold], protocol: str) -> Evaluation:
    """Score a nearest-neighbour classifier on standardised features: where windows overlap, it finds the neighbour in time.

    Args:
        table: features and origins.
        folds: the split.
        protocol: its name.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit_predict(fold: Fold) -> tuple[NDArray[np.int64], dict[str, Any]]:
        pipeline = make_pipeline(StandardScaler(), KNeighborsClassifier(1))
        return pipeline.fit(table.X[fold.train], table.windows.y[fold.train]).predict(table.X[fold.test]), {}

    return scored(table.windows, folds, fit_predict, protocol, "nearest", "global")


def scored(
    windows: Windows,
    plan: list[Fold],
    fit_predict: Callable[[Fold], tuple[NDArray[np.int64], dict[str, Any]]],
    protocol: str,
    model: str,
    normalise: str,
    asked: str | None = None,
) -> Evaluation:
    """Score predictions fold by fold.

    Args:
        windows: origin and state of the rows.
        plan: the folds.
        fit_predict: fits on a fold's training rows; returns the predictions for its test rows and what was chosen on the training rows.
        protocol, model, normalise, asked: names, for the result; `asked` is `normalise` by default.
    """
    from sklearn.metrics import confusion_matrix

    predicted = np.full(len(windows), -1)
    scores = []
    for fold in plan:
        y = windows.y[fold.test]
        guess, parameters = fit_predict(fold)
        predicted[fold.test] = guess
        confusion = confusion_matrix(y, guess, labels=range(len(windows.classes)))
        present = confusion.sum(axis=1) > 0
        recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
        scores.append(
            FoldScore(
                fold.name, float(recall.mean()), float(np.mean(guess == y)), len(fold.train), len(fold.test), confusion.tolist(), parameters
            )
        )
    majority = float(np.bincount(windows.y).max() / len(windows))
    return Evaluation(
        protocol, model, asked or normalise, normalise, windows.classes, float(np.mean([score.balanced_accuracy for score in scores])),
        float(np.mean([score.accuracy for score in scores])), majority, tuple(scores), predicted,
    )  # fmt: skip
