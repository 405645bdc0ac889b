"""The study's comparison, done twice: by its own leaky protocol and by one that cannot leak, on the same data and models.

- ``paper``: a random 80/20 split of frames (or of blocks of frames). Periodic traffic puts near-duplicates of every test frame
  into the training set.
- ``time``: whole captures are held out if there are at least two with attacks; otherwise each capture's last 30 % of the time,
  with one second left out between the parts.

SMOTE, where asked for, sees the training part only, in both.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from edge_shared.errors import InputError

from edge_ids.can.detector import Detection, Scores, StreamingDetector
from edge_ids.can.frames import Array, Frames
from edge_ids.can.metrics import Evaluation, binary_metrics
from edge_ids.can.models import NAMES, WINDOWED, make
from edge_ids.can.models.features import frame_features, frame_windows, id_windows

Protocol = Literal["time", "paper"]
PROTOCOLS: tuple[Protocol, ...] = ("time", "paper")
EMBARGO_US = 1_000_000


@dataclass(frozen=True)
class Result:
    """One model under one protocol.

    Attributes:
        model, protocol: names.
        metrics: binary metrics of samples (frames or blocks), ``pr_auc``, ``f1_by_class``, ``macro_f1``; for the protocol
            ``time`` also events and false alarms per hour, at frame or block level.
        train_samples, test_samples, train_seconds, test_samples_per_second: cost.
        rows: what a sample is: frames per sample.
    """

    model: str
    protocol: str
    metrics: dict[str, Any]
    train_samples: int
    test_samples: int
    train_seconds: float
    test_samples_per_second: float
    rows: int


def split(frames: Frames, protocol: Protocol, seed: int) -> tuple[Array, Array, str]:
    """Boolean masks (N) of training and test frames, and how they were made.

    Raises:
        InputError: if a part would have no attack or no benign frame.
    """
    n = len(frames)
    if protocol == "paper":
        chosen = np.random.default_rng(seed).permutation(n)
        train = np.zeros(n, np.bool_)
        train[chosen[: int(0.8 * n)]] = True
        return train, ~train, "random 80/20 of frames"
    with_attack = np.unique(frames.capture[frames.attack])
    if len(with_attack) >= 2:
        rng = np.random.default_rng(seed)
        held = set(rng.permutation(with_attack)[: max(1, round(0.3 * len(with_attack)))].tolist())
        benign = np.setdiff1d(np.unique(frames.capture), with_attack)
        held |= set(rng.permutation(benign)[: round(0.3 * len(benign))].tolist())
        test = np.isin(frames.capture, list(held))
        train = ~test
        how = f"{len(held)} captures held out"
    else:
        train, test = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for capture in np.unique(frames.capture):
            rows = frames.capture == capture
            begin, end = frames.time_us[rows].min(), frames.time_us[rows].max()
            cut = begin + (end - begin) * 7 // 10
            train |= rows & (frames.time_us < cut - EMBARGO_US // 2)
            test |= rows & (frames.time_us >= cut + EMBARGO_US // 2)
        how = "last 30 % of the time of each capture, 1 s between the parts"
    for part, name in ((train, "training"), (test, "test")):
        attacks = frames.attack[part]
        if not attacks.any() or attacks.all():
            raise InputError(
                f"the {name} part of protocol {protocol} ({how}) has {'no attack' if not attacks.any() else 'only attacks'}; give more captures"
            )
    return train, test, how


def _samples(frames: Frames, name: str, binary: bool) -> tuple[Array, Array, Array]:
    """Inputs, labels and the first row of each sample."""
    if name == "dcnn":
        x, y, rows = id_windows(frames)
    elif name == "attention":
        x, y, rows = frame_windows(frames)
    else:
        x, y, rows = frame_features(frames), frames.label.astype(np.int64), np.arange(len(frames))
    return x, (y > 0).astype(np.int64) if binary else y, rows


def run(
    frames: Frames,
    name: str,
    protocol: Protocol,
    *,
    seed: int = 0,
    binary: bool = True,
    smote: int = 0,
    epochs: int | None = None,
    residual: bool = False,
    **options: Any,
) -> Result:
    """Train and test one model.

    Args:
        frames: labelled captures, each sorted by time.
        name: one of `edge_ids.can.models.NAMES`, or ``streaming``.
        protocol: ``time`` or ``paper``.
        seed: of split and model.
        binary: attack or not, instead of classes.
        smote: raise attack classes of the training part to so many rows (frame models only); 0 for none.
        epochs: of deep models.
        residual: the DCNN with true residual blocks, which the study's code does not have.
        options: further settings of the model.

    Raises:
        InputError: if frames are unlabelled or a part lacks a class.
    """
    if not frames.labelled:
        raise InputError("comparing models needs a label for every frame (--metadata, or a labelled format)")
    _known(name)
    train_mask, test_mask, _ = split(frames, protocol, seed)
    if name == "streaming":
        return _streaming(frames, protocol, train_mask, test_mask)
    classes = 2 if binary else len(frames.classes)
    size = WINDOWED.get(name, 1)
    if size > 1 and protocol == "paper":  # the study cuts blocks first and then shuffles them
        x, y, rows = _samples(frames, name, binary)
        chosen = np.random.default_rng(seed).permutation(len(y))
        first, second = chosen[: int(0.8 * len(y))], np.sort(chosen[int(0.8 * len(y)) :])
        x_train, y_train, x_test, y_test = x[first], y[first], x[second], y[second]
        tested, rows = frames, rows[second]
    else:
        x_train, y_train, _ = _samples(frames.take(train_mask), name, binary)
        tested = frames.take(test_mask)
        x_test, y_test, rows = _samples(tested, name, binary)
    if smote and size == 1:
        from edge_ids.can.models.classical import smote as oversample

        x_train, y_train = oversample(x_train, y_train, smote, seed)
    if name == "dcnn":
        options["residual"] = residual
    begin = time.monotonic()
    model = make(name, seed=seed, epochs=epochs, **options).fit(x_train, y_train, classes)
    train_seconds = time.monotonic() - begin
    begin = time.monotonic()
    proba = model.predict_proba(x_test)
    rate = len(y_test) / max(time.monotonic() - begin, 1e-9)
    names = ("benign", "attack") if binary else frames.classes
    metrics = sample_metrics(y_test, proba, names)
    if protocol == "time":
        metrics |= _event_metrics(tested, rows, size, proba.argmax(axis=1) > 0)
    return Result(name, protocol, metrics, len(y_train), len(y_test), train_seconds, rate, size)


def sample_metrics(y: Array, proba: Array, names: tuple[str, ...]) -> dict[str, Any]:
    """Metrics of samples: attack against benign, and F1 per class.

    Args:
        y: labels (N).
        proba: probabilities (N, classes).
        names: of the classes.
    """
    from sklearn.metrics import average_precision_score, f1_score

    guess = proba.argmax(axis=1)
    attack, said = y > 0, guess > 0
    result: dict[str, Any] = binary_metrics(
        int((attack & said).sum()), int((~attack & said).sum()), int((attack & ~said).sum()), int((~attack & ~said).sum())
    )
    result["pr_auc"] = float(average_precision_score(attack, 1 - proba[:, 0])) if attack.any() else None
    present = [code for code in range(len(names)) if (y == code).any() or (guess == code).any()]
    scores = f1_score(y, guess, labels=present, average=None, zero_division=0)
    result["f1_by_class"] = {names[code]: float(score) for code, score in zip(present, scores, strict=True)}
    result["macro_f1"] = float(np.mean(scores))
    return result


def _event_metrics(frames: Frames, rows: Array, size: int, said: Array) -> dict[str, Any]:
    """Events and false alarms, with one alarm per run of positive samples closer than three seconds."""
    ratio = np.zeros(len(frames), np.float32)
    for offset in range(size):
        ratio[rows[said] + offset] = 1.0
    hits = np.flatnonzero(ratio > 0)
    first = hits[np.r_[True, np.diff(frames.time_us[hits]) > 3_000_000]] if len(hits) else hits
    alarms = [Detection(int(i), int(frames.time_us[i]), -1, "ensemble", 1.0, 1.0) for i in first]
    evaluation = Evaluation()
    evaluation.add(frames, Scores(ratio, np.zeros(len(frames), np.int64), alarms))
    result = evaluation.result()
    return {
        key: result[key]
        for key in ("events", "event_recall", "median_seconds_to_alarm", "false_alarms", "benign_hours", "false_alarms_per_hour")
    }


def _streaming(frames: Frames, protocol: Protocol, train_mask: Array, test_mask: Array) -> Result:
    """The deployable detector; it trains on benign frames only and needs whole stretches of traffic, so `paper` is not for it."""
    from edge_ids.can.profile import train

    if protocol == "paper":
        raise InputError("the streaming detector reads traffic in order; it has no random frame split (use --protocol time)")
    begin = time.monotonic()
    detector = StreamingDetector(train(frames.take(train_mask)))
    train_seconds = time.monotonic() - begin
    tested = frames.take(test_mask)
    begin = time.monotonic()
    scores = detector.process(tested)
    rate = len(tested) / max(time.monotonic() - begin, 1e-9)
    evaluation = Evaluation()
    evaluation.add(tested, scores)
    return Result("streaming", protocol, evaluation.result(), int(train_mask.sum()), len(tested), train_seconds, rate, 1)


def _known(name: str) -> None:
    if name != "streaming" and name not in NAMES:
        raise InputError(f"model {name!r} is unknown; use one of streaming, {', '.join(NAMES)}")


def compare(frames: Frames, models: list[str], protocols: list[Protocol], **settings: Any) -> list[dict[str, Any]]:
    """`run` for every model and protocol, as plain values; the streaming detector under ``time`` only.

    Raises:
        InputError: before anything is trained, for a name that is unknown or nothing to do; later as `run` does.
    """
    for name in models:
        _known(name)
    if not models:
        raise InputError("no model is given")
    if set(models) == {"streaming"} and "time" not in protocols:
        raise InputError("the streaming detector reads traffic in order: it has no protocol paper, use time")
    results = []
    for name in models:
        for protocol in protocols:
            if name == "streaming" and protocol == "paper":
                continue
            results.append(asdict(run(frames, name, protocol, **settings)))
    return results
