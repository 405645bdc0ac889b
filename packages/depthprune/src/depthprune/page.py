"""What `depthprune prune` leaves behind: result.json, plots, report.html."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_shared.report import DataInfo, Result, Section, Table, write_html, write_result
from edge_shared.units import format_bytes

from depthprune import plots
from depthprune.job import PruneConfig, PruneResult, settings
from depthprune.latency import Comparison
from depthprune.merging import Certificate, MergeResult

COLUMNS = ["", "before", "after", "change"]


def rows(result: PruneResult) -> list[list[Any]]:
    """The table before/after."""

    def change(before: float, after: float) -> str:
        return f"{before / after:.2f}x less" if after < before else "same" if after == before else f"{after / before:.2f}x more"

    a, b = result.before, result.after
    points = 100 * (result.accuracy_after - result.accuracy_before)
    body: list[list[Any]] = [
        ["test accuracy (%)", f"{100 * result.accuracy_before:.2f}", f"{100 * result.accuracy_after:.2f}", f"{points:+.2f} points"],
        ["layers (convolutions and linear)", a.layers, b.layers, change(a.layers, b.layers)],
        ["activations", a.activations, b.activations, change(a.activations, b.activations)],
        ["parameters", a.parameters, b.parameters, change(a.parameters, b.parameters)],
        ["MACs per image", a.macs, b.macs, change(a.macs, b.macs)],
        [
            "peak inference memory (live tensors)",
            format_bytes(a.peak_bytes),
            format_bytes(b.peak_bytes),
            change(a.peak_bytes, b.peak_bytes),
        ],
    ]
    if result.fit is not None:
        fit = result.fit
        body.append(
            [f"RAM on {fit.device} (model {fit.memory_model})", "", format_bytes(fit.ram_bytes), f"of {format_bytes(fit.ram_budget)}"]
        )
        limit = "no fixed limit" if fit.flash_budget is None else f"of {format_bytes(fit.flash_budget)}"
        body.append([f"weights on {fit.device}", "", format_bytes(fit.flash_bytes), limit])
    for runtime, c in result.latency.items():
        faster = f"{1 / c.ratio:.2f}x as fast [{1 / c.high:.2f}, {1 / c.low:.2f}]"
        body.append([f"latency in {runtime} (ms)", interval(c.before), interval(c.after), faster])
    return body


def interval(timing: Any) -> str:
    """Median with its 95 % interval."""
    return f"{timing.median:.3f} [{timing.low:.3f}, {timing.high:.3f}]"


def certificate_table(certificates: list[Certificate]) -> Table:
    """One row per merge."""
    names = [
        "layers",
        "mode",
        "error on random (float64)",
        "error on data (float32, relative)",
        "ring",
        "MACs before",
        "MACs after",
        "margin",
        "flip bound",
    ]
    body = [
        [
            f"{c.layers[0]} … {c.layers[-1]} ({len(c.layers)})", c.mode, c.max_abs_random, c.max_rel_data, f"{c.ring_share:.0%}",
            c.macs_before, c.macs_after, c.margin, c.flip_bound,
        ]
        for c in certificates
    ]  # fmt: skip
    return Table(names, body)


def not_merged(merging: MergeResult) -> Table:
    """What was not merged, and why."""
    body = [[" + ".join(kept.layers), kept.reason] for kept in merging.kept] + [[b.layer, b.reason] for b in merging.barriers]
    return Table(["layers", "why not"], body)


def comparison_values(latency: dict[str, Comparison]) -> dict[str, Any]:
    """Latency as metrics."""
    found: dict[str, Any] = {}
    for runtime, c in latency.items():
        key = runtime.lower().replace(" ", "")
        found[f"latency_{key}_before_ms"], found[f"latency_{key}_after_ms"] = asdict(c.before), asdict(c.after)
        found[f"latency_{key}_ratio"] = {"median": c.ratio, "low": c.low, "high": c.high}
    return found


def write(folder: Path, result: PruneResult, config: PruneConfig, command: str) -> Result:
    """Write the whole folder; the models are in it already."""
    outcome, merging, images = result.outcome, result.merging, result.images
    removed = {removal.site for removal in outcome.removals}
    drawings = [plots.entropy_bars(folder, "entropy", result.entropies, removed)]
    totals, have = [], 0
    for round_ in outcome.rounds:
        totals.append(have + len(round_.removed))
        have += len(round_.removed) if round_.kept else 0
    accuracy = plots.rounds_line(
        folder, "accuracy", [r.accuracy for r in outcome.rounds], totals, [r.kept for r in outcome.rounds], outcome.dense_accuracy
    )
    merged = [plots.merge_bars(folder, "merged", merging.certificates)] if merging.certificates else []
    speed = plots.latency_bars(folder, "latency", result.latency)
    metrics: dict[str, Any] = {
        "accuracy_before": result.accuracy_before,
        "accuracy_after": result.accuracy_after,
        "validation_accuracy_before": outcome.dense_accuracy,
        "validation_accuracy_after": outcome.accuracy,
        "removed": [asdict(removal) for removal in outcome.removals],
        "rounds": [asdict(round_) for round_ in outcome.rounds],
        "entropies_bits": result.entropies,
        "certificates": [asdict(c) for c in merging.certificates],
        "kept_apart": [asdict(kept) for kept in merging.kept],
        "barriers": [asdict(barrier) for barrier in merging.barriers],
        "onnx_max_abs_error": result.onnx_error,
        "merge_refused": result.refused,
        "device": None if result.fit is None else asdict(result.fit),
        **comparison_values(result.latency),
    }
    cost = {
        f"{name}_{when}": value for when, s in (("before", result.before), ("after", result.after)) for name, value in asdict(s).items()
    }
    cost["seconds"] = result.seconds
    artifacts = {
        "model": "merged/model.safetensors", "recipe": "merged/recipe.json", "onnx": "merged/model.onnx", "dense_model": "dense/model.safetensors",
        "dense_recipe": "dense/recipe.json", "dense_onnx": "dense/model.onnx", "report": "report.html", "entropy_plot": "entropy.png",
        "accuracy_plot": "accuracy.png", "latency_plot": "latency.png", **({"merged_plot": "merged.png"} if merged else {}),
    }  # fmt: skip
    document = Result(
        command=command,
        metrics=metrics,
        cost=cost,
        artifacts=artifacts,
        seed=config.seed,
        data=DataInfo(
            name=images.name,
            fingerprint=images.fingerprint,
            synthetic=images.synthetic,
            counts={"train": len(images.train_y), "val": len(images.val_y), "test": len(images.test_y)},
        ),
        settings=settings(config),
        notes=[result.refused] if result.refused else [],
    )
    blocked = [[site, reason] for site, reason in result.blocked.items() if reason is not None and site not in removed]
    write_html(
        folder,
        f"{config.model} on {images.name}: {result.before.layers} layers became {result.after.layers}",
        [
            Section(
                "Before and after",
                "Accuracy is on the test part, which nothing else has looked at. Latency is the median of interleaved runs at batch 1 on "
                f"{config.threads} thread(s), with the 95 % interval of the median; before is the dense network with its norms folded.",
                Table(COLUMNS, rows(result)),
                [speed],
            ),
            Section(
                "Which activations went",
                f"Method `{config.method}`. Orange activations were taken out and the network fine-tuned after each round. "
                "Only a removed activation between two layers lets them become one; counting zeros would make nothing faster.",
                Table(["activation", "why it was not a candidate"], blocked) if blocked else None,
                [*drawings, accuracy],
            ),
            Section(
                "What was merged, and how exactly",
                f"Policy `{merging.policy}`. Each line replaced a chain of layers by one layer. Errors compare it with the layers that it replaced. "
                "The margin is the smallest pre-activation of a neuron that never switched (0: some did, fine-tuning absorbed it); the flip bound "
                "is 3/n for n calibration images.",
                certificate_table(merging.certificates) if merging.certificates else None,
                merged,
            ),
            Section("What was not merged, and why", table=not_merged(merging)),
        ],
        document,
    )
    write_result(folder, document)
    return document
