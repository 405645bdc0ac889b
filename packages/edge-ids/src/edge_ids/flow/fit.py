"""Train a detector on a file of flows and say honestly how good it is: every figure stands beside its two controls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, require

from edge_ids.flow import sources
from edge_ids.flow.classical import CLASSICAL
from edge_ids.flow.detector import KINDS, Detector, Horizon, reference_of
from edge_ids.flow.metrics import Metrics, average_precision, measure
from edge_ids.flow.presets import NEURAL_KINDS, PAIR_KINDS, preset
from edge_ids.flow.processes import rank
from edge_ids.flow.sample import sample
from edge_ids.flow.scaling import Scaler
from edge_ids.flow.splits import PROTOCOLS, benign, split
from edge_ids.flow.stream import stream_scores
from edge_ids.flow.table import Array, FlowTable, concatenate
from edge_ids.flow.thresholds import RULES, Threshold, calibrate

CHECKPOINT = "checkpoint.safetensors"
PAIR_SLACK = 0.02
"""Of the F1 threshold of models that score pairs of hosts, see `thresholds.supervised_f1`: about what a macro F1 varies by that rests on a hundred benign flows."""


@dataclass(frozen=True)
class FitConfig:
    """What `fit` does.

    Attributes:
        data: file of flows.
        model: one of `detector.KINDS`.
        split: ``random`` (paper), ``chronological`` or ``unseen-host-pair``.
        scaler: ``minmax`` (paper) or ``log1p``.
        threshold: ``f1`` (paper), ``mad``, ``quantile``, or ``auto``: ``f1`` where the validation flows have both labels, else
            ``quantile``, else (too few flows) ``mad``.
        false_alarm_rate: target of ``quantile``.
        confidence: of ``quantile``.
        preset: settings of the torch models, see `presets.preset`.
        epochs: overrides the preset.
        patience: overrides the preset.
        precision: number format inside a torch model while it trains, see `kernels.resolve`.
        sample: at most so many flows of the file, drawn at random while it is read; None takes all, and needs the memory for them.
        exclude: features to leave out.
        horizon: how a stream remembers flows.
        controls: also score an untrained model and a raw-feature Isolation Forest.
        seed: of split, weights, batches.
        format: of the file; ``auto`` looks.
    """

    data: str
    model: str = "simpleae"
    split: str = "chronological"
    scaler: str = "minmax"
    threshold: str = "auto"
    false_alarm_rate: float = 0.01
    confidence: float = 0.95
    preset: str = "auto"
    epochs: int | None = None
    patience: int | None = None
    exclude: tuple[str, ...] = ()
    horizon: Horizon = field(default_factory=Horizon)
    controls: bool = True
    seed: int = 0
    format: str = "auto"
    precision: str = "auto"
    sample: int | None = None


@dataclass(frozen=True)
class FitResult:
    """What came out.

    Attributes:
        metrics: test figures of whole-file scoring, with ``flows_per_second`` (scaling, aggregation, scoring), ``training_flows_per_second``,
            and ``stream``: the same figures for the test flows scored as a stream with the stream threshold.
        controls: `metrics` of the same model ``untrained`` and of a raw-feature ``iforest``, same split, scaler and threshold rule.
        cost: parameters, seconds, bytes.
        parts: flows, benign and attack, of train, val and test.
        training: per-epoch record of a torch model.
        detector: the trained detector.
        test_rows: rows of the test flows in the table.
        test_scores: their scores, whole-file.
        test_label: their labels; None without.
        timed: whether the flows have times.
    """

    model: str
    split: str
    seed: int
    metrics: dict[str, Any]
    controls: dict[str, Any]
    threshold: Threshold
    stream_threshold: Threshold
    cost: dict[str, Any]
    parts: dict[str, Any]
    training: dict[str, Any] | None
    detector: Detector = field(repr=False)
    test_rows: Array = field(repr=False)
    test_scores: Array = field(repr=False)
    test_label: Array | None = field(repr=False)
    timed: bool


def read_all(config: FitConfig) -> FlowTable:
    """The flows of the file, or a sample of them, with the columns that `config` leaves."""
    parts = sources.read(config.data, config.format)
    tables = list(parts) if config.sample is None else sample(parts, config.sample, config.seed)
    if not tables:
        raise InputError(f"{config.data}: holds no flow")
    table = concatenate(tables)
    return table.select(table.schema.without(config.exclude)) if config.exclude else table


def check(config: FitConfig) -> None:
    """Refuse settings that no data could make valid, before anything is read or written.

    Raises:
        InputError: naming the option; torch missing for a torch model.
    """
    if config.model not in KINDS:
        raise InputError(f"--model {config.model}: choose one of {', '.join(KINDS)}")
    for option, value, known in (
        ("split", config.split, PROTOCOLS), ("scaler", config.scaler, ("minmax", "log1p")), ("threshold", config.threshold, ("auto", *RULES)),
        ("format", config.format, sources.FORMATS),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"--{option} {value}: choose one of {', '.join(known)}")
    for option, share in (("false-alarm-rate", config.false_alarm_rate), ("confidence", config.confidence)):
        if not 0 < share < 1:
            raise InputError(f"--{option} {share:g}: give a share between 0 and 1")
    if config.model in NEURAL_KINDS:
        require("torch", "edge-ids[torch]")
        from edge_ids.flow import kernels

        preset(config.preset, config.model, "nf-v2")  # type: ignore[arg-type]
        kernels.resolve(config.precision)


def fit(
    config: FitConfig,
    table: FlowTable | None = None,
    *,
    checkpoint: Path | None = None,
    on_epoch: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Train, calibrate and test a detector.

    Args:
        config: what to do.
        table: flows, if they are in memory already; `config.data` is then only a name.
        checkpoint: folder for the state after each epoch, and to go on from if it holds one.
        on_epoch: gets a line per epoch.

    Raises:
        InputError: for unusable data or settings; torch missing for a torch model.
    """
    check(config)
    table = read_all(config) if table is None else table
    rows = split(table, config.split, config.seed)  # type: ignore[arg-type]
    train, val, test = benign(table, rows.train), table.rows(rows.val), table.rows(rows.test)
    if not len(val) or not len(test):
        raise InputError(f"--split {config.split} leaves no validation or test flow; give more flows or another split")
    settings = None
    if config.model in NEURAL_KINDS:
        settings = preset(config.preset, config.model, table.schema.name, config.epochs, config.patience, len(train))  # type: ignore[arg-type]
    scaler = Scaler.fit(table.features[train], config.scaler)  # type: ignore[arg-type]
    x_train = scaler.transform(table.features[train])
    x_val = scaler.transform(val.features)
    detector = Detector(config.model, table.schema, table.extractor, scaler, None, settings, config.horizon)
    controls: dict[str, Any] = {}
    training = None
    began = time.perf_counter()
    if settings is None:
        detector.model = CLASSICAL[config.model].fit(x_train, config.seed)
        seconds = time.perf_counter() - began
        speed, parameters = len(x_train) / seconds, sum(value.size for value in detector.model.arrays.values())
    else:
        from edge_ids.flow import neural

        detector.model = neural.build(config.model, len(table.schema), settings, config.seed)
        if config.controls:
            controls["untrained"] = _figures(detector, config, val, x_val, test)
        record = _train(detector, config, table.rows(train), x_train, val, x_val, checkpoint, on_epoch)
        training = asdict(record)
        seconds, speed, parameters = record.seconds, record.flows_per_second, neural.parameters(detector.model)
    detector.threshold = _threshold(config, detector.kind, detector.score_scaled(x_val, val), val.label)
    detector.stream_threshold = detector.threshold
    val_stream = stream_scores(detector, val)
    if detector.uses_graph:
        detector.stream_threshold = _threshold(config, detector.kind, val_stream, val.label)
    good = np.ones(len(val), bool) if val.label is None else val.label == 0
    detector.reference = reference_of(x_train) | {
        "score_edges": np.quantile(val_stream[good] if good.any() else val_stream, np.linspace(0.1, 0.9, 9)).tolist(),
        "outside": [float(((x_val[good] < 0) | (x_val[good] > 1)).mean()) if good.any() else 0.0],
    }
    metrics: dict[str, Any] = _figures(detector, config, val, x_val, test)
    test_scores = detector.score_table(test)
    stream_began = time.perf_counter()
    scores = stream_scores(detector, test)
    stream_speed = len(test) / (time.perf_counter() - stream_began)
    metrics["stream"] = asdict(measure(scores, test.label, detector.stream_threshold.value)) | {"flows_per_second": stream_speed}
    metrics["training_flows_per_second"] = speed
    if config.controls and config.model != "iforest":
        control = Detector("iforest", table.schema, table.extractor, scaler, None, None, config.horizon)
        control.model = CLASSICAL["iforest"].fit(x_train, config.seed)
        controls["iforest"] = _figures(control, config, val, x_val, test)
    parts = {name: _count(table, part) for name, part in (("train", rows.train), ("val", rows.val), ("test", rows.test))}
    detector.about = {"seed": config.seed, "split": config.split, "data": Path(config.data).name, "parts": parts}
    return FitResult(
        config.model, config.split, config.seed, metrics, controls, detector.threshold, detector.stream_threshold,
        {"parameters": parameters, "training_seconds": seconds}, parts, training, detector, rows.test,
        test_scores, test.label, table.start is not None,
    )  # fmt: skip


def _train(
    detector: Detector, config: FitConfig, train: FlowTable, x_train: Array, val: FlowTable, x_val: Array, folder: Path | None,
    on_epoch: Callable[[str], None],
) -> Any:  # fmt: skip
    from edge_shared.checkpoints import load_checkpoint, save_checkpoint

    from edge_ids.flow import neural
    from edge_ids.flow.graph import in_means

    means = in_means(x_val, val.dst, len(val.hosts))

    def validate() -> float | None:
        if val.label is None or not 0 < val.label.sum() < len(val):
            return None
        return average_precision(detector.score(x_val, means, val.src, val.dst), val.label)

    path = None if folder is None else folder / CHECKPOINT

    def tell(epoch: int, loss: float, quality: float | None) -> None:
        on_epoch(f"epoch {epoch}: loss {loss:.4g}" + ("" if quality is None else f", validation PR-AUC {quality:.4f}"))

    # Hosts without a training flow would only make the arrays long.
    _, ends = np.unique(np.concatenate([train.src, train.dst]), return_inverse=True)
    src, dst = np.split(ends, 2)
    assert detector.config is not None
    return neural.train(
        detector.model, x_train, src, dst, detector.config, seed=config.seed, validate=validate, precision=config.precision,
        state=load_checkpoint(path) if path is not None and path.is_file() else None,
        checkpoint=(lambda state: None) if path is None or rank() else (lambda state: save_checkpoint(path, state)), on_epoch=tell,
    )  # fmt: skip


def _threshold(config: FitConfig, kind: str, scores: Array, label: Array | None) -> Threshold:
    slack = PAIR_SLACK if kind in PAIR_KINDS else 0.0
    if config.threshold != "auto":
        return calibrate(config.threshold, scores, label, config.false_alarm_rate, config.confidence, slack)  # type: ignore[arg-type]
    if label is not None and 0 < label.sum() < len(label):
        return calibrate("f1", scores, label, slack=slack)
    try:
        return calibrate("quantile", scores, label, config.false_alarm_rate, config.confidence)
    except InputError:
        return calibrate("mad", scores, label)


def _figures(detector: Detector, config: FitConfig, val: FlowTable, x_val: Array, test: FlowTable) -> dict[str, Any]:
    threshold = detector.threshold or _threshold(config, detector.kind, detector.score_scaled(x_val, val), val.label)
    began = time.perf_counter()
    scores = detector.score_table(test)
    seconds = time.perf_counter() - began
    found: Metrics = measure(scores, test.label, threshold.value)
    return asdict(found) | {"flows_per_second": len(test) / max(seconds, 1e-9)}


def _count(table: FlowTable, rows: Array) -> dict[str, int | None]:
    attacks = None if table.label is None else int(table.label[rows].sum())
    return {"flows": len(rows), "benign": None if attacks is None else len(rows) - attacks, "attack": attacks}
