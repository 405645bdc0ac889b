"""A trained detector: weights, scaler, thresholds, and the flows it may be used on; saved without pickles."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, require
from edge_shared.files import read_json, write_json

from edge_ids.flow.classical import CLASSICAL, CLASSICAL_KINDS
from edge_ids.flow.presets import NEURAL_KINDS, NeuralConfig
from edge_ids.flow.scaling import Scaler
from edge_ids.flow.schema import Schema
from edge_ids.flow.table import Array, FlowTable
from edge_ids.flow.thresholds import Threshold

FORMAT = 1
KINDS = (*NEURAL_KINDS, *CLASSICAL_KINDS)


@dataclass(frozen=True)
class Horizon:
    """How far back a stream remembers flows (the paper's "graph-level time window"), and when it scores.

    Attributes:
        flows: flows that count for a host's mean, at most.
        seconds: age at which they stop counting; None for no limit, and ignored where flows have no times.
        window: flows that are scored together.
        delay: seconds of flow time after which a window that is not full is scored; None for no limit.
    """

    flows: int = 32_768
    seconds: float | None = None
    window: int = 512
    delay: float | None = 10.0


@dataclass
class Detector:
    """Everything that scoring needs.

    Attributes:
        kind: one of `KINDS`.
        schema: features it takes, in order.
        extractor: program that must have measured them.
        scaler: from raw to model features.
        model: torch module or `classical.RawModel`.
        config: settings of a torch model, else None.
        horizon: for streams.
        threshold: cut for whole-file scoring.
        stream_threshold: cut for streams, found on validation flows scored as a stream.
        reference: what benign training flows look like, see `reference_of`.
        about: data fingerprint, seed and split, for the reader.
    """

    kind: str
    schema: Schema
    extractor: str
    scaler: Scaler
    model: Any
    config: NeuralConfig | None
    horizon: Horizon
    threshold: Threshold | None = None
    stream_threshold: Threshold | None = None
    reference: dict[str, list[float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_graph(self) -> bool:
        """Whether scores depend on other flows."""
        return self.config is not None

    @property
    def window(self) -> int:
        """Flows per attention window."""
        return self.horizon.window if self.config is None else self.config.window

    def check(self, table: FlowTable, where: str) -> FlowTable:
        """The columns of `table` that the model takes.

        Raises:
            InputError: if another schema or extractor made the flows.
        """
        if (table.schema.name, table.extractor) != (self.schema.name, self.extractor):
            raise InputError(
                f"{where}: flows of schema {table.schema.name} by {table.extractor}, but the model was trained on {self.schema.name} by "
                f"{self.extractor}; the same name can mean another number, so train a model on flows from this source"
            )
        return table.select(self.schema)

    def score(self, x_EF: Array, means_VF: Array, src_E: Array, dst_E: Array) -> Array:
        """Score scaled flows; see `neural.score`. Raw-feature models ignore the graph."""
        if not self.uses_graph:
            return self.model.score(x_EF)
        from edge_ids.flow import neural

        return neural.score(self.model, x_EF, means_VF, src_E, dst_E, self.window)

    def score_table(self, table: FlowTable) -> Array:
        """Score a whole file at once: hosts' means over all of its flows, later ones included (the paper's evaluation), (E,)."""
        return self.score_scaled(self.scaler.transform(table.features), table)

    def score_scaled(self, x_EF: Array, table: FlowTable) -> Array:
        """`score_table` on features that are scaled already."""
        if not self.uses_graph:
            return self.model.score(x_EF)
        from edge_ids.flow.graph import in_means

        return self.score(x_EF, in_means(x_EF, table.dst, len(table.hosts)), table.src, table.dst)

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        import safetensors.numpy

        folder.mkdir(parents=True, exist_ok=True)
        arrays = self.model.arrays if self.config is None else {name: value.numpy() for name, value in self.model.state_dict().items()}
        data = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        (folder / "model.safetensors").write_bytes(data)
        write_json(folder / "model.json", {
            "format": FORMAT, "kind": self.kind, "schema": self.schema.name, "features": self.schema.features, "extractor": self.extractor,
            "scaler": self.scaler.to_json(), "config": None if self.config is None else asdict(self.config), "horizon": asdict(self.horizon),
            "threshold": self.threshold and asdict(self.threshold), "stream_threshold": self.stream_threshold and asdict(self.stream_threshold),
            "reference": self.reference, "about": self.about, "sha256": hashlib.sha256(data).hexdigest(),
        })  # fmt: skip


def load(folder: str | Path) -> Detector:
    """Read a detector.

    Raises:
        InputError: if there is none, it was altered, or torch is missing for a torch model.
    """
    folder = Path(folder)
    if not (folder / "model.json").is_file():
        raise InputError(f"--model {folder}: no flow model there (model.json is missing); give the --out folder of `edge-ids flow train`")
    data = read_json(folder / "model.json", "model")
    try:
        if data["format"] != FORMAT:
            raise InputError(f"{folder / 'model.json'}: format {data['format']}, this version reads {FORMAT}; train the model again")
        detector = Detector(
            data["kind"], Schema(data["schema"], tuple(data["features"])), data["extractor"], Scaler.from_json(data["scaler"]), None,
            data["config"] and NeuralConfig(**data["config"]), Horizon(**data["horizon"]),
            data["threshold"] and Threshold(**data["threshold"]), data["stream_threshold"] and Threshold(**data["stream_threshold"]),
            data["reference"], data["about"],
        )  # fmt: skip
        digest = data["sha256"]
        if detector.kind not in KINDS:
            raise KeyError(detector.kind)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / 'model.json'} is no flow model of this program: {error}") from error
    try:
        raw = (folder / "model.safetensors").read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {folder / 'model.safetensors'}: {error.strerror}") from error
    if hashlib.sha256(raw).hexdigest() != digest:
        raise InputError(f"{folder / 'model.safetensors'} does not belong to model.json beside it (checksum); copy the whole folder again")
    _fill(detector, raw, folder)
    return detector


def _fill(detector: Detector, raw: bytes, folder: Path) -> None:
    import safetensors.numpy

    arrays = safetensors.numpy.load(raw)
    if detector.config is None:
        detector.model = CLASSICAL[detector.kind](arrays)
        return
    require("torch", "edge-ids[torch]")
    import torch

    from edge_ids.flow import neural

    detector.model = neural.build(detector.kind, len(detector.schema), detector.config, 0)
    try:
        detector.model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    except RuntimeError as error:
        raise InputError(f"{folder / 'model.safetensors'} does not fit model.json: {' '.join(str(error).split())[:120]}") from error
    detector.model.eval()


def reference_of(x_EF: Array) -> dict[str, list[float]]:
    """The 1st, 50th and 99th percentile of each scaled feature over benign training flows: what an explanation compares with."""
    low, middle, high = np.quantile(x_EF, (0.01, 0.5, 0.99), axis=0)
    return {"low": low.tolist(), "middle": middle.tolist(), "high": high.tolist()}


def timed_scores(detector: Detector, table: FlowTable) -> tuple[Array, float]:
    """Scores of `table` and flows per second, scaling and aggregation included."""
    began = time.perf_counter()
    scores = detector.score_table(table)
    return scores, len(table) / max(time.perf_counter() - began, 1e-9)
