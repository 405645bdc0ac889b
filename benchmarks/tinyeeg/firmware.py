"""Sizes and instruction counts of the generated C on a Cortex-M4F, and the constants of the size estimator.

Run: python benchmarks/tinyeeg/firmware.py
Needs gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm, make. Instructions are those of QEMU's -icount, not cycles.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from tinyeeg import boards, cost, presets, synthetic, training
from tinyeeg.chain import Smoothing
from tinyeeg.codegen.export import export_c99
from tinyeeg.codegen.fixed import FixedModel

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-firmware.json"
PARTS = ("sections", "boxcar", "exponential", "linear", "mlp", "trees", "person", "quantise")


def parts_of(deployed, number):
    chain = deployed.chain
    return {
        "sections": bool(chain.sections), "boxcar": chain.smoothing.kind == "boxcar", "exponential": chain.smoothing.kind == "exponential",
        deployed.kind: True, "person": deployed.person, "quantise": chain.quantise and number == "float",
    }  # fmt: skip


def main() -> None:
    muse = synthetic.generate(seconds=30)
    epoc = synthetic.generate(headset="epoc7", seconds=60, subjects=3)
    models = {}
    for kind, person in itertools.product(("lda", "mlp", "forest"), ("person", "global")):
        models[kind, person] = training.train(muse, chain=presets.compact(), model=kind, normalise=person).model
    aci = training.train(epoc, chain=presets.aci2019_stft(), normalise="person").model

    variants = []
    for (kind, person), deployed in models.items():
        for smoothing in (Smoothing(), Smoothing("boxcar", 13), Smoothing("exponential", 8)):
            for sections in (deployed.chain.sections, ()):
                chain = replace(deployed.chain, smoothing=smoothing, sections=sections)
                variants.append((f"compact {kind} {person} {smoothing.kind} {len(sections)}", replace(deployed, chain=chain)))
    variants.append(("aci2019-stft lda person", aci))
    variants.append(("aci2019-stft lda global", replace(aci, person=False)))
    variants.append(("aci2019-stft lda exponential", replace(aci, chain=replace(aci.chain, smoothing=Smoothing("exponential", 8)))))

    rows, constants = [], {}
    for number in ("float", "q15"):
        design, code = [], []
        for name, deployed in variants:
            with tempfile.TemporaryDirectory() as folder:
                export_c99(deployed, folder, number)
                size = boards.measure(folder)
            assert size is not None, "arm-none-eabi-gcc is not installed"
            parts = parts_of(deployed, number)
            design.append([1.0, *(float(parts.get(part, False)) for part in PARTS)])
            code.append(size["flash_bytes"] - cost.table_bytes(deployed, number))
            rows.append({"variant": name, "number": number, **size, "estimate_flash": cost.flash_bytes(deployed, number),
                         "estimate_ram": cost.ram_bytes(deployed, number)})  # fmt: skip
        fitted = np.linalg.lstsq(np.array(design), np.array(code, float), rcond=None)[0]
        constants[number] = dict(zip(("base", *PARTS), np.round(fitted).astype(int).tolist(), strict=True))
    worst = {what: max(abs(row[f"estimate_{what}"] / row[f"{what}_bytes"] - 1) for row in rows) for what in ("flash", "ram")}

    emulated = []
    for name, deployed, recordings in (
        ("compact lda", models["lda", "person"], synthetic.generate(seconds=60)),
        ("aci2019-stft lda", aci, epoc),
    ):
        for number in ("float", "q15"):
            emulated.append({"model": name, "number": number, **emulate(deployed, number, recordings[4].signal)})
    write_json(
        OUT,
        {"command": " ".join(["python", "benchmarks/tinyeeg/firmware.py"]), "environment": environment(), "seed": 0,
         "compiler": subprocess.run(["arm-none-eabi-gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0],
         "flags": "-mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16 -Os", "code_constants": constants, "worst_estimate_error": worst,
         "emulated": emulated, "sizes": rows},
    )  # fmt: skip
    print(constants, worst, *emulated, sep="\n", file=sys.stderr)


def emulate(deployed, number, signal):
    """Run a stream on the emulated Cortex-M4 and hold its output against Python."""
    chain = deployed.chain
    with tempfile.TemporaryDirectory() as folder:
        export_c99(deployed, folder, number)
        steps = chain.steps(signal)
        if number == "q15":
            samples = steps.astype("<i2")
            fixed = FixedModel(deployed)
            wanted = fixed.predict(fixed.chain.features(steps))
        else:
            samples = (steps * chain.lsb_uv).astype("<f4")
            wanted = deployed.predict(chain.features(samples.astype(float)))
        np.ascontiguousarray(samples.T).tofile(Path(folder) / "samples.bin")
        done = subprocess.run(["make", "-s", "qemu"], cwd=folder, capture_output=True, text=True, check=True, timeout=300)
        subprocess.run(["make", "-s", "firmware"], cwd=folder, capture_output=True, check=True)
        size = boards.measure(folder)
        stack = {}
        for usage in Path(folder).glob("*.su"):
            for line in usage.read_text().splitlines():
                name, frame, _ = line.split("\t")
                stack[name.rsplit(":", 1)[1]] = int(frame)
    lines = done.stdout.splitlines()
    found = np.array([int(line) for line in lines if not line.startswith("#")])
    words = next(line for line in lines if line.startswith("#")).split()
    ticks = dict(zip(words[2::2], map(int, words[3::2]), strict=True))
    multiplications = cost.multiplications(deployed)
    per_sample = ticks["sample_mean_x100"] * 40 / 100
    mean = ticks["decision_mean"] * 40
    per_decision = mean + per_sample * (chain.hop - 1)
    return {
        "decisions": len(found), "same_as_python": bool(np.array_equal(found, wanted)), "instructions_per_sample": per_sample,
        "instructions_of_a_decision": mean, "instructions_worst": ticks["decision_worst"] * 40,
        "instructions_per_decision_with_its_samples": per_decision, "multiplications": multiplications,
        "instructions_per_multiplication": per_decision / multiplications,
        "share_of_80_MHz_at_one_per_cycle": per_decision * chain.sfreq / chain.hop / 80e6, "stack_frames": stack, **(size or {}),
    }  # fmt: skip


if __name__ == "__main__":
    main()
