"""result.json and report.html of a build."""

from __future__ import annotations

from typing import Any

from edge_shared.files import Run, write_json
from edge_shared.report import DataInfo, Result, Section, Table, write_html, write_result

from mcu_vision.plots import arena_map
from mcu_vision.workflow import Build, plain_plan


def write_report(folder: Run, build: Build) -> Result:
    """Write what a reader needs into the run's folder; returns the result."""
    plan = plain_plan(build)
    write_json(folder.path / "plan.json", plan)
    picture = arena_map(folder.path, plan, [op.name for op in build.net.ops])
    artifacts = {"sources": "firmware", "plan": "plan.json"}
    if build.sizes is not None:
        artifacts["firmware"] = "firmware/firmware.elf"
    if (folder.path / "model").is_dir():
        artifacts["model"] = "model"
    notes = ["Bytes and instructions are measured; nothing here is a time. QEMU counts instructions, not cycles."]
    if build.sizes is None:
        notes.append("Not linked: arm-none-eabi-gcc is not installed here. RAM is the plan; code is not counted in flash.")
    if build.emulated is None:
        notes.append("Not emulated: qemu-system-arm is not installed here.")
    result = Result(
        command=f"mcu-vision build --out {folder.out}", metrics=build.metrics, cost=build.cost, artifacts=artifacts,
        seed=folder.config["seed"], data=DataInfo(**build.data), settings=folder.config, notes=notes,
    )  # fmt: skip
    write_result(folder.path, result)
    write_html(folder.path, f"mcu-vision: {build.net.name}", _sections(build, picture), result)
    return result


def _sections(build: Build, picture: str) -> list[Section]:
    metrics, cost = build.metrics, build.cost
    memory: list[list[Any]] = [
        ["arena, planned (least possible)", cost["arena_planned_bytes"], cost["arena_lower_bound_bytes"]],
        ["variables, linked (arena padded + answer)", cost["linked_data_bss_bytes"], None],
        ["stack, kept (most in use)", cost["stack_reserved_bytes"], cost["stack_high_water_bytes"]],
        ["RAM in all, linked (budget)", cost["linked_ram_bytes"], cost["ram_budget_bytes"]],
        ["constants of the network", cost["constants_bytes"], None],
        ["flash in all, linked (budget)", cost["linked_flash_bytes"], cost["flash_budget_bytes"]],
    ]
    outcome: list[list[Any]] = [
        ["accuracy, float", metrics["test_accuracy_float"]],
        ["accuracy, int8", metrics["test_accuracy_int8"]],
        ["same class as float", metrics["same_class_as_float"]],
        ["test images", metrics["test_images"]],
        ["images run in QEMU, all outputs equal to the reference", metrics["emulated_images"]],
        ["multiply-accumulates of an image", cost["macs"]],
        ["instructions of an image", cost["instructions_per_image"]],
    ]
    layers: list[list[Any]] = [
        [op.name, op.kind, "x".join(map(str, op.in_shape)), "x".join(map(str, op.out_shape)), "x".join(map(str, op.kernel)), op.macs]
        for op in build.net.ops
    ]
    emulated = "not run" if build.emulated is None else f"run on QEMU's `{build.emulated.machine}` ({build.emulated.cpu})"
    return [
        Section("Outcome", f"Int8 network for {build.board.name}, {emulated}.", Table(["", "value"], outcome)),
        Section("Memory", "Bytes.", Table(["", "bytes", "(in brackets)"], memory), [picture]),
        Section("Calls", table=Table(["layer", "kernel", "input", "output", "window", "MACs"], layers)),
    ]
