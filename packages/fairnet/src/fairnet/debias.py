"""One run: the biased network and a method, side by side on the untouched test part, with artifacts and a report."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edge_shared.artifacts import save_model
from edge_shared.errors import InputError
from edge_shared.files import Run, write_text
from edge_shared.report import DataInfo, Result, write_html, write_result
from numpy.typing import NDArray
from torch import nn

from fairnet import plots
from fairnet.data.parts import BiasedSet
from fairnet.gates import Granularity
from fairnet.methods import apply, vanilla
from fairnet.methods._train import Settings, tensors
from fairnet.methods.voronoi import Discovery, VoronoiConfig, discover
from fairnet.score import Score, audit_of, score


@dataclass(frozen=True)
class Debiased:
    """What `debias` measured: scores before and after, the method's own findings, and the cost."""

    method: str
    before: Score
    after: Score
    details: dict[str, Any]
    cost: dict[str, Any]


def debias(
    data: BiasedSet,
    name: str,
    settings: Settings,
    run: Run,
    *,
    granularity: Granularity | None = None,
    gamma: float = 1.0,
    min_depth: float | None = None,
) -> Debiased:
    """Train the biased network and the method, compare them, and write everything into the run's folder.

    Args:
        data: what to work on.
        name: of the method.
        settings: network, recipe and seed.
        run: the folder.
        granularity, gamma, min_depth: of masks and of the search, see `fairnet.methods.apply`.
    """
    if name == "vanilla":
        raise InputError("method vanilla is what the others are compared with; choose another")
    started = time.perf_counter()
    before_model = vanilla.run(data, settings, run.path).model
    outcome = apply(name, data, settings, run.path, granularity=granularity, gamma=gamma, min_depth=min_depth)
    seconds = time.perf_counter() - started
    before, before_predictions = score(before_model, data)
    after, after_predictions = score(outcome.model, data)
    example = tensors(data.test.take(np.arange(min(4, len(data.test)))), data)[0]
    cost = _cost(before_model, outcome.model, example) | {"seconds": seconds}
    artifact = save_model(
        run.path / "model", outcome.model.eval(), example, classes=data.classes, normalisation={"mean": data.mean, "std": data.std}
    )
    details = {key: value for key, value in outcome.details.items() if key not in ("moments", "history", "schedule")}
    result = Debiased(name, before, after, details, cost | {"onnx_max_abs_error": artifact["onnx_max_abs_error"]})
    audit = audit_of(after_predictions, data, settings.seed)
    write_predictions(run.path / "predictions.csv", after_predictions, data)
    figures = plots.debias_figures(run.path, data, outcome.details, before_predictions, after_predictions)
    for leftover in run.path.glob("*.safetensors"):
        leftover.unlink()
    unchanged = []
    if outcome.details.get("shortcut_found") is False:
        unchanged = [f"No shortcut was found (depth {outcome.details['depth']:.2f} in the wrong cell): nothing was changed."]
    record = Result(
        command="fairnet debias",
        metrics={"before": asdict(before), "after": asdict(after), "details": details, "audit": asdict(audit)},
        cost=result.cost,
        artifacts={name: f"model/{name}" for name in artifact["files"]} | {"predictions.csv": "predictions.csv"},
        seed=settings.seed,
        data=data_info(data),
        settings={**asdict(settings), "method": name, "granularity": granularity, "gamma": gamma, "min_depth": min_depth},
        notes=[
            *unchanged,
            "The shortcut is planted by a generator; the images are real." if data.synthetic else "Your own images.",
            CAVEAT,
        ],
    )
    write_result(run.path, record)
    write_html(run.path, f"{name} on {data.name}", plots.debias_sections(result, audit, figures), record)
    run.commit()
    return result


def write_predictions(file: Path, predictions: NDArray[np.int64], data: BiasedSet) -> None:
    """Test predictions as `fairnet audit` reads them: label, prediction, group."""
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["label", "prediction", "group"])
    for label, prediction, group in zip(data.test.y, predictions, data.test.b, strict=True):
        writer.writerow([data.classes[int(label)], data.classes[int(prediction)], data.groups[int(group)]])
    write_text(file, rows.getvalue())


CAVEAT = "Group metrics describe these predictions; they do not certify fairness."


def data_info(data: BiasedSet) -> DataInfo:
    """For the result file."""
    counts = {"train": len(data.train), "val": len(data.val), "balanced": len(data.balanced), "test": len(data.test)}
    return DataInfo(name=data.name, fingerprint=data.fingerprint, synthetic=data.synthetic, counts=counts)


def _cost(before: nn.Module, after: nn.Module, example: torch.Tensor) -> dict[str, Any]:
    from edge_shared import flops
    from edge_shared.trace import trace

    result: dict[str, Any] = {}
    for key, model in (("before", before), ("after", after)):
        result[f"parameters_{key}"] = sum(parameter.numel() for parameter in model.parameters())
        result[f"nonzero_parameters_{key}"] = sum(int((parameter != 0).sum()) for parameter in model.parameters())
        result[f"macs_{key}"] = flops.macs(trace(model.eval(), example[:1]))
    result |= latency_ratio(before, after, example[:1])
    return result


@torch.no_grad()
def latency_ratio(before: nn.Module, after: nn.Module, x: torch.Tensor, repeats: int = 60) -> dict[str, float]:
    """Median latency of both networks in ms at batch 1, runs interleaved, and the ratio after / before."""
    times: dict[str, list[float]] = {"before": [], "after": []}
    for turn in range(repeats + 10):
        for key, model in (("before", before), ("after", after)):
            start = time.perf_counter()
            model(x)
            if turn >= 10:
                times[key].append((time.perf_counter() - start) * 1000)
    medians = {key: float(np.median(values)) for key, values in times.items()}
    return {
        "latency_ms_before": medians["before"],
        "latency_ms_after": medians["after"],
        "latency_ratio": medians["after"] / medians["before"],
    }


def discover_to(data: BiasedSet, settings: Settings, run: Run, min_depth: float | None = None) -> dict[str, Any]:
    """Phase 1 of Voronoi alone: who follows the shortcut, written as alignment.csv with the images that contradict it."""
    found: Discovery = discover(data, settings, run.path, VoronoiConfig(min_depth=min_depth))
    moment = found.moments[found.chosen]
    said = ~found.found.aligned
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(["row", "label", "pseudo_label", "aligned", *(["file"] if data.files else [])])
    for row, (label, pseudo, aligned) in enumerate(zip(data.train.y, found.found.pseudo_label, found.found.aligned, strict=True)):
        writer.writerow([row, data.classes[int(label)], data.classes[int(pseudo)], int(aligned), *data.files[row : row + 1]])
    write_text(run.path / "alignment.csv", rows.getvalue())
    metrics: dict[str, Any] = {
        "shortcut_found": found.shortcut,
        "revealing_step": moment.step,
        "depth": moment.depth,
        "conflicting": int(said.sum()),
        "conflicting_share": float(said.mean()),
        "conflicting_per_class": {name: int(said[data.train.y == index].sum()) for index, name in enumerate(data.classes)},
        "against_true_groups": found.quality(data),
    }
    figures = plots.discover_figures(run.path, data, found)
    for leftover in run.path.glob("*.safetensors"):
        leftover.unlink()
    record = Result(
        command="fairnet discover",
        metrics=metrics,
        artifacts={"alignment.csv": "alignment.csv"},
        seed=settings.seed,
        data=data_info(data),
        settings=asdict(settings),
        notes=["Conflicting images may also be hard or wrongly labelled: look at them before you believe in a shortcut."],
    )
    write_result(run.path, record)
    write_html(run.path, f"Shortcut search on {data.name}", plots.discover_sections(metrics, figures), record)
    run.commit()
    return metrics
