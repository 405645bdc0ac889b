"""The table, result.json and report.html of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_shared.devices import load as load_device
from edge_shared.report import DataInfo, Result, Section, Table, write_html, write_result

from pi_adapt import material, plots

if TYPE_CHECKING:
    from pi_adapt.pipeline import Adapted

COLUMNS = ("stage", "accuracy", "layers", "MACs", "peak (B)", "training (B)", "ms here")
LIGHT = "The shortcut is synthetic: every class was given a light of its own, in {rho:.0%} of the training images. The images are real."


def rows(adapted: Adapted) -> list[list[Any]]:
    """One row per stage, under `COLUMNS`; a star marks accuracy on the new domain. Training: predicted / measured bytes."""
    stages, table = adapted.stages, []
    latency = stages["export"]["latency_ms"]
    for name, title in (
        ("pick", "network"),
        ("shorten", "shorter"),
        ("audit", "audited"),
        ("personalise", "personal *"),
        ("export", "int8 *"),
    ):
        stage = stages[name]
        training, cost = stage.get("training"), stage["cost"]
        table.append([
            title, f"{percent(stage['accuracy_before'])} to {percent(stage['accuracy_after'])}", cost["layers"], cost["macs"],
            None if name == "export" else cost["peak_bytes"],
            _predicted_measured(training),
            f"{latency['int8' if name == 'export' else name]['median']:.3f}",
        ])  # fmt: skip
    return table


def _predicted_measured(training: dict[str, Any] | None) -> str | None:
    """Bytes of all training state; methods that predict only what they save for backward show that."""
    if training is None:
        return None
    kind = "total" if training["predicted_total_bytes"] is not None else "saved"
    predicted, measured = (training[f"{which}_{kind}_bytes"] for which in ("predicted", "measured"))
    return f"{'-' if predicted is None else f'{predicted:,}'} / {measured:,}"


def headline(adapted: Adapted) -> str:
    """The title of the table."""
    return f"{adapted.config.data} on {adapted.config.device}; test accuracy before and after, * on the new domain"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def write(folder: Path, adapted: Adapted, command: str) -> Result:
    """Write result.json, the plots and report.html into the run's folder."""
    config, stages = adapted.config, adapted.stages
    work = material.load(folder / "1-data")
    device = load_device(config.device)
    data = stages["data"]
    training, last = stages["personalise"]["training"], stages["export"]
    notes = [LIGHT.format(rho=config.rho)] if data["planted"] else []
    if work.personal.synthetic:
        notes.append(f"The new domain is made up: the images {config.shift}.")
    notes.append("Latency is of this machine, batch 1, one thread, ONNX Runtime, all files in turn; it is not the Pi's.")
    result = Result(
        command=command,
        metrics={"stages": stages, "table": {"columns": COLUMNS, "rows": rows(adapted)}},
        cost={
            **last["cost"], "training_predicted_bytes": training["predicted_total_bytes"], "training_measured_bytes": training["measured_total_bytes"],
            "onnx_bytes": last["bytes"]["float32"], "int8_onnx_bytes": last["bytes"]["int8"], "latency_ms": last["latency_ms"],
            "seconds": sum(adapted.seconds.values()), "stage_seconds": adapted.seconds,
        },
        artifacts={
            "weights": "6-export/model/model.safetensors", "recipe": "6-export/model/recipe.json", "onnx": "6-export/model/model.onnx",
            "int8": "6-export/model/model.int8.onnx", "report": "report.html",
        },
        seed=config.seed,
        data=DataInfo(name=config.data, fingerprint=data["fingerprint"], synthetic=data["synthetic"], counts=data["counts"]),
        settings={name: value for name, value in vars(config).items() if name not in ("data", "seed")},
        notes=notes,
    )  # fmt: skip
    write_html(folder, f"{config.data} on {device.description or device.name}", _sections(folder, adapted, work, device), result)
    write_result(folder, result)
    return result


def _worst(audit: dict[str, Any]) -> str:
    """The group with the lowest accuracy, with its interval."""
    group = min(audit["groups"], key=lambda one: one["accuracy"]["value"])
    value = group["accuracy"]
    return f"{group['group']}, {percent(value['value'])} [{percent(value['low'])}, {percent(value['high'])}] of {group['n']} images"


def _sections(folder: Path, adapted: Adapted, work: Any, device: Any) -> list[Section]:
    stages = adapted.stages
    picked, short, audit, personal, last = (stages[name] for name in ("pick", "shorten", "audit", "personalise", "export"))
    sections = [
        Section(
            "Stage by stage",
            "Accuracy is on test images that no stage has looked at. Peak inference is the largest sum of live activations, float32, "
            "batch 1, predicted and measured to the byte. Training is everything held for it (saved activations, gradients, masks): predicted / "
            "measured. A star marks accuracy on the new domain.",
            Table(COLUMNS, rows(adapted)),
            [plots.accuracy_bars(folder, adapted)],
        ),
        Section("The images", figures=[plots.images(folder, work)]),
    ]
    if "choice" in picked:
        text = (
            f"{picked['networks']:,} networks, budget {picked['budget_bytes']:,} bytes of {device.name} (memory model {picked['memory_model']}); "
            f"the one picked needs {picked['ram_bytes']:,.0f}, {picked['utilisation']:.1%} of it."
        )
    else:
        text = f"Your own: `{picked['by']}`; it needs {picked['ram_bytes']:,} of {picked['budget_bytes']:,} bytes of RAM of {device.name}."
    text += (
        f"\n\nShortening took out {len(short['removed'])} activations and made {len(short['merges'])} merges."
        if short["refused"] is None
        else f"\n\nNothing was shortened: {short['refused']}."
    )
    sections.append(Section("The network and its cost", text, figures=[plots.cost_bars(folder, adapted)]))
    if audit["mask"]:
        words = (
            f"Worst light before: {_worst(audit['audit_before'])}; with {1 - audit['mask']['kept_share']:.0%} of the weights cut: "
            f"{_worst(audit['audit_after'])}. Images whose light contradicts their class: "
            f"{percent(audit['score_before']['conflicting'])} right before, {percent(audit['score_after']['conflicting'])} after. "
            f"A linear probe reads the light from the features in {percent(audit['score_before']['probe'])} before, "
            f"{percent(audit['score_after']['probe'])} after (chance: {percent(1 / len(work.images.classes))})."
        )
    else:
        worst = audit["audit_before"]["worst_group"]
        words = (
            f"Worst class: {worst['label']}, {percent(worst['accuracy']['value'])} of {worst['n']}. "
            "No shortcut was planted and the images carry no groups, so nothing was cut."
        )
    sections.append(
        Section(
            "Audit by group",
            words + "\n\nGroup metrics describe these predictions; they do not certify fairness.",
            figures=[plots.audit_bars(folder, audit)],
        )
    )
    training = personal["training"]
    sections.append(
        Section(
            "Learning on the device",
            f"{personal['images']} images of the new domain, budget `{adapted.config.training_budget}`. "
            f"On the old domain the personal network has {percent(personal['home_after'])} ({percent(personal['home_before'])} before). "
            f"Training all weights of the network the plain way would hold {personal['plain_total_bytes']:,} bytes.",
            Table(
                ["", "bytes"],
                [
                    ["predicted, saved for backward", training["predicted_saved_bytes"]],
                    ["measured, saved for backward", training["measured_saved_bytes"]],
                    ["predicted, all training state", training["predicted_total_bytes"]],
                    ["measured, all training state", training["measured_total_bytes"]],
                    ["plain training of all weights, activations and gradients", personal["plain_total_bytes"]],
                ],
            ),
        )
    )
    sections.append(
        Section(
            "Files for the Pi",
            f"`6-export/model/model.onnx` ({last['bytes']['float32']:,} bytes) equals torch on all test images to "
            f"{last['onnx_max_abs_error']:.1e} where outputs reach {last['output_scale']:.3g}; `model.int8.onnx` "
            f"({last['bytes']['int8']:,} bytes) agrees with it on {percent(last['int8_agreement'])} of the calibration images.",
        )
    )
    return sections
