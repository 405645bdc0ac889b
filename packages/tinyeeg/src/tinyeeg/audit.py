"""Find leaks: windows that share samples, people or sessions on both sides, copies of files, steps fitted before the split.

Peers such as leakfence audit splits that one hands them; here every split is audited when it is made, and `tinyeeg audit` takes
foreign ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_json
from numpy.typing import NDArray

from tinyeeg import protocols, splits
from tinyeeg.splits import Fold
from tinyeeg.table import Table, Windows


@dataclass(frozen=True)
class Leak:
    """One finding.

    Attributes:
        kind: ``overlap``, ``subject``, ``session``, ``copy`` or ``fitted-before-split``.
        fold: where; empty for the whole data set.
        count: test windows (or files) concerned.
        detail: one line for a reader.
    """

    kind: str
    fold: str
    count: int
    detail: str


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        protocol: what the split claims to be.
        leaks: findings; empty if clean.
        folds: number of folds looked at.
        scores: balanced accuracy of the model, of a nearest neighbour and of the clock alone (keys ``model``, ``nearest``, ``clock``)
            under the protocol (``clean``) and under random windows (``leaky``); empty without data.
    """

    protocol: str
    leaks: tuple[Leak, ...]
    folds: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def audit_folds(windows: Windows, folds: Sequence[Fold], protocol: str) -> list[Leak]:
    """Check folds: no shared raw sample (look-back included), and no person or session on both sides where the protocol says so.

    Args:
        windows: N windows.
        folds: any folds of their rows.
        protocol: one of `tinyeeg.splits.PROTOCOLS`, or ``random-windows``, of which only the samples are checked.
    """
    leaks = []
    for fold in folds:
        both = np.intersect1d(fold.train, fold.test)
        shared = splits.overlapping(windows, fold.test, fold.train)
        if len(both):
            leaks.append(Leak("overlap", fold.name, len(both), f"{len(both)} windows are in both the training and the test set"))
        elif shared.any():
            share = f"{int(shared.sum())} of {len(fold.test)} test windows share raw samples with training windows"
            leaks.append(Leak("overlap", fold.name, int(shared.sum()), share))
        for kind, names, wanted in (("subject", windows.subject, "cross-subject"), ("session", windows.person_session, "cross-session")):
            if protocol == wanted:
                common = np.intersect1d(names[fold.train], names[fold.test])
                if len(common):
                    count = int(np.isin(names[fold.test], common).sum())
                    leaks.append(Leak(kind, fold.name, count, f"{kind} {', '.join(common[:5])} is in the training and the test set"))
    return leaks


def fitted_before_split(
    fit_predict: Callable[[NDArray[np.float64], NDArray[np.int64], Fold], NDArray[Any]],
    X: NDArray[np.float64],
    y: NDArray[np.int64],
    fold: Fold,
    seed: int = 0,
) -> Leak | None:
    """Change the test rows and their labels; if predictions for the *training* rows change, something was fitted on test rows.

    Args:
        fit_predict: given all rows, labels and a fold, fits what it likes and returns predictions for the training rows.
        X: features, (N, F).
        y: labels, (N,).
        fold: the split.
        seed: of the change.
    """
    rng = np.random.default_rng(seed)
    changed_X, changed_y = X.copy(), y.copy()
    changed_X[fold.test] = 40 + 10 * rng.normal(size=changed_X[fold.test].shape) - changed_X[fold.test]
    changed_y[fold.test] = rng.permutation(changed_y[fold.test])
    before, after = fit_predict(X, y, fold), fit_predict(changed_X, changed_y, fold)
    different = int(np.sum(np.asarray(before) != np.asarray(after)))
    if not different:
        return None
    return Leak("fitted-before-split", fold.name, different, f"changing test rows changes {different} predictions on training rows")


def audit_table(
    table: Table,
    protocol: str,
    *,
    copies: Sequence[tuple[str, str]] = (),
    model: str = "lda",
    normalise: str = "auto",
    calibration_s: float = 20.0,
    seed: int = 0,
) -> Audit:
    """Audit a data set under a protocol, and score the protocol beside the leaky split and the clock.

    Args:
        table: features and origins.
        protocol: a protocol, or ``random-windows`` to see it fail.
        copies: (file, file that it copies), as `tinyeeg.readers.read_folder` found them.
        model, normalise, calibration_s, seed: see `tinyeeg.protocols.evaluate`.
    """
    windows = table.windows
    folds = splits.split(protocol, windows, calibration_s=calibration_s, seed=seed)
    leaks = [Leak("copy", "", 1, f"{copy} is a copy of {original}") for copy, original in copies]
    leaks += audit_folds(windows, folds, protocol)

    def fit_predict(X: NDArray[np.float64], y: NDArray[np.int64], fold: Fold) -> NDArray[Any]:
        changed = replace(windows, y=y)
        word = protocols.choose(X[fold.train], changed.take(fold.train), normalise, protocol)
        rows = protocols.centred(X, windows, word, protocol, fold)
        fitted, _ = protocols.fit(rows[fold.train], changed.take(fold.train), protocol, model=model, tune=False, seed=seed)
        return fitted.predict(rows[fold.train])

    found = fitted_before_split(fit_predict, table.X, windows.y, folds[0], seed)
    if found is not None:
        leaks.append(found)
    scores = {}
    for name, kind, plan, normal in (
        ("clean", protocol, folds, normalise),
        ("leaky", splits.LEAKY, splits.random_windows(windows, seed=seed), "global"),
    ):
        scores[name] = {
            "model": protocols.evaluate(table, kind, model=model, normalise=normal, folds=plan, seed=seed).balanced_accuracy,
            "nearest": protocols.nearest(table, plan, kind).balanced_accuracy,
            "clock": protocols.time_only(windows, kind, folds=plan, seed=seed).balanced_accuracy,
        }
    return Audit(protocol, tuple(leaks), len(folds), scores)


def audit_file(path: str | Path) -> Audit:
    """Audit a split that another tool made.

    The file holds ``{"protocol": "cross-subject", "folds": [{"name": "1", "train": [WINDOW, ...], "test": [WINDOW, ...]}]}``
    where a WINDOW is ``{"recording": "file", "start": 0, "stop": 1024, "subject": "a", "session": "1"}`` with start and stop in raw
    samples, look-back of filters and smoothing included.

    Raises:
        InputError: if the file is not of that form.
    """
    data = read_json(path, "split")
    leaks: list[Leak] = []
    try:
        protocol = str(data["protocol"])
        if protocol not in splits.PROTOCOLS:
            raise InputError(f"{path}: protocol is {protocol!r}; choose from {', '.join(splits.PROTOCOLS)}")
        for number, entry in enumerate(data["folds"]):
            rows = [*entry["train"], *entry["test"]]
            count = len(entry["train"])
            text = {key: np.array([str(row.get(key, "")) for row in rows]) for key in ("recording", "subject", "session")}
            start, stop = (np.array([int(row[key]) for row in rows], dtype=np.int64) for key in ("start", "stop"))
            if (stop <= start).any():
                raise InputError(f"{path}: fold {number}: window {int(np.argmax(stop <= start))} has stop <= start")
            zeros = np.zeros(len(rows), dtype=np.int64)
            windows = Windows(
                zeros, ("",), text["subject"], text["session"], text["recording"], zeros, start, stop, zeros.astype(float), 1.0
            )
            fold = Fold(str(entry.get("name", number)), np.arange(count), np.arange(count, len(rows)))
            leaks += audit_folds(windows, [fold], protocol)
        return Audit(protocol, tuple(leaks), len(data["folds"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{path} is no split: needs {{"protocol", "folds": [{{"train": [{{"recording", "start", "stop", "subject", "session"}}], "test"}}]}} '
            f"({type(error).__name__}: {error})"
        ) from error
