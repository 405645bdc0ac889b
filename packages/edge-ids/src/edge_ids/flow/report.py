"""The folder that `flow train` leaves: result.json, report.html, plots."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.report import DataInfo, Result, Section, Table, figure, read_result, write_html, write_result

from edge_ids.flow.fit import FitConfig, FitResult

_FIGURES = ("pr_auc", "benign_pr_auc", "roc_auc", "macro_f1", "false_alarm_rate", "flows_per_second")


def lines_of(result: FitResult) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the table of figures: the model, the model as a stream, its controls."""
    lines = [(result.model, result.metrics), (f"{result.model} (stream)", result.metrics["stream"])]
    return lines + [(f"control: {name}", figures) for name, figures in result.controls.items()]


def write_report(folder: Path, config: FitConfig, result: FitResult, fingerprint: str, command: str, cost: dict[str, Any]) -> Result:
    """Write result.json, report.html and the plots beside the saved model; returns what result.json holds."""
    notes = (
        ["The random split puts flows of one attack and host pair on every side: its figures flatter."] if config.split == "random" else []
    )
    if config.split == "chronological" and not result.timed:
        notes.append("The flows have no times: chronological means file order.")
    synthetic = result.detector.extractor.startswith("synthetic")
    counts = {part: figures["flows"] for part, figures in result.parts.items()}
    counts |= {
        f"{part}_{name}": figures[name]
        for part, figures in result.parts.items()
        for name in ("benign", "attack")
        if figures[name] is not None
    }
    outcome = Result(
        command=command, metrics=result.metrics | {
            "controls": result.controls, "threshold": asdict(result.threshold), "stream_threshold": asdict(result.stream_threshold),
            "training": result.training,
        },
        cost=cost, artifacts={"model": "model.json", "weights": "model.safetensors"}, seed=config.seed,
        data=DataInfo(name=config.data, fingerprint=fingerprint, synthetic=synthetic, counts=counts), settings=asdict(config), notes=notes,
    )  # fmt: skip
    figures = [_scores(folder, result)]
    if result.test_label is not None and 0 < result.test_label.sum() < len(result.test_label):
        figures.append(_curve(folder, result))
    rows = [[name, *(figures.get(key) for key in _FIGURES)] for name, figures in lines_of(result)]
    text = "An untrained model of the same shape and a raw-feature Isolation Forest stand beside the trained one: a figure that they reach too is not learned."
    if result.metrics["prevalence"] is not None:
        text += f"\n\nAttacks are {result.metrics['prevalence']:.1%} of the test flows; a coin has that PR-AUC."
    sections = [Section("Test flows", text, Table(["model", *_FIGURES], rows)), Section("Scores", "", None, figures)]
    write_html(folder, f"{config.model} on {Path(config.data).name}, split {config.split}", sections, outcome)
    write_result(folder, outcome)
    return read_result(folder)


def _scores(folder: Path, result: FitResult) -> str:
    scores = result.test_scores
    positive = scores[scores > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-6, 1.0)
    bins = np.geomspace(low, max(high, low * 1.01), 50)
    with figure(folder, "scores") as axes:
        kinds = [("all flows", np.ones(len(scores), bool))]
        if result.test_label is not None:
            kinds = [("benign", result.test_label == 0), ("attack", result.test_label == 1)]
        for name, mask in kinds:
            axes.hist(scores[mask], bins=bins, histtype="step", linewidth=2, label=f"{name} ({int(mask.sum()):,})")
        if low <= result.threshold.value <= high:
            axes.axvline(result.threshold.value, color="black", linestyle="--", linewidth=1, label=f"threshold ({result.threshold.rule})")
        axes.set(xscale="log", xlabel="score", ylabel="test flows", title="Scores of test flows")
        axes.legend()
    return "scores"


def _curve(folder: Path, result: FitResult) -> str:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(result.test_label, result.test_scores)
    with figure(folder, "precision-recall") as axes:
        axes.plot(recall, precision, label=f"{result.model}, PR-AUC {result.metrics['pr_auc']:.3f}", drawstyle="steps-post")
        axes.axhline(result.metrics["prevalence"], color="grey", linestyle=":", linewidth=1, label="coin")
        axes.set(xlabel="recall", ylabel="precision", title="Attack class", ylim=(0, 1.02))
        axes.legend()
    return "precision-recall"
