"""A forest's C code beside emlearn's for the same forest: flash on a Cortex-M4 and agreement with scikit-learn's class.

    python benchmarks/tinyeeg/emlearn_peer.py

Flash of ours: the q15 firmware with the forest less the same firmware with an LDA, whose own code stays in the difference (ours looks a little
smaller than it is by the LDA's tables). Flash of emlearn: text and data of its inline header behind a one-line function, -Os, same flags. Both
predict the windows of people who were not in training; emlearn's runs on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from tinyeeg import boards, cost, presets, protocols, synthetic, training
from tinyeeg.codegen.emlearn import export_emlearn
from tinyeeg.codegen.export import export_c99
from tinyeeg.table import extract

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-emlearn-peer.json"
CALL = '#include <stdint.h>\n#include "classifier.h"\nint decide(const int16_t *z, int n) { return classifier_predict(z, n); }\n'
HOST = """#include <stdio.h>
#include "classifier.h"
int main(void) {{ static int16_t z[{features}];
while (fread(z, sizeof z, 1, stdin) == 1) printf("%d\\n", (int)classifier_predict(z, {features})); return 0; }}
"""
FLAGS = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Os", "-ffunction-sections", "-w"]


def main() -> None:
    chain = presets.compact()
    people, others = (synthetic.generate(seconds=40, subjects=4, sessions=1, seed=seed) for seed in (0, 1))
    table, unseen = extract(people, chain), extract(others, chain)
    evaluation = protocols.time_only(table.windows, "cross-subject")
    fitted = {
        name: training.fit_all(table, replace(evaluation, model=name, normalise="global"), tune=False, seed=0) for name in ("forest", "lda")
    }
    forest = fitted["forest"]
    flash = {}
    for name, deployed in fitted.items():
        with tempfile.TemporaryDirectory() as folder:
            export_c99(deployed, folder, "q15")
            size = boards.measure(folder)
            assert size is not None, "arm-none-eabi-gcc is not installed"
            flash[name] = size["flash_bytes"]
    classes = forest.predict(unseen.X)
    z = np.floor(np.clip((unseen.X - forest.center) / forest.scale, -forest.clip, forest.clip) * 1024).astype(np.int16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_emlearn(forest, folder)
        (folder / "call.c").write_text(CALL)
        subprocess.run(["arm-none-eabi-gcc", *FLAGS, "-c", "call.c", "-o", "call.o"], cwd=folder, check=True)
        sizes = subprocess.run(["arm-none-eabi-size", "call.o"], cwd=folder, check=True, capture_output=True, text=True).stdout
        text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
        (folder / "main.c").write_text(HOST.format(features=z.shape[1]))
        subprocess.run(["cc", "-std=c99", "-O1", "-w", "-I.", "-o", "main", "main.c", "-lm"], cwd=folder, check=True)
        done = subprocess.run([str(folder / "main")], input=z.tobytes(), capture_output=True, check=True)
    theirs = np.array(done.stdout.split(), dtype=int)
    truth = unseen.windows.y
    record = {
        "command": "python benchmarks/tinyeeg/emlearn_peer.py",
        "environment": environment(),
        "seed": 0,
        "synthetic": True,
        "trees": len(forest.model.root),
        "nodes": len(forest.model.feature),
        "windows": len(classes),
        "edgewise": {
            "flash_bytes": flash["forest"] - flash["lda"],
            "table_bytes": cost.table_bytes(forest, "q15") - cost.table_bytes(fitted["lda"], "q15"),
            "votes": "sum of the leaves' shares, as scikit-learn",
            "accuracy": float((classes == truth).mean()),
        },
        "emlearn": {
            "flash_bytes": text + data,
            "ram_bytes": data + bss,
            "votes": "one per tree",
            "same_class_as_scikit_learn": float((theirs == classes).mean()),
            "accuracy": float((theirs == truth).mean()),
        },
    }
    record["times_smaller"] = record["emlearn"]["flash_bytes"] / record["edgewise"]["flash_bytes"]
    write_json(OUT, record)
    print(record, file=sys.stderr)


if __name__ == "__main__":
    main()
