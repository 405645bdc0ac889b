"""Firmware of the offline digits for several boards and RAM budgets: bytes linked, stack used, instructions in QEMU, accuracy.

    python benchmarks/apps/mcu_vision.py

One supernet is trained; each row is a `mcu-vision build --model SUPERNET` of its own. Needs arm-none-eabi-gcc and
qemu-system-arm. Writes benchmarks/results/mcu-vision.json after every row and goes on from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from edge_shared.files import write_json
from edge_shared.report import environment

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "mcu-vision.json"
ROWS = [
    ("stm32f746", None),
    ("nrf52840", None),
    ("rp2040", None),
    ("stm32f746", "5200"),
    ("stm32f746", "4600"),
    ("stm32f746", "4000"),
    ("stm32f746", "3000"),
]


def main() -> None:
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    program = Path(sys.executable).with_name("mcu-vision")
    moofa = Path(sys.executable).with_name("moofa")
    with tempfile.TemporaryDirectory() as temporary:
        supernet = Path(temporary) / "supernet"
        training = ["train", "--data", "digits", "--epochs", "20", "--networks", "60", "--out"]
        for device, budget in ROWS[len(rows) :]:
            if not supernet.exists():
                subprocess.run([str(moofa), *training, str(supernet), "--json"], check=True, stdout=subprocess.DEVNULL)
            words = [
                "build",
                "--data",
                "digits",
                "--device",
                device,
                *(["--budget", budget] if budget else []),
                "--fine-tune",
                "3",
                "--images",
                "32",
            ]
            command = [str(program), *words, "--model", str(supernet), "--out", str(Path(temporary) / "out"), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            document = json.loads(done.stdout)
            row = {"device": device, "budget": budget and int(budget), "exit_code": done.returncode}
            if done.returncode == 0:
                row |= {"metrics": document["metrics"], "cost": document["cost"]}
            else:
                row["error"] = document["error"]
            rows.append(row)
            write_json(
                RESULTS,
                {
                    "command": "python benchmarks/apps/mcu_vision.py",
                    "supernet": "moofa " + " ".join(training) + " SUPERNET",
                    "row_command": "mcu-vision "
                    + " ".join(words[:3])
                    + " --device DEVICE [--budget BUDGET] --fine-tune 3 --images 32 --model SUPERNET",
                    "seed": 0,
                    "machine": {"cpu": environment().processor, "cores": os.cpu_count()},
                    "note": "instructions are QEMU's count, not cycles and not a time; bytes are those of the linked firmware",
                    "rows": rows,
                },
            )
            print(row, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
