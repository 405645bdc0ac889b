"""Edgewise in a Debian arm64 userland against this machine: ONNX outputs, a short fine-tuning, and the C of tinyeeg and mcu-vision.

    python tests/arm64/compare.py [--root FOLDER] [--run FOLDER] [--out FILE.json]

`--run` takes the folder of a finished `pi-adapt run`; its exported network is compared too. Needs root; exits 77 with a clear
word where the userland cannot be made. Nothing is timed: emulated time says nothing about a board.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SOURCES = ("shared/src/edge_shared", "packages/ondevice-train/src/ondevice_train")
DATA = Path(os.environ.get("EDGEWISE_DATA", REPOSITORY.parent / "shared/data"))
WEIGHTS = DATA / "vision/weights/mobilenet_v2-b0353104.pth"
"""ImageNet weights of torchvision; without them that network is left out."""
FIT = {"method": "sparse-update", "budget": "64kB", "epochs": 4, "batch_size": 8, "lr": 0.05, "biases": -1}


def make_root(root: Path) -> None:
    done = subprocess.run([HERE / "make_root.sh", root], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    for source in SOURCES:
        shutil.copytree(REPOSITORY / source, root / "opt/source" / Path(source).name, dirs_exist_ok=True)


def in_root(root: Path, *command: str) -> None:
    """Run a program of the userland there, with /proc, leaving no mount behind."""
    inside = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/opt/source:/opt/edgewise", "OMP_NUM_THREADS": "1", "HOME": "/tmp", "LANG": "C.UTF-8"}
    words = [f"{key}={value}" for key, value in inside.items()]
    subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", "chroot", root, "/usr/bin/env", "-i", *words, *command],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def prepare(folder: Path, run: Path | None) -> list[str]:
    """Networks, inputs and data of the job: a small network trained here on digits is to learn turned digits there."""
    import torch
    import torchvision
    from edge_shared import architectures
    from edge_shared.artifacts import export_onnx, load_weights, save_model
    from edge_shared.data.vision import load_images
    from edge_shared.training import TrainConfig, fit
    from ondevice_train.models import calibrate_norms

    torch.manual_seed(0)
    network = architectures.module("mbv2-w0.35", resolution=96, classes=1000)
    calibrate_norms(network, [torch.randn(16, 3, 96, 96)])
    export_onnx(network.eval(), torch.randn(1, 3, 96, 96), folder / "untrained.onnx")
    inputs = {"untrained": np.random.default_rng(0).standard_normal((4, 3, 96, 96)).astype(np.float32)}
    digits = load_images("digits", limit=80)
    tune = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, stride=2, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10),
    )  # fmt: skip
    fit(tune, digits.loader("train", 16, shuffle=True), None, TrainConfig(epochs=40, optimizer="adam", lr=0.005), device="cpu")
    save_model(folder / "tune", tune.eval(), torch.randn(2, 1, 8, 8), classes=digits.classes, onnx=False)
    export_onnx(tune, torch.zeros(1, 1, 8, 8), folder / "digits.onnx")
    inputs["digits"] = next(iter(digits.loader("test", 80)))[0].numpy()
    if WEIGHTS.is_file():
        photos = torchvision.models.mobilenet_v2(weights=None)
        photos.load_state_dict(load_weights(WEIGHTS))
        export_onnx(photos.eval(), torch.zeros(1, 3, 224, 224), folder / "mobilenet_v2.onnx")
        inputs["mobilenet_v2"] = sample_photos()
    parts = {f"{kind}_{part}": getattr(digits, f"{part}_{kind}") for part in ("train", "val", "test") for kind in "xy"}
    np.savez(
        folder / "tune.npz",
        **{key: np.ascontiguousarray(np.rot90(value, axes=(1, 2))) if key[0] == "x" else value for key, value in parts.items()},
    )
    if run is not None:
        shutil.copyfile(run / "6-export/model/model.onnx", folder / "pi-adapt.onnx")
        shutil.copyfile(run / "6-export/model/model.int8.onnx", folder / "pi-adapt-int8.onnx")
        with np.load(run / "1-data/images.npz") as arrays:
            images = arrays["personal_x_test"].astype(np.float32).transpose(0, 3, 1, 2) / 255
        about = json.loads((run / "1-data/images.json").read_text())["personal"]["statistics"]
        mean, std = (np.array(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in about)
        inputs["pi-adapt"] = inputs["pi-adapt-int8"] = ((images - mean) / std).astype(np.float32)
    np.savez(folder / "inputs.npz", **inputs)
    (folder / "job.json").write_text(json.dumps({"onnx": list(inputs), "fit": FIT}))
    return list(inputs)


def sample_photos() -> np.ndarray:
    """The two photographs of scikit-learn as MobileNetV2 takes them: (2, 3, 224, 224)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    squares = [image[:400, 100:500] for image in load_sample_images().images]
    small = np.stack([np.asarray(Image.fromarray(square).resize((224, 224))) for square in squares]) / 255
    return ((small - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(0, 3, 1, 2).astype(np.float32)


def same_outputs(here: Path, there: Path, names: list[str]) -> dict[str, dict[str, object]]:
    x86, arm = (dict(np.load(folder / "outputs.npz")) for folder in (here, there))
    return {
        name: {
            "largest_difference": float(np.abs(x86[name] - arm[name]).max()),
            "relative_to_output_scale": float(np.abs(x86[name] - arm[name]).max() / np.abs(x86[name]).max()),
            "same_top1": bool((x86[name].argmax(1) == arm[name].argmax(1)).all()),
            "inputs": len(x86[name]),
        }
        for name in names
    }


def same_training(here: Path, there: Path) -> dict[str, object]:
    x86, arm = (json.loads((folder / "fit.json").read_text()) for folder in (here, there))
    keys = ("predicted_total_bytes", "measured_total_bytes", "predicted_saved_bytes", "measured_saved_bytes", "trained_parameters")
    return {
        "steps": "4 epochs of 80 turned digits, batch 8, sparse-update within 64 kB",
        "train_loss_x86": [epoch["train_loss"] for epoch in x86["epochs"]],
        "train_loss_arm64": [epoch["train_loss"] for epoch in arm["epochs"]],
        "bytes_x86": {key: x86["cost"][key] for key in keys},
        "bytes_arm64": {key: arm["cost"][key] for key in keys},
        "test_accuracy_before": x86["before"],
        "test_accuracy_x86": x86["metrics"]["test_accuracy"],
        "test_accuracy_arm64": arm["metrics"]["test_accuracy"],
    }


def same_c(folder: Path, root: Path) -> dict[str, dict[str, object]]:
    """The same sources built for both machines, fed the same bytes: equal output, byte for byte."""
    return tinyeeg_c(folder, root) | mcu_vision_c(folder, root)


def tinyeeg_c(folder: Path, root: Path) -> dict[str, dict[str, object]]:
    from dataclasses import replace

    from tinyeeg import presets, protocols, synthetic, training
    from tinyeeg.codegen.export import export_c99
    from tinyeeg.table import extract

    recordings = synthetic.generate(seconds=60, subjects=3, sessions=1)
    table = extract(recordings, presets.compact())
    evaluation = replace(protocols.time_only(table.windows, "cross-subject"), model="lda", normalise="person")
    model = training.fit_all(table, evaluation, tune=False, seed=0)
    steps = model.chain.steps(recordings[0].signal)
    result = {}
    for number in ("float", "q15"):
        samples = steps.astype("<i2") if number == "q15" else (steps * model.chain.lsb_uv).astype("<f4")
        outputs = []
        for compiler in ("cc", "aarch64-linux-gnu-gcc"):
            where = folder / f"tinyeeg-{number}-{compiler}"
            export_c99(model, where, number)
            np.ascontiguousarray(samples.T).tofile(where / "samples.bin")
            subprocess.run(["make", "-s", "example", f"CC={compiler} -static", "DEFINES=-DPRINT_FEATURES"], cwd=where, check=True)
            outputs.append(execute(root, where, ["./example", "samples.bin"], compiler))
        result[f"tinyeeg {number}"] = {"equal": outputs[0] == outputs[1], "bytes_of_output": len(outputs[0])}
    return result


def mcu_vision_c(folder: Path, root: Path) -> dict[str, dict[str, object]]:
    import torch
    from edge_shared.architectures import mobile
    from edge_shared.artifacts import save_model
    from edge_shared.data.vision import load_images
    from edge_shared.files import open_run
    from mcu_vision.workflow import build

    torch.manual_seed(0)
    config = {"resolution": 8, "in_channels": 1, "stem": {"out": 8, "kernel": 3, "stride": 1}, "classes": 10,
              "blocks": [{"kernel": 3, "expand": 4, "out": 8, "stride": 1}, {"kernel": 5, "expand": 3, "out": 16, "stride": 2}]}  # fmt: skip
    digits = load_images("digits")
    model = mobile.module(mobile.MobileConfig.model_validate(config)).eval()
    save_model(
        folder / "mcu-model", model, torch.zeros(1, 1, 8, 8), classes=digits.classes, onnx=False,
        normalisation={"mean": digits.mean, "std": digits.std},
    )  # fmt: skip
    options = {"data": "digits", "device": "stm32f746", "model": str(folder / "mcu-model"), "budget": None, "flash": None, "stack": 2048,
               "images": 1, "space": None, "limit": None, "epochs": 1, "networks": 10, "fine_tune": 0, "seed": 0}  # fmt: skip
    opened = open_run(folder / "mcu", None, options)
    build(opened)
    (opened.path / "firmware/images.bin").write_bytes(np.ascontiguousarray(digits.test_x).tobytes())
    outputs = []
    for compiler in ("cc", "aarch64-linux-gnu-gcc"):
        where = folder / f"mcu-vision-{compiler}"
        shutil.copytree(opened.path / "firmware", where)
        subprocess.run(["make", "-s", "host", f"CC={compiler} -static"], cwd=where, check=True)
        outputs.append(execute(root, where, ["sh", "-c", "./host < images.bin"], compiler))
    return {"mcu-vision int8": {"equal": outputs[0] == outputs[1], "bytes_of_output": len(outputs[0])}}


def execute(root: Path, where: Path, command: list[str], compiler: str) -> bytes:
    """Output of a program: here, or in the userland."""
    if compiler == "cc":
        return subprocess.run(command, cwd=where, check=True, capture_output=True).stdout
    inside = root / "tmp" / where.name
    shutil.copytree(where, inside, dirs_exist_ok=True)
    in_root(root, "sh", "-c", f"cd /tmp/{where.name} && {command[-1] if command[0] == 'sh' else ' '.join(command)} > output.bin")
    return (inside / "output.bin").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("/tmp/edgewise-arm64"))
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    make_root(options.root)
    from edge_shared.files import write_json
    from edge_shared.report import environment

    with tempfile.TemporaryDirectory() as name:
        here = Path(name) / "job"
        here.mkdir()
        names = prepare(here, options.run)
        there = options.root / "tmp/job"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(here, there)
        shutil.copyfile(HERE / "inside.py", options.root / "tmp/inside.py")
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, HERE / "inside.py", here], check=True, env=one)
        in_root(options.root, "python3", "/tmp/inside.py", "/tmp/job")
        record = {
            "command": "python tests/arm64/compare.py --run RUN",
            "note": "arm64 by qemu-user on this machine; no time of it is a board's",
            "x86": json.loads((here / "machine.json").read_text()),
            "arm64": json.loads((there / "machine.json").read_text()),
            "onnx": same_outputs(here, there, names),
            "fine_tuning": same_training(here, there),
            "c": same_c(Path(name), options.root),
            "environment": environment(),
        }
    if options.out is not None:
        write_json(options.out, record)
    print(json.dumps({key: value for key, value in record.items() if key != "environment"}, indent=2))


if __name__ == "__main__":
    main()
