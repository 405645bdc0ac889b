"""Folders that `fit`, `rank` and `compare` write: result.json, plots, one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_shared.report import DataInfo, Result, Section, Table, figure, write_html, write_result
from edge_shared.units import format_bytes

from ondevice_train.fit import FitConfig, FitResult
from ondevice_train.selection.importance import Ranking


def write_fit(folder: Path, result: FitResult, command: str) -> None:
    """Write the folder of one run; the model is in ``model`` already."""
    figures = []
    if result.epochs:
        with figure(folder, "accuracy") as axes:
            axes.plot([row["epoch"] + 1 for row in result.epochs], [100 * row["val_accuracy"] for row in result.epochs], marker="o")
            axes.set(xlabel="epoch", ylabel="validation accuracy (%)", title=f"{result.config.method} on {result.config.data}")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figures.append("accuracy")
    if result.selections:
        with figure(folder, "memory") as axes:
            epochs = [row.epoch + 1 for row in result.selections]
            axes.bar(epochs, [row.measured_total_bytes / 1024 for row in result.selections], width=0.6, label="measured")
            axes.plot(epochs, [row.predicted_total_bytes / 1024 for row in result.selections], "D", color="#e07a1f", label="predicted")
            budget = result.cost.get("budget")
            limit = budget["amount"] / 1024 if budget and budget["accounting"] == "bytes" else 0.0
            if limit:
                axes.axhline(limit, color="#c23b6d", lw=1.5, label="budget")
            top = 1.3 * max(limit, *(row.measured_total_bytes / 1024 for row in result.selections))
            axes.set(xlabel="epoch", ylabel="KiB for training", title="Memory that each epoch's selection takes", ylim=(0, top))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(ncols=3, loc="upper left")
        figures.append("memory")
    record = Result(
        command=command,
        metrics=result.metrics,
        cost=result.cost,
        artifacts={"model": "model"} if (folder / "model").exists() else {},
        seed=result.config.seed,
        data=DataInfo(name=result.config.data, fingerprint=result.data_fingerprint, synthetic=result.synthetic),
        settings={**asdict(result.config), "selections": [asdict(row) for row in result.selections], "epochs_log": result.epochs},
        notes=["Saved bytes are counted from the tensors that autograd holds after one forward pass of a full batch."],
    )
    write_result(folder, record)
    rows = [
        ["test accuracy (%)", 100 * result.metrics["test_accuracy"]],
        ["saved for backward, predicted (bytes)", result.cost.get("predicted_saved_bytes")],
        ["saved for backward, measured (bytes)", result.cost.get("measured_saved_bytes")],
        ["all training memory, measured (bytes)", result.cost.get("measured_total_bytes")],
        ["step time (ms)", 1000 * result.cost["step_seconds"] if result.cost.get("step_seconds") else None],
        ["trained parameters", result.cost.get("trained_parameters")],
    ]
    shown = record.model_copy(update={"settings": asdict(result.config)})
    write_html(
        folder,
        f"Fine-tuning {result.config.model} with {result.config.method}",
        [
            Section("Result", table=Table(["quantity", "value"], rows), figures=figures),
        ],
        shown,
    )


def write_ranking(folder: Path, ranking: Ranking, command: str, config: FitConfig) -> None:
    """Write ``ranking.json`` and its plots."""
    from edge_shared.files import write_json

    write_json(folder / "ranking.json", ranking)
    top = set(ranking.top())
    for score in ("rgn", "lara"):
        rows = ranking.order(score)
        with figure(folder, score, size=(8, 4)) as axes:
            values = [getattr(row, score) for row in rows]
            colours = ["#2563eb" if row.name in top or score == "lara" else "#b8c0cc" for row in rows]
            axes.bar(range(len(rows)), values, color=colours)
            titles = {
                "rgn": "RGN per layer (TraDy); blue holds 97 % of the total",
                "lara": "LaRa per layer (MeDyate)",
            }
            axes.set(ylabel=score.upper() if score == "rgn" else "LaRa", title=titles[score])
            axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=90, fontsize=5)
    record = Result(
        command=command,
        metrics={"top_layers": len(top), "layers": len(ranking.layers)},
        artifacts={"ranking": "ranking.json"},
        seed=ranking.seed,
        settings=asdict(config),
    )
    write_result(folder, record)
    table = Table(["layer", "RGN", "LaRa", "gradient norm", "input channels"], [
        [row.name, row.rgn, row.lara, row.gradient_norm, row.channels] for row in ranking.order("rgn")
    ])  # fmt: skip
    write_html(folder, f"Layer ranking of {ranking.model}", [Section("Scores", table=table, figures=["rgn", "lara"])], record)


def write_comparison(folder: Path, rows: Sequence[Mapping[str, Any]], command: str, settings: Mapping[str, Any]) -> None:
    """Write the table and plot of a comparison: accuracy against measured training bytes, with 95 % intervals."""
    with figure(folder, "comparison", size=(7.5, 4.5)) as axes:
        for method in dict.fromkeys(row["method"] for row in rows):
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["measured_total_bytes"])
            axes.errorbar(
                [row["measured_total_bytes"] / 1024 for row in own],
                [100 * row["mean_accuracy"] for row in own],
                yerr=[100 * (row["ci95"] or 0) for row in own],
                marker="o",
                capsize=3,
                label=method,
            )
        axes.set(
            xlabel="measured training memory (KiB)", ylabel="test accuracy (%)", title="Accuracy for the memory it takes", xscale="log"
        )
        by_budget = {row["budget"]: row["measured_total_bytes"] / 1024 for row in rows}
        axes.set_xticks(sorted(by_budget.values()), labels=[f"{size:,.0f}" for size in sorted(by_budget.values())])
        axes.minorticks_off()
        axes.legend()
    record = Result(command=command, metrics={"rows": [dict(row) for row in rows]}, settings=dict(settings))
    write_result(folder, record)
    columns = ["method", "budget", "seeds", "accuracy (%)", "± 95 % (points)", "saved bytes", "training bytes", "step (ms)"]
    body = [
        [
            row["method"],
            row["budget"] or "none",
            row["seeds"],
            100 * row["mean_accuracy"],
            100 * row["ci95"] if row["ci95"] is not None else None,
            format_bytes(row["measured_saved_bytes"]),
            format_bytes(row["measured_total_bytes"]),
            1000 * row["step_seconds"] if row["step_seconds"] else None,
        ]
        for row in rows
    ]
    write_html(
        folder,
        "Comparison of training methods",
        [Section("Accuracy and memory", table=Table(columns, body), figures=["comparison"])],
        record,
    )
