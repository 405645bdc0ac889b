"""What runs in the arm64 userland: ONNX inference, and a short fine-tuning. Called by compare.py, there and on the host alike.

python inside.py FOLDER     (FOLDER holds job.json; it gets machine.json, outputs.npz and fit.json)
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime


def outputs(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    result = {}
    inputs = np.load(folder / "inputs.npz")
    for name in names:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        result[name] = session.run(None, {session.get_inputs()[0].name: inputs[name]})[0]
    return result


def fine_tune(folder: Path, job: dict) -> dict:
    from edge_shared.artifacts import load_model
    from edge_shared.data.vision import load_images
    from edge_shared.training import evaluate
    from ondevice_train.fit import FitConfig, run

    config = FitConfig(model=str(folder / "tune"), data=str(folder / "tune.npz"), **job["fit"])
    images = load_images(config.data)
    before = evaluate(load_model(config.model), images.loader("test", 80))["accuracy"]
    result = run(config, folder=folder / "tuned", data=images, verbose=False, onnx=False)
    return {"before": before, "metrics": result.metrics, "cost": result.cost, "epochs": result.epochs, "config": asdict(config)}


def main() -> None:
    import torch

    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(1)
    np.savez(folder / "outputs.npz", **outputs(folder, job["onnx"]))
    (folder / "fit.json").write_text(json.dumps(fine_tune(folder, job), default=str))
    about = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    (folder / "machine.json").write_text(json.dumps(about | {"onnxruntime": onnxruntime.__version__}))


if __name__ == "__main__":
    main()
